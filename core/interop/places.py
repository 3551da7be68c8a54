"""Where checkpoints are: a file, a folder, or a name on the Hugging Face hub; and which bytes they are made of.

It imports no torch, so that a flow can look before a stage's process starts.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import NotThis, UserError
from core.request import Place

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What hubs call the file, the safer one first; each may be in parts, which an index beside it lists."""
OURS = ("autoencoder.safetensors", "encoder.safetensors")
"""What a finished folder of pretraining holds; the first has the decoder as well."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pyth", ".ckpt")
BESIDE = ("config.json", "preprocessor_config.json", "record.json")
"""What says how the weights beside it are to be used."""
AGAIN = "get it again"
HUB = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
"""``owner/name``, and perhaps ``@revision``: a branch, a tag or a commit."""
TIMM = re.compile(r"^[a-z0-9_]+\.[a-z0-9_]+(@[\w./-]+)?$")
"""``architecture.tag``, as timm names models; its owner on the hub is ``timm``."""


def located(reference: str) -> Place:
    """The checkpoint that ``reference`` names, fetched from the hub where it is not a path.

    Raises:
        UserError: if there is none, or it cannot be fetched.
    """
    path = Path(reference).expanduser()
    if path.exists():
        path = path.resolve()
        return _place(path.name, path.parent if path.name == "record.json" else path)
    name = f"timm/{reference}" if TIMM.match(reference) and path.suffix not in SUFFIXES else reference
    meant_here = path.suffix in SUFFIXES or (path.parent != Path() and path.parent.is_dir())
    if meant_here or not HUB.match(name):
        raise UserError(
            f"checkpoint {reference}: there is no such file or folder, and it is no name on the Hugging Face hub "
            "(owner/name, such as facebook/vit-mae-base) and none of timm's (such as vit_base_patch16_224.mae)"
        )
    return _place(name, fetched(name))


def _place(name: str, path: Path) -> Place:
    """The place with the digits of its bytes."""
    place = Place(name=name, path=str(path))
    return place.model_copy(update={"fingerprint": fingerprint(place)})


def fetched(name: str) -> Path:
    """The folder of a hub's files as they were fetched before, or fetched now as far as they are needed.

    What is here already is not looked for again, so that a name means the same bytes until its cache is cleared, with
    or without a network; ``@revision`` says which bytes once and for all.

    Raises:
        UserError: if the hub has no such thing, or cannot be reached and it was not fetched before.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import errors as hub

    repository, _, revision = name.partition("@")
    wanted: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    found = _fetched_before(wanted)
    if found and _whole(found):
        return found
    try:
        files = HfApi().list_repo_files(**wanted)
        return Path(snapshot_download(**wanted, allow_patterns=_needed(files)))
    except hub.GatedRepoError:
        raise UserError(
            f"checkpoint {name} asks for its terms to be agreed to: do so on its page, then `hf auth login`"
        ) from None
    except hub.RepositoryNotFoundError:
        raise UserError(
            f"checkpoint {name}: the hub has nothing of that name, or not for you (`hf auth login`)"
        ) from None
    except hub.RevisionNotFoundError:
        raise UserError(f"checkpoint {repository} has no revision {revision!r}") from None
    except NotThis as reason:
        raise UserError(f"checkpoint {name}: {reason}") from None
    except Exception as error:  # noqa: BLE001 - a network fails in many ways
        if found:
            return found
        raise UserError(
            f"checkpoint {name}: there is no such file or folder; as a name on the hub it was not fetched before, and "
            f"the hub cannot be reached ({type(error).__name__}); fetch it where there is a network (`hf download "
            f"{repository}`) and name the folder"
        ) from None


def _fetched_before(wanted: Mapping[str, Any]) -> Path | None:
    """What an earlier call has left whole in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
        weights_at(folder)
    except Exception:  # noqa: BLE001 - whatever is missing, the hub is asked
        return None
    return folder


def _whole(folder: Path) -> bool:
    """Whether all is there that says how to use the weights; what was fetched in part looks like another model."""
    config = json_beside(folder / "config.json")
    return bool(config) and ("model_type" not in config or (folder / "preprocessor_config.json").is_file())


def _needed(files: Sequence[str]) -> list[str]:
    """Of a hub's files the weights, in the safer format if there is one, and what says how to use them."""
    for name in WEIGHTS:
        stem, suffix = name.split(".")
        if name in files or f"{name}.index.json" in files:
            return [name, f"{name}.index.json", f"{stem}-*-of-*.{suffix}", *BESIDE]
    found = [file for file in files if "/" not in file and Path(file).suffix in SUFFIXES]
    if len(found) != 1:
        raise NotThis(f"it has {len(found) or 'no'} files of weights ({', '.join(found) or 'none of a known kind'})")
    return [*found, *BESIDE]


def weights_at(path: Path) -> list[Path]:
    """The file of weights that ``path`` is or holds, or its parts.

    Raises:
        NotThis: if there is none, or more than one.
    """
    if not path.exists():
        raise NotThis("there is no such file or folder")
    if not path.is_dir():
        return [path]
    for name in (*OURS, *WEIGHTS):
        if (path / name).is_file():
            return [path / name]
        index = json_beside(path / f"{name}.index.json")
        if index:
            return _parts(path, index)
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise NotThis(f"it is a folder without a file of weights ({', '.join(SUFFIXES)})")
    if len(found) > 1:
        raise NotThis(f"it is a folder with several files of weights ({', '.join(f.name for f in found)}); name one")
    return found


def _parts(folder: Path, index: Mapping[str, Any]) -> list[Path]:
    parts = index.get("weight_map")
    names = list(parts.values()) if isinstance(parts, Mapping) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise NotThis("its index of parts is damaged")
    names = sorted(set(names))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise NotThis(f"its part {missing[0]} is missing ({len(missing)} of {len(names)}); {AGAIN}")
    return [folder / name for name in names]


def json_beside(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        NotThis: if the file is damaged.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise NotThis(f"the {file.name} beside it is damaged; {AGAIN}") from None
    return found if isinstance(found, dict) else {}


def fingerprint(place: Place) -> str:
    """16 digits that stand for all bytes that a checkpoint is read from.

    Raises:
        UserError: if there are no weights.
    """
    try:
        weights = weights_at(Path(place.path))
    except NotThis as reason:
        raise UserError(f"checkpoint {place.name}: {reason}") from None
    beside = [weights[0].parent / name for name in BESIDE]
    whole = hashlib.sha256()
    for file in [*weights, *(file for file in beside if file.is_file())]:
        with file.open("rb") as opened:
            part = hashlib.file_digest(opened, "sha256").hexdigest()
        whole.update(f"{file.name if file in beside else ''} {part}\n".encode())
    return whole.hexdigest()[:16]
