"""The video plugin keeps the contract."""

from flows.testing import ModalityContract


class TestVideo(ModalityContract):
    modality = "video"
