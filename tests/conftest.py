"""Settings of all tests: no telemetry, one arithmetic thread, and a home of their own."""

import pytest

from infra import settings


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
    import torch

    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
