"""The contract kit: proves that a plugin does what the engine relies on. A plugin's test is one subclass.

from flows.testing import ModalityContract  # or core.testing, where Prefect is not installed

class TestDepth(ModalityContract):
    modality = "depth"
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.testing.suite import ModalityContract

__all__ = ["ModalityContract"]


def __getattr__(name: str) -> Any:
    # The rules need torch; who only lists them must not wait for it.
    if name != "ModalityContract":
        raise AttributeError(name)
    from core.testing.suite import ModalityContract

    return ModalityContract
