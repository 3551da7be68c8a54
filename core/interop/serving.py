"""A finished model as one plain module: natural units in, logits or features out."""

from pathlib import Path

import torch
from torch import Tensor, nn

from core.interop.own import evaluated, weights_in
from core.model.heads import Head
from core.model.mae import Encoder
from core.model.regrid import spec_of
from core.model.segmentation import tuned_from
from core.records import PretrainedEncoder, TunedModel, read_record


class _Served(nn.Module):
    """Holds a model and what its inputs are normalised by."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Encoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        shape = (1, -1) + (1,) * len(model.spec.input_shape)
        self.register_buffer("mean", mean.view(shape))
        self.register_buffer("std", std.view(shape))


class ServedClassifier(_Served):
    """Normalises and classifies features as the plugin gives them."""

    model: Head

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, *input_shape) in natural units, such as 0 to 1, to logits (B, outputs).

        Of a segmenter they are (B, outputs, *input_shape).
        """
        return self.model.classify((x - self.mean) / self.std)


class ServedEncoder(_Served):
    """Normalises features as the plugin gives them, and encodes them."""

    model: Encoder

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, *input_shape) in natural units to those of the whole (B, D) and of each patch (B, N, D).

        The former are the mean of the latter: what the frozen probes of `evaluate` see.
        """
        tokens = self.model(self.model.spec.patchify((x - self.mean) / self.std))[:, self.model.prefix :]
        return tokens.mean(dim=1), tokens


def load_encoder(folder: Path) -> ServedEncoder:
    """The encoder of a finished stage's folder for the inputs of evaluation, in evaluation mode on the CPU.

    Raises:
        UserError: if the folder holds no encoder, or its plugin is not installed.
    """
    record = read_record(folder, PretrainedEncoder)
    (seen, _), statistics = evaluated(record, folder), record.statistics
    model = Encoder(spec_of(seen.geometry), seen.model)
    model.load_state_dict(weights_in(folder / record.weights, record, seen))
    return ServedEncoder(model, torch.tensor(statistics.mean), torch.tensor(statistics.std)).eval()


def load_classifier(folder: Path) -> ServedClassifier:
    """The tuned model of a finished stage's folder, in evaluation mode on the CPU.

    Raises:
        UserError: if the folder holds no tuned model.
    """
    record = read_record(folder, TunedModel)
    statistics = record.statistics
    model = tuned_from(folder, record)
    return ServedClassifier(model, torch.tensor(statistics.mean), torch.tensor(statistics.std)).eval()
