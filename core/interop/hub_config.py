"""What the JSON files beside a model of transformers say, and what they say of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.config import NormPix
from core.errors import NotThis
from core.interop import said
from core.interop.foreign import Foreign, Preprocessing
from core.interop.layout import Heads

GREY = 1 / 255
"""What values of bytes are multiplied with for values between 0 and 1."""
PROCESSOR = "preprocessor_config.json"


def preprocessing_in(processor: Mapping[str, Any], channels: int) -> Preprocessing | None:
    """Statistics for values between 0 and 1; None where the file says nothing, or something else than a scale.

    Raises:
        NotThis: if they are no numbers to divide by.
    """
    if not processor or processor.get("offset"):
        return None
    unit = 255 * (said.number(processor, "rescale_factor", GREY, PROCESSOR) if processor.get("do_rescale", True) else 1)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if processor.get("do_normalize", True):
        mean, std = (_each(said.numbers(processor, f"image_{kind}", PROCESSOR), channels) for kind in ("mean", "std"))
    if not mean or not std:
        return None
    if unit <= 0 or min(std) <= 0:
        raise NotThis(f"its {PROCESSOR} says a scale or a deviation that is not above 0")
    shifts, scales = (tuple(round(value / unit, 9) for value in values) for values in (mean, std))
    return Preprocessing("unit", shifts, scales, f"its {PROCESSOR}")


def _each(given: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for each channel, or one for all; empty where they do not fit."""
    every = given * channels if len(given) == 1 else given
    return every if len(every) == channels else ()


def check_agreement(config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse a model whose ``config.json`` says something else than its weights; what it does not say is not asked.

    Raises:
        NotThis: with the setting.
    """
    for key, found in facts.items():
        told = config.get(key)
        if told is not None and (sizes(told, key) != sizes(found) if key == "patch_size" else told != found):
            raise NotThis(
                f"its config.json says {key} {told} where its weights have {found}: they do not belong together"
            )


def check_activation(config: Mapping[str, Any]) -> None:
    """Refuse another nonlinearity than GELU.

    Raises:
        NotThis: with its name.
    """
    if config.get("hidden_act", "gelu") != "gelu":
        raise NotThis(f"its MLPs have the nonlinearity {config['hidden_act']}; those here have gelu alone")


def check_biases(config: Mapping[str, Any], key: str, *, found: bool) -> None:
    """Refuse weights without biases of attention whose ``config.json`` says, or leaves it said, that they have some.

    Raises:
        NotThis: if so.
    """
    if config and config.get(key, True) and not found:
        raise NotThis(
            f"its config.json says {key}, and no block has biases of queries: they were lost when it was saved"
        )


def sizes(value: Any, key: str = "image_size") -> tuple[int, int]:
    """Height and width out of one number or two, which a file has under ``key``.

    Raises:
        NotThis: if it is something else.
    """
    several = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(several) != 2 or not all(said.is_whole(extent, 1, said.MOST) for extent in several):
        raise said.wrong(key, value, "one size or two")
    return several


def one_or_two(extents: Sequence[int]) -> int | list[int]:
    """The inverse of `sizes`."""
    return extents[0] if len(set(extents)) == 1 else list(extents)


def classes_in(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Names of a head's outputs in their order; empty where nobody has named them."""
    names = {str(key): name for key, name in said.inner(config, "id2label").items()}
    ordered = tuple(str(names.get(str(number), "")) for number in range(outputs))
    generic = all(name == f"LABEL_{number}" for number, name in enumerate(ordered))
    return ordered if outputs and len(names) == outputs and all(ordered) and not generic else ()


def common(model: Foreign) -> dict[str, Any]:
    """What all of transformers' configurations of Vision Transformers say of ``model``."""
    own, geometry = model.model, model.geometry
    said = {
        "hidden_size": own.width,
        "num_hidden_layers": own.depth,
        "num_attention_heads": own.heads,
        "intermediate_size": int(own.width * own.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": own.norm_eps,
        "image_size": one_or_two(geometry.input_shape[-2:]),
        "patch_size": one_or_two(geometry.patch_shape[-2:]),
        "num_channels": geometry.channels,
    }
    if model.has_decoder:
        inner = own.decoder
        said |= {
            "decoder_hidden_size": inner.width,
            "decoder_num_hidden_layers": inner.depth,
            "decoder_num_attention_heads": inner.heads,
            "decoder_intermediate_size": int(inner.width * (inner.mlp_ratio or own.mlp_ratio)),
            "norm_pix_loss": model.norm_pix not in (None, NormPix.NONE),
        }
    if model.head:
        names = model.classes or tuple(f"LABEL_{number}" for number in range(model.outputs))
        said["id2label"] = {str(number): name for number, name in enumerate(names)}
        said["label2id"] = {name: number for number, name in enumerate(names)}
    return said


def facts(model: Foreign) -> dict[str, Any]:
    """What `common` says that weights tell, for `check_agreement`."""
    told = common(model)
    names = ("hidden_size", "num_hidden_layers", "intermediate_size")
    known = [*names, *(f"decoder_{name}" for name in names), "num_channels", "patch_size"]
    return {key: told[key] for key in known if key in told}


def heads_said(config: Mapping[str, Any]) -> Heads:
    """Heads of encoder and decoder."""
    heads: Heads = {}
    if own := said.whole(config, "num_attention_heads", 0):
        heads["heads"] = own
    if decoders := said.whole(config, "decoder_num_attention_heads", 0):
        heads["decoder_heads"] = decoders
    return heads


def eps_said(config: Mapping[str, Any]) -> float:
    """What layer norms add to the variance; the default is transformers' own."""
    return said.number(config, "layer_norm_eps", 1e-12)
