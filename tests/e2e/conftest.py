"""One stack, one browser, and what the steps of the walk-through hand on."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from walking import Browser, Stack, digits, find_chromium

E2E = "MAEFLOW_TEST_E2E"
IMAGES = 200


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("e2e") and not os.environ.get(E2E):
            item.add_marker(pytest.mark.skip(reason=f"takes minutes; set {E2E}=1 or call `make test-e2e` to run it"))


@dataclass
class Walk:
    """What earlier steps have found."""

    data: Path
    runs: dict[str, str] = field(default_factory=dict)
    """Flow runs of the pipeline by how they were started."""
    epochs: dict[str, int] = field(default_factory=dict)
    waiting: str = ""
    prepared: str = ""


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return Walk(digits(tmp_path_factory.mktemp("data") / "digits", IMAGES))


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    made = Stack(tmp_path_factory.mktemp("walk") / "home")
    try:
        yield made
    finally:
        if made.processes():
            made.maeflow("down")


@pytest.fixture(scope="module")
def chromium():
    path = find_chromium()
    playwright = pytest.importorskip("playwright.sync_api")
    from walking import FLAGS

    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def browser(chromium):
    """A page; at its end it has spoken to this machine alone."""
    opened = Browser(chromium)
    yield opened
    opened.page.close()
    assert not opened.strangers
