"""Models of transformers as files: what `save_pretrained` writes, under the names of each release, and back."""

import re

import torch
from safetensors.torch import load_file, save_file

from core.interop.files import open_checkpoint

OLD = (
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def as_4x(state):
    """Names in memory of release 5 as those of 4.x."""
    out = {}
    for name, value in state.items():
        for new, old in OLD:
            name = name.replace(new, old)  # noqa: PLW2901
        out[re.sub(r"^(vit\.|beit\.|)layers\.", r"\1encoder.layer.", name)] = value
    return out


def saved(model, folder, names="saved"):
    """The folder that `save_pretrained` writes, with the names it writes, those in memory or those of 4.x."""
    model.save_pretrained(folder)
    if names != "saved":
        state = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(as_4x(state) if names == "4.x" else state, folder / "model.safetensors")
    return open_checkpoint(folder, folder.name)


def loaded(cls, folder, layout, foreign, **kwargs):
    """A model of ``cls`` out of a folder that ``layout`` writes; every weight finds its place."""
    import json

    folder.mkdir()
    save_file(layout.write(foreign), folder / "model.safetensors", {"format": "pt"})
    config = layout.config(foreign)
    (folder / "config.json").write_text(json.dumps(config))
    assert config["architectures"] == [cls.__name__]
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float64, **kwargs)
    assert not any(info.values()), info
    assert set(load_file(folder / "model.safetensors")) == set(layout.write(foreign))
    return model.eval()
