"""Folders as the libraries of hubs have them: timm's and transformers', loaded again and compared before they leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from core.config import TaskKind
from core.errors import NotThis, UserError
from core.interop.formats import WEIGHTS
from core.interop.hub_checks import checked_by_timm, checked_by_transformers
from core.interop.hub_pictures import about_pictures, processors
from core.interop.layout import Target
from core.interop.layouts import targets
from core.interop.model_card import Written
from core.interop.subject import Subject, as_json
from core.workspace import write_bytes, write_text

AXES = {2: "hf-vit", 3: "hf-videomae"}
"""Layouts of transformers by the number of axes."""
PROBLEMS = {
    TaskKind.SINGLE: "single_label_classification",
    TaskKind.MULTI: "multi_label_classification",
    TaskKind.REGRESSION: "regression",
}
NO_POOLER = (
    "ViTModel has a pooler, which this model lacks; the one in the file is the identity, so `pooler_output` is the "
    "class token, normalised. The features that `evaluate` looks at are the mean of the patches, as above."
)
AS_BEIT = (
    "transformers' ViT reads the class token and this model the mean of its patches, so it is written as the one plain "
    "Vision Transformer of transformers that does: BEiT with absolute positions."
)
TIMM_CODE = """
import timm, torch
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
{outputs} = model(torch.zeros{shape})  # Normalised inputs; timm.data.resolve_model_data_config(model) says how.
"""
HF_CODE = """
import torch
from transformers import {loader}
model = {loader}.from_pretrained("FOLDER")
{outputs} = model(pixel_values=torch.zeros{shape}){rest}
"""


def timm(subject: Subject, folder: Path) -> Written:
    """A folder that ``timm.create_model("local-dir:...")`` loads strictly.

    Raises:
        UserError: if timm has no place for such a model.
        StageError: if what timm loads computes something else.
    """
    layout = targets()["timm"]
    if subject.with_decoder:
        raise UserError("--to timm: timm has no decoders; leave --with-decoder away")
    with _asked(layout):
        state, config = layout.write(subject.model), layout.config(subject.model)
    if subject.tuned is None:  # Its output is then what `evaluate` probes: the mean of the normalised patches.
        config["global_pool"] = config["model_args"]["global_pool"] = "avg"
    crop = subject.crop
    config["pretrained_cfg"] |= {"interpolation": "bicubic"} | (
        {"crop_pct": crop.share, "crop_mode": "squash" if crop.squeezed else "center"} if crop else {}
    )
    _keep(folder, state, config)
    remarks, norms = layout.remarks(subject.model), layout.limits(subject.model).norms(subject.model)
    checked = checked_by_timm(subject, folder, loose=bool(norms))
    outputs = "features" if subject.tuned is None else "logits"
    code = TIMM_CODE.format(outputs=outputs, shape=_shape(subject))
    return Written("timm", code, (*remarks, *about_pictures(subject, made=True)), (checked,))


def hf(layout: Target | None, subject: Subject, folder: Path) -> Written:
    """A folder that transformers' Auto classes load without a missing or a left-over weight.

    Raises:
        UserError: if transformers has no place for such a model.
        StageError: if transformers is there and what it loads computes something else.
    """
    axes = len(subject.spec.grid)
    if layout is None and axes not in AXES:
        raise UserError(f"--to hf: transformers has models of two and three axes; this one has {axes}")
    layout = layout or targets()[AXES[axes]]
    with _asked(layout):
        state, config = layout.write(subject.model), layout.config(subject.model)
    notes = list(layout.remarks(subject.model))
    if config["architectures"] == ["ViTModel"]:
        state, config = _with_pooler(state, config)
        notes.append(NO_POOLER)
    if config["architectures"] == ["BeitForImageClassification"]:
        notes.append(AS_BEIT)
    if subject.tuned is not None:
        config["problem_type"] = PROBLEMS[subject.tuned.target.task.kind]
    _keep(folder, state, config | {"dtype": "float32"})
    steps = processors(subject)
    for name, values in steps.items():
        write_text(folder / name, as_json(values))
    notes += about_pictures(subject, made=bool(steps))
    norms = layout.limits(subject.model).norms(subject.model)
    checked = checked_by_transformers(subject, folder, _loader(subject), loose=bool(norms))
    return Written("transformers", _hf_code(subject), tuple(notes), (checked,))


def _with_pooler(state: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """With a pooler that hands the class token on: ViTModel has one, and would draw weights at random for it."""
    width = config["hidden_size"]
    pooler = {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    return state | pooler, config | {"pooler_act": "linear", "pooler_output_size": width}


def _keep(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    data = to_safetensors({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    write_bytes(folder / WEIGHTS, data)
    write_text(folder / "config.json", as_json(config))


def _loader(subject: Subject) -> str:
    if subject.with_decoder:
        return "AutoModelForPreTraining"
    video = len(subject.spec.grid) == 3
    if subject.tuned is None:
        return "AutoModel"
    return "AutoModelForVideoClassification" if video else "AutoModelForImageClassification"


def _hf_code(subject: Subject) -> str:
    prefix = int(subject.record.model.cls_token)
    outputs, rest = "logits", ".logits"
    if subject.with_decoder:
        return (
            f'from transformers import AutoModelForPreTraining\nmodel = {_loader(subject)}.from_pretrained("FOLDER")\n'
        )
    if subject.tuned is None:
        outputs, rest = (
            "features",
            f".last_hidden_state[:, {prefix}:].mean(1)" if prefix else ".last_hidden_state.mean(1)",
        )
    code = HF_CODE.format(loader=_loader(subject), outputs=outputs, rest=rest, shape=_shape(subject))
    name = "AutoImageProcessor" if len(subject.spec.grid) == 2 else "AutoVideoProcessor"
    return code + f'# {name}.from_pretrained("FOLDER") makes them.\n' if processors(subject) else code


def _shape(subject: Subject) -> tuple[int, ...]:
    channels, size = subject.spec.channels, subject.spec.input_shape
    return (1, size[0], channels, *size[1:]) if len(size) == 3 else (1, channels, *size)


@contextmanager
def _asked(layout: Target) -> Iterator[None]:
    """What a layout says of a model it has no place for is the request's fault."""
    try:
        yield
    except NotThis as reason:
        raise UserError(f"--to {layout.target}: {reason}") from None
