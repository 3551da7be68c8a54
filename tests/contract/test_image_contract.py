"""The image plugin keeps the contract."""

from flows.testing import ModalityContract


class TestImage(ModalityContract):
    modality = "image"
