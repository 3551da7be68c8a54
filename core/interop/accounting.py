"""How the account of a checkpoint is drawn up."""

from collections.abc import Sequence

from core.config import ModelConfig
from core.interop.account import Account
from core.interop.foreign import Foreign


def account_of(
    name: str,
    model: Foreign,
    whole: Foreign,
    changed: Sequence[str],
    *,
    inputs: str,
    wanted: ModelConfig,
    head: str = "",
) -> Account:
    """The account of ``model``, taken over as ``whole``; ``wanted`` is the model that the recipe describes."""
    encoder = {key: value for key, value in whole.state.items() if key.startswith("encoder.")}
    return Account(
        checkpoint=name,
        layout=model.layout,
        parameters=sum(value.numel() for value in encoder.values()),
        matched=sum(key in model.state for key in encoder),
        weights=len(encoder),
        decoder=_decoder(model, whole),
        head=head or _head(model),
        outputs=model.outputs,
        leftover=model.leftover,
        changed=tuple(changed),
        inputs=inputs,
        notes=(*model.notes, *_positions(model), _heads_said(model.model), *_differences(model, wanted)),
    )


def _decoder(model: Foreign, whole: Foreign) -> str:
    if not model.has_decoder:
        return "none in the file; pretraining that goes on from it draws one anew"
    if not whole.has_decoder:
        return "taken over but for its last layer, which predicts other patches and is drawn anew"
    return "taken over"


def _head(model: Foreign) -> str:
    if not model.outputs:
        return ""
    return f"its head of {model.outputs} outputs is for its own classes; fine-tuning draws one for yours"


def _positions(model: Foreign) -> list[str]:
    if "encoder.pos_embed" in model.state:
        return []
    return ["its positions are a fixed table, which the file leaves out; it was computed"]


def _heads_said(config: ModelConfig) -> str:
    """Attention heads leave no trace in weights, so people should look at them."""
    return f"{config.heads} attention heads of {config.width // config.heads} features, which weights alone do not tell"


def _differences(model: Foreign, wanted: ModelConfig) -> list[str]:
    """Where the checkpoint is another model than the recipe describes."""
    fields = ("width", "depth", "heads", "mlp_ratio", "cls_token", "positions", "norm_eps")
    other = [name for name in fields if getattr(model.model, name) != getattr(wanted, name)]
    if not other:
        return []
    said = ", ".join(f"{name} {getattr(model.model, name)} (recipe: {getattr(wanted, name)})" for name in other)
    return [f"the model is the checkpoint's and not the recipe's: {said}"]
