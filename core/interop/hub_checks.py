"""What was written for timm or transformers, loaded by them and compared with the model."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import StageError
from core.interop import building
from core.interop.agreement import Outputs, compared, outputs_of, predictions, some_hidden
from core.interop.subject import Subject
from core.model.patches import gather_tokens


def checked_by_timm(subject: Subject, folder: Path, *, loose: bool) -> str:
    """What timm made of the folder.

    Raises:
        StageError: if outputs differ.
    """
    from timm import create_model

    loaded = create_model(f"local-dir:{folder}", pretrained=True).eval()
    off = compared(subject.spec, [(outputs_of(subject), loaded)], "timm", loose=loose)
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
    answer = _Answer(subject, model.eval())
    pairs: list[tuple[Outputs, Outputs]] = [(outputs_of(subject), answer)]
    if subject.with_decoder:
        pairs.append((predictions(building.autoencoder(subject.model)), answer.predict))
    off = compared(subject.spec, pairs, "transformers", loose=loose)
    what = "the encoder's outputs and the decoder's" if subject.with_decoder else "outputs"
    return (
        f"transformers {transformers.__version__} loaded it without a missing or left-over weight; {what} differed by "
        f"{off:.1e} at most."
    )


class _Answer:
    """A model of transformers that answers as ours does."""

    def __init__(self, subject: Subject, model: Any) -> None:
        self._model, self._spec, self._prefix = model, subject.spec, int(subject.record.model.cls_token)
        self._tuned, self._whole, self._video = (
            subject.tuned is not None,
            subject.with_decoder,
            len(self._spec.grid) == 3,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised inputs (B, C, *input_shape) to logits (B, outputs) or features (B, D)."""
        values = self._values(x)
        if self._tuned:
            logits: Tensor = self._model(**values).logits
            return logits
        encoder = self._model
        if self._whole:
            encoder = encoder.base_model
            if not self._video:  # Nothing hidden, and patches in their order.
                values |= self._shuffled(torch.arange(self._spec.count).expand(len(x), -1), self._spec.count)
        tokens: Tensor = encoder(**values).last_hidden_state
        return tokens[:, self._prefix :].mean(1)

    def predict(self, x: Tensor) -> Tensor:
        """Normalised inputs to the predicted values (B, M, P) of the patches that `some_hidden` hides."""
        values, mask = self._values(x), some_hidden(self._spec, len(x))
        if self._video:
            self._model.config.norm_pix_loss = True  # The other loss, which nobody looks at, needs three channels.
            hidden = torch.zeros(len(x), self._spec.count, dtype=torch.bool).scatter(1, mask.masked_BM, value=True)
            predicted: Tensor = self._model(**values, bool_masked_pos=hidden).logits
            return predicted
        order = torch.cat([mask.keep_BK, mask.masked_BM], dim=1)
        found: Tensor = self._model(**values, **self._shuffled(order, mask.keep_BK.shape[1])).logits
        return gather_tokens(found, mask.masked_BM)

    def _values(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": x.transpose(1, 2) if self._video else x}

    def _shuffled(self, order_BN: Tensor, shown: int) -> dict[str, Tensor]:
        """What makes ViTMAE see the first ``shown`` of the patches in this order."""
        self._model.base_model.embeddings.config.mask_ratio = 1 - (shown + 0.5) / self._spec.count
        return {"noise": order_BN.argsort(dim=1).float()}
