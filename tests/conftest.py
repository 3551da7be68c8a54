"""Settings of all tests: no telemetry, one arithmetic thread, and a home of their own."""

import os

import pytest

from infra import settings

# Before torch is imported, here and in every process that a test starts: test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NETWORK = "MAEFLOW_TEST_NETWORK"
"""Set where tests may fetch packages."""
LONG = "MAEFLOW_TEST_LONG"
"""Set where there are minutes for tests of rare ground."""
FIGURES = "house figures"
"""Property under which a test hands a line to the end of the run, also from a worker process."""
FAULTS = "fault table"
"""The same for a line of the table of plugins' faults."""


@pytest.fixture(autouse=True, scope="session")
def _quiet(tmp_path_factory):
    home = tmp_path_factory.mktemp("session-home")
    patch = pytest.MonkeyPatch()
    for name in ("MAEFLOW_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        patch.delenv(name, raising=False)
    settings.apply(home)
    yield
    patch.undo()


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot do, with the reason."""
    for item in items:
        if item.get_closest_marker("network") and not os.environ.get(NETWORK):
            item.add_marker(pytest.mark.skip(reason=f"needs a package registry; set {NETWORK}=1 to run it"))
        if item.get_closest_marker("long") and not os.environ.get(LONG):
            item.add_marker(pytest.mark.skip(reason=f"takes minutes; set {LONG}=1 or call `make test-long` to run it"))
    waiting = [item for item in items if item.get_closest_marker("gpu")]
    if not waiting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in waiting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter):
    """Print the figures that tests have handed over, and the table of faults with what caught each."""
    handed = [pair for report in terminalreporter.stats.get("passed", []) for pair in report.user_properties]
    for name, text in handed:
        if name == FIGURES:
            terminalreporter.write_line(text)
    faults = sorted(text for name, text in handed if name == FAULTS)
    if faults:
        terminalreporter.write_line(f"\n{'fault of a plugin':40s} {'caught by':22s} seen")
        for line in faults:
            terminalreporter.write_line(line)
