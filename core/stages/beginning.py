"""Where pretraining begins, if not with random weights."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from core.config import NormPix
from core.model.mae import MaskedAutoencoder
from core.model.patches import PatchSpec
from core.model.regrid import on_grid, weights_at
from core.records import PretrainedEncoder
from core.stages.work import Work

MODEL_FILE = "autoencoder.safetensors"
"""Encoder and decoder, in the folder of an encoder."""


def begin_from(model: MaskedAutoencoder, start: PretrainedEncoder, target: NormPix, work: Work) -> None:
    """Take the weights of ``start``, and of its decoder what there is; the rest stays as it was drawn.

    ``target`` is what the decoder is to predict from here on.

    Raises:
        UserError: if there is only part of an encoder.
    """
    folder, spec = work.home.resolve(start.folder), model.encoder.spec
    model.encoder.load_state_dict(weights_at(folder, start, spec))
    drawn = model.decoder.state_dict()
    given = _decoder_weights(folder / MODEL_FILE, start, spec)
    fitting = {name: value for name, value in given.items() if name in drawn and drawn[name].shape == value.shape}
    model.decoder.load_state_dict(drawn | fitting)
    if given and start.norm_pix and start.norm_pix is not target:
        other = f"pixels normalised by {start.norm_pix}, and learns to predict them normalised by {target}"
        work.tracker.note(f"its decoder predicted {other}")
    if anew := sorted(drawn.keys() - fitting.keys() - {"pos_embed"}):
        work.tracker.note(
            f"{len(anew)} of the decoder's {len(drawn)} weights are drawn anew: {', '.join(anew[:3])} ..."
        )


def _decoder_weights(file: Path, start: PretrainedEncoder, spec: PatchSpec) -> dict[str, Tensor]:
    """Weights of a decoder, its positions on the grid of ``spec``; empty where there is none."""
    if not file.exists():
        return {}
    every: dict[str, Tensor] = load_file(file)
    given = {name.removeprefix("decoder."): value for name, value in every.items() if name.startswith("decoder.")}
    if "pos_embed" in given:
        given["pos_embed"] = on_grid(given["pos_embed"], start, spec, start.model.decoder.width)
    return given
