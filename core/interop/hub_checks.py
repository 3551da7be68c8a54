"""What was written for timm or transformers, loaded by them and compared with the model."""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import StageError
from core.interop.serving import load_classifier, load_encoder
from core.interop.subject import Subject
from core.model.heads import Head

TOLERANCE = 1e-5
"""Largest difference of an output, in shares of the largest output where that is above 1."""
LOOSE = 1e-2
"""The same where the library is known to compute a little otherwise."""


def checked_by_timm(subject: Subject, folder: Path, *, loose: bool) -> str:
    """What timm made of the folder.

    Raises:
        StageError: if outputs differ.
    """
    from timm import create_model

    loaded = create_model(f"local-dir:{folder}", pretrained=True).eval()
    off = _compared(subject, loaded, "timm", loose=loose)
    return f"timm {version('timm')} loaded it strictly; outputs differed by {off:.1e} at most."


def checked_by_transformers(subject: Subject, folder: Path, loader: str, *, loose: bool) -> str:
    """What transformers' class ``loader`` made of the folder, where it is installed.

    Raises:
        StageError: if a weight is missing or left over, or outputs differ.
    """
    if find_spec("transformers") is None:
        return "It was not loaded where it was written: transformers was not installed."
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = getattr(transformers, loader).from_pretrained(folder, output_loading_info=True, local_files_only=True)
    wrong = {kind: sorted(map(str, found)) for kind, found in info.items() if found}
    if wrong:
        kind, found = next(iter(wrong.items()))
        raise StageError(
            f"transformers {transformers.__version__} finds {kind.replace('_', ' ')}: {', '.join(found[:3])}"
        )
    off = _compared(subject, _Answer(subject, model.eval()), "transformers", loose=loose)
    what = "the encoder's outputs" if subject.with_decoder else "outputs"
    return (
        f"transformers {transformers.__version__} loaded it without a missing or left-over weight; {what} differed by "
        f"{off:.1e} at most."
    )


class _Answer:
    """A model of transformers that answers as ours does."""

    def __init__(self, subject: Subject, model: Any) -> None:
        self._model, self._video, self._prefix = model, len(subject.spec.grid) == 3, int(subject.record.model.cls_token)
        self._tuned, self._whole, self._patches = subject.tuned is not None, subject.with_decoder, subject.spec.count

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised inputs (B, C, *input_shape) to logits (B, outputs) or features (B, D)."""
        values = {"pixel_values": x.transpose(1, 2) if self._video else x}
        if self._tuned:
            logits: Tensor = self._model(**values).logits
            return logits
        encoder = self._model
        if self._whole:
            encoder = encoder.base_model
            if not self._video:  # Nothing hidden, and patches in their order.
                encoder.embeddings.config.mask_ratio = 0.0
                values["noise"] = torch.arange(self._patches).expand(len(x), -1).float()
        tokens: Tensor = encoder(**values).last_hidden_state
        return tokens[:, self._prefix :].mean(1)


@torch.no_grad()
def _compared(subject: Subject, theirs: Callable[[Tensor], Tensor], whose: str, *, loose: bool) -> float:
    """The largest difference between our outputs of some inputs and theirs.

    Raises:
        StageError: if that is more than is allowed.
    """
    served = load_encoder(subject.folder) if subject.tuned is None else load_classifier(subject.folder)
    model = served.model
    x = torch.randn(2, subject.spec.channels, *subject.spec.input_shape, generator=torch.Generator().manual_seed(0))
    ours = model.classify(x) if isinstance(model, Head) else model.features(x)
    off = float((ours - theirs(x)).abs().max()) / max(1.0, float(ours.abs().max()))
    most = LOOSE if loose else TOLERANCE
    if not off <= most:
        raise StageError(f"{whose} gives other outputs than the model: off by {off:.1e} where {most:.0e} is allowed")
    return off
