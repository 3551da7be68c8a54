"""Models out of foreign checkpoints, in the checkpoint's own geometry and precision."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from core.errors import NotThis
from core.interop.foreign import Foreign
from core.model.heads import Classifier
from core.model.mae import Encoder, MaskedAutoencoder, fixed_positions

M = TypeVar("M", bound=nn.Module)
NO_DECODER = (
    "it holds an encoder alone and cannot reconstruct; pretraining goes on from it with a decoder drawn anew, or take "
    "the file with the decoder, which publishers often call `full` or `pretrain`"
)


def with_fixed_positions(model: Foreign) -> dict[str, Tensor]:
    """The weights of ``model`` with the tables of positions that files leave out because they are fixed."""
    state, config = dict(model.state), model.model
    some = state["encoder.patch_embed.proj.weight"]
    if config.positions != "learned" and "encoder.pos_embed" not in state:
        state["encoder.pos_embed"] = fixed_positions(model.geometry, config, config.width).to(some)
    if model.has_decoder and "decoder.pos_embed" not in state:
        state["decoder.pos_embed"] = fixed_positions(model.geometry, config, config.decoder.width).to(some)
    return state


def autoencoder(model: Foreign) -> MaskedAutoencoder:
    """The whole masked autoencoder, in evaluation mode.

    Raises:
        NotThis: if there is no decoder, or a weight is missing, left over or of another shape.
    """
    if not model.has_decoder:
        raise NotThis(NO_DECODER)
    values = len(model.state["decoder.pred.weight"])
    made = MaskedAutoencoder(model.geometry, model.model, values=values)
    return _loaded(made, {k: w for k, w in with_fixed_positions(model).items() if k not in model.head})


def encoder(model: Foreign) -> Encoder:
    """The encoder, in evaluation mode.

    Raises:
        NotThis: if a weight is missing, left over or of another shape.
    """
    state = with_fixed_positions(model)
    own = {key.removeprefix("encoder."): w for key, w in state.items() if key.startswith("encoder.")}
    return _loaded(Encoder(model.geometry, model.model), own)


def classifier(model: Foreign) -> Classifier:
    """The tuned model, in evaluation mode.

    Raises:
        NotThis: if there is no head, or a weight is missing, left over or of another shape.
    """
    if not model.head:
        raise NotThis("it has no head, so it predicts nothing; tune it first")
    pool = "mean" if "fc_norm.weight" in model.head else "cls"
    made = Classifier(model.geometry, model.model, model.outputs, pool)
    state = {key.removeprefix("encoder."): w for key, w in with_fixed_positions(model).items()}
    unused = ("decoder.", "norm.") if pool == "mean" else ("decoder.",)
    return _loaded(made, {key: w for key, w in state.items() if not key.startswith(unused)})


def _loaded(made: M, state: dict[str, Tensor]) -> M:
    """``made`` with exactly the weights of ``state``, in their precision."""
    own = made.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise NotThis(f"it lacks {missing[0]} ({len(missing)} weights in all)")
    if extra := sorted(state.keys() - own.keys()):
        raise NotThis(f"there is no place for its {extra[0]} ({len(extra)} weights in all)")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise NotThis(f"its {name} is {tuple(value.shape)}, where {tuple(own[name].shape)} fits its other weights")
    floating = next((w.dtype for w in state.values() if w.is_floating_point()), torch.float32)
    made.to(floating).load_state_dict(state)
    return made.eval()
