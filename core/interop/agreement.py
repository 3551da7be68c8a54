"""What was written, against the model it was made of: nothing leaves that computes something else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.errors import NotThis, StageError
from core.interop import building
from core.interop.files import open_checkpoint
from core.interop.foreign import Checkpoint, Foreign, Hint
from core.interop.layout import Layout
from core.interop.serving import load_classifier, load_encoder
from core.interop.subject import Subject
from core.model.heads import Head
from core.model.mae import MaskedAutoencoder
from core.model.masking import Mask
from core.model.patches import PatchSpec
from core.model.segmentation import head_of
from core.model.weights import METADATA
from core.records import TunedModel

TOLERANCE = 1e-5
"""Largest difference of an output, in shares of the largest output where that is above 1."""
OTHER_NORMS = 1e-3
"""The same where norms there add something else to the variance."""
VISIBLE = 4
"""Of so many patches one is visible where predictions of a decoder are compared."""
Outputs = Callable[[Tensor], Tensor]


@torch.no_grad()
def compared(spec: PatchSpec, pairs: Sequence[tuple[Outputs, Outputs]], whose: str, *, loose: bool) -> float:
    """The largest difference between our outputs of some normalised inputs and theirs, over ``pairs`` of both.

    Raises:
        StageError: if that is more than is allowed.
    """
    x = torch.randn(2, spec.channels, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    most, largest = OTHER_NORMS if loose else TOLERANCE, 0.0
    for ours, theirs in pairs:
        expected = ours(x)
        off = apart(expected, theirs(x))
        if not off <= most:  # NaN is no agreement either.
            raise StageError(
                f"{whose} gives other outputs than the model: off by {off:.1e} where {most:.0e} is allowed"
            )
        largest = max(largest, off)
    return largest


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of outputs, in shares of our largest where that is above 1; NaN where one is."""
    return float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max()))


def outputs_of(subject: Subject) -> Outputs:
    """Normalised inputs (B, C, *input_shape) to logits of a tuned model, or features (B, D) of an encoder."""
    served = load_encoder(subject.folder) if subject.tuned is None else load_classifier(subject.folder)
    model = served.model
    return model.classify if isinstance(model, Head) else model.features


def predictions(model: MaskedAutoencoder) -> Outputs:
    """Normalised inputs (B, C, *input_shape) to the values (B, M, P) that are predicted of hidden patches."""
    spec = model.encoder.spec

    def predict(x: Tensor) -> Tensor:
        mask = some_hidden(spec, len(x))
        values: Tensor = model(spec.patchify(x), mask, mask.masked_BM)
        return values

    return predict


def some_hidden(spec: PatchSpec, batch: int) -> Mask:
    """A mask that hides the same patches each time, in their order."""
    every = torch.arange(spec.count).expand(batch, -1)
    shown = every[0] % VISIBLE == 0
    return Mask(every[:, shown], every[:, ~shown])


def read_again(subject: Subject, layout: Layout, files: Sequence[Path], *, loose: bool) -> str:
    """What came of ``files`` when they were read as ``layout`` has them, for the card.

    Raises:
        StageError: if one cannot be read, or outputs differ.
    """
    off = 0.0
    for file in files:
        try:
            opened = open_checkpoint(file, file.name)
            pairs = _segmenting(subject, opened) if subject.segments else _pairs(subject, layout, opened)
        except NotThis as reason:
            raise StageError(f"{file.name} cannot be read again as {layout.name}: {reason}") from None
        off = max(off, compared(subject.spec, pairs, file.name, loose=loose))
    what = "outputs and predictions of hidden patches" if subject.with_decoder else "outputs"
    return f"Read again from {' and '.join(file.name for file in files)}, its {what} differed by {off:.1e} at most."


def _pairs(subject: Subject, layout: Layout, opened: Checkpoint) -> list[tuple[Outputs, Outputs]]:
    """Our outputs, and those of the file."""
    found = layout.read(opened, Hint(subject.record.model, subject.spec))
    back = replace(found, geometry=subject.spec)  # Some files do not say it, and their code is told.
    pairs = [(outputs_of(subject), _outputs(back, tuned=subject.tuned is not None))]
    if subject.with_decoder:
        ours, theirs = building.autoencoder(subject.model), building.autoencoder(back)
        pairs.append((predictions(ours), predictions(theirs)))
    return pairs


def _outputs(model: Foreign, *, tuned: bool) -> Outputs:
    return building.classifier(model).classify if tuned else building.encoder(model).features


def _segmenting(subject: Subject, opened: Checkpoint) -> list[tuple[Outputs, Outputs]]:
    """The same of a model that gives masks, whose head no layout but our own has."""
    record = TunedModel.model_validate(opened.config[METADATA]["record"])
    model = head_of(record)
    try:
        model.load_state_dict(dict(opened.state))
    except RuntimeError as error:
        raise NotThis(str(error)) from None
    return [(outputs_of(subject), model.eval().classify)]
