"""Files of weights from anywhere, read without running anything in them.

safetensors are read as they are; what `torch.save` wrote, with ``weights_only``. Any other file is refused in a clause
that says what it is and what to do.
"""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import NotThis
from core.interop.foreign import Checkpoint
from core.interop.places import AGAIN, json_beside, weights_at
from core.model.weights import METADATA
from core.records import RECORD_FILE

CONTAINERS = ("model", "state_dict", "model_state", "model_state_dict", "module", "net", "network")
"""Where training programs keep the weights among other things."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
"""What wrappers such as DataParallel and torch.compile put before every name."""
STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "it is a pointer of Git LFS and not the file itself; run `git lfs pull`"),
    (b"<", f"it is a web page, perhaps the one that offers the file; {AGAIN}"),
    (b"{", "it is JSON text, not weights; name the folder it lies in, or the file of weights beside it"),
    (b"GGUF", "it is a GGUF file, quantised weights of a language model"),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes them; export it to safetensors there"),
    (b"\x93NUMPY", "it is one NumPy array; save all of them by name as safetensors"),
    (b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
)
PLAN = 64 * 1024**2
"""Most bytes of the pickle that says how tensors lie in a file; those of large models have a few hundred thousand."""
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT = re.compile(r"(weight|bias|tokens?|embed\w*)$")
"""What names of weights end in, and those of buffers of whole numbers do not."""
DESCRIBES = {"model_type", "architectures", "architecture", "pretrained_cfg"}
"""What the `config.json` of a model has; others are of something else that lies beside it."""
CONVERT = (
    "nothing in it was run; where you trust who made it, write its tensors to safetensors yourself: "
    "`safetensors.torch.save_file({name: tensor, ...}, 'weights.safetensors')`, and use that file"
)


def open_checkpoint(path: Path, name: str) -> Checkpoint:
    """The weights at ``path``, a file or a folder, with what lies beside them; ``name`` is what people call it.

    Raises:
        NotThis: if there are none that can be read safely and whole.
    """
    files = weights_at(path)
    folder = files[0].parent
    state: dict[str, Tensor] = {}
    config = json_beside(folder / "config.json")
    if not config.keys() & DESCRIBES:  # That of a training program, perhaps, which says nothing of weights.
        config = {}
    for file in files:
        weights, about = _read(file)
        state |= weights
        config = config | about
    if (folder / RECORD_FILE).is_file() and METADATA in config:
        said, record = config[METADATA], json_beside(folder / RECORD_FILE)
        config = {METADATA: {"recipe": said.get("recipe", said), "record": record}}
    return Checkpoint(name, _sound(_bare(state)), config, json_beside(folder / "preprocessor_config.json"), path)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and what it says of itself."""
    size = file.stat().st_size
    if size == 0:
        raise NotThis(f"it is empty; {AGAIN}")
    with file.open("rb") as opened:
        start = opened.read(64)
    for sign, what in STRANGERS:
        if start.lstrip()[: len(sign)] == sign:
            raise NotThis(what)
    if start[8:9] == b"{":
        return _read_safetensors(file)
    reader = _reader_of(file, start)
    if reader is None:
        raise NotThis(f"it is neither a safetensors file nor one that torch.save wrote ({size} bytes)")
    return _tensors(_unpickled(file, reader)), {}


def _reader_of(file: Path, start: bytes) -> Callable[[Path], Any] | None:
    """What reads a file of PyTorch's, old or new; None where it is none."""
    if start[:1] == b"\x80":  # A bare pickle, as torch.save wrote them until 1.6.
        return lambda f: torch.load(f, map_location="cpu", weights_only=True)
    if start[:2] != b"PK":
        return None
    _look_into_archive(file)
    return lambda f: torch.load(f, map_location="cpu", weights_only=True, mmap=True)


def _look_into_archive(file: Path) -> None:
    """Refuse archives that are no weights, or that would grow when they are read."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # The last is of newer kinds of archives.
        raise NotThis(f"it is cut short or damaged ({file.stat().st_size} bytes); {AGAIN}") from None
    names = [member.filename for member in members]
    ends = {name.partition("/")[2] for name in names}
    if "constants.pkl" in ends or any(end.startswith("code/") for end in ends):
        raise NotThis(
            "it is TorchScript, a program and not weights alone; save the state_dict of the module it came from"
        )
    if any("/models/" in name and name.endswith(".json") for name in names) or "archive_format" in ends:
        raise NotThis(
            "it is a program of torch.export, not weights alone; save the state_dict of the module it came from"
        )
    if any(name.endswith(".npy") for name in names):
        raise NotThis("it is an archive of NumPy arrays; save them by name as safetensors")
    if "data.pkl" not in ends:
        raise NotThis("it is a zip archive without weights in it; unpack it and name the file")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise NotThis(
            "it was zipped again, and torch.save never compresses; unpack it and save it anew with torch.save"
        )
    if any(member.file_size > PLAN for member in members if member.filename.endswith("data.pkl")):
        raise NotThis(f"what says how its tensors lie has more than {PLAN >> 20} MiB, which no file of weights needs")


def _unpickled(file: Path, reader: Callable[[Path], Any]) -> Any:
    """What a file of PyTorch's holds, as far as that is data."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # Options of training programs; data alone.
            return reader(file)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {asked[1]}" if asked else "holds more than tensors and plain values"
        raise NotThis(f"it is a pickle that {what}; {CONVERT}") from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        OSError,
    ):
        raise NotThis(f"it is cut short or damaged ({file.stat().st_size} bytes); {AGAIN}") from None


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, "pt") as opened:
            about = (opened.metadata() or {}).get(METADATA)
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).partition(":")[2].strip() or "damaged"
        raise NotThis(f"it is a safetensors file that is cut short or damaged ({reason}); {AGAIN}") from None
    return state, {METADATA: _own_words(about)} if about else {}


def _own_words(text: str) -> dict[str, Any]:
    """What a file of ours says of itself: a recipe, or recipe and record."""
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and isinstance(found.get("recipe", {}), dict):
            return found
    raise NotThis(f"what it says of itself is damaged; {AGAIN}")


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors by name, out of whatever a training program put around them."""
    for _ in range(4):
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise NotThis(f"it holds a {kind}, not tensors by name; save the model's state_dict")
        inner = next((found[key] for key in CONTAINERS if _holds_tensors(found.get(key))), None)
        if inner is None:
            break
        found = inner
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not state:
        some = ", ".join(map(str, list(found)[:4])) or "nothing"
        raise NotThis(f"it holds no tensors by name, but {some}")
    return state


def _holds_tensors(found: Any) -> bool:
    """Whether tensors are in it, or in what is in it."""
    inside = list(found.values()) if isinstance(found, Mapping) else []
    return any(isinstance(value, Tensor) or _holds_tensors(value) for value in inside)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before all of them."""
    while wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _sound(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Refuse tensors that no model of ours can hold, or that are not finite."""
    for name, value in state.items():
        if value.is_quantized or value.layout is not torch.strided or value.is_complex() or value.is_meta:
            raise NotThis(f"its {name} is quantised, sparse, complex or without values; plain weights are needed")
        if value.dtype not in PRECISIONS and (value.is_floating_point() or WEIGHT.search(name)):
            kind = str(value.dtype).removeprefix("torch.")
            raise NotThis(f"its {name} holds numbers of the kind {kind}; weights of 16, 32 or 64 bits are needed")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise NotThis(f"its {name} repeats the values it holds; save a copy of it with `tensor.clone()`")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NotThis(f"its {name} holds values that are not finite: the training that wrote it had failed")
    return state
