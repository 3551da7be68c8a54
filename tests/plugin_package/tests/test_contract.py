"""The inertial plugin keeps the contract: one test per rule that maeflow relies on."""

from flows.testing import ModalityContract


class TestInertial(ModalityContract):
    """Checked on the plugin's own sample."""

    modality = "inertial"
