"""The audio plugin keeps the contract."""

from flows.testing import ModalityContract


class TestAudio(ModalityContract):
    modality = "audio"
