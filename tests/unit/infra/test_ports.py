"""Where the servers of a home listen, the next time as well."""

import json

import pytest

from infra.services import Addresses
from infra.stack import PORTS, addresses


def kept(home, text):
    (home / PORTS).parent.mkdir()
    (home / PORTS).write_text(text)


def test_a_port_that_is_not_given_is_the_last_one(tmp_path):
    assert addresses(tmp_path, "127.0.0.1", None, None) == Addresses()
    kept(tmp_path, json.dumps({"prefect": 4301, "mlflow": 5301}))
    assert addresses(tmp_path, "127.0.0.1", None, None) == Addresses("127.0.0.1", 4301, 5301)
    assert addresses(tmp_path, "0.0.0.0", 4200, None) == Addresses("0.0.0.0", 4200, 5301)


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_file_that_says_nothing_is_no_hindrance(tmp_path, text):
    kept(tmp_path, text)
    assert addresses(tmp_path, "127.0.0.1", None, 5555) == Addresses(mlflow=5555)
