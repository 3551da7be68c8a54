"""The medical plugin keeps the contract."""

from flows.testing import ModalityContract


class TestMedical(ModalityContract):
    modality = "medical"
