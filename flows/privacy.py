"""What flows keep to themselves where sources are private: Prefect stores parameters, and the texts of exceptions."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.data.private import TOKEN, remember_source, resolve_source
from core.data.sources import check_kind, unnamed
from core.errors import StageError, UserError, discreet
from core.records import RECORD_FILE
from core.registry import plugin_info
from core.workspace import Home
from infra import settings


def is_private(modality: str) -> bool:
    """Whether names of a modality's sources may tell who somebody is."""
    return plugin_info(modality).private


@contextmanager
def discretion(modality: str) -> Iterator[None]:
    """Where sources are private, an unforeseen error leaves as a `StageError` with its type and place alone.

    What is written within, by this process and its children, is closed to others: even pixels may tell who it is.

    Raises:
        StageError: in place of anything but a `UserError` or a `StageError`, whose texts are ours.
    """
    before = os.umask(0o077)
    os.umask(before | 0o007 if is_private(modality) else before)
    try:
        yield
    except (UserError, StageError):
        raise
    except Exception as error:
        if not is_private(modality):
            raise
        if settings.debug():
            traceback.print_exc(file=sys.stderr)
        raise StageError(f"{discreet(error)}; run it again with --debug to see more, which may show names") from None
    finally:
        os.umask(before)


def source_name(text: str, modality: str, home: Path) -> str:
    """What a source is called in flows: its absolute path, or the public name of a private one; checked to be there.

    Raises:
        UserError: if it is missing, or of a kind that the modality does not read.
    """
    info, path = plugin_info(modality), resolve_source(Home(home), text)
    with unnamed(info.private):
        check_kind(path, modality, info.sources)
    return remember_source(Home(home), path) if info.private else str(Path(path).absolute())


def refuse_paths(names: list[str], modality: str) -> None:
    """Refuse a private source under its path: it stands in the parameters of a flow already, and there are copies.

    Raises:
        UserError: that says how to start the flow.
    """
    if is_private(modality) and not all(name.startswith(TOKEN) for name in names):
        raise UserError(
            f"sources of {modality!r} are private, and Prefect stores the parameters of flows; start the flow by "
            "`maeflow run`, or give it what `core.data.private.remember_source` calls the source"
        )


def refuse_strangers(folders: dict[str, str | None], modality: str) -> None:
    """Refuse folders that hold no stage's record before they become parameters: one may be a source, by mistake.

    Raises:
        UserError: that says which option is meant.
    """
    for name, folder in folders.items():
        if folder is None or not is_private(modality):
            continue
        path = Path(folder)
        if not (path / RECORD_FILE).is_file() and not (path.name == RECORD_FILE and path.is_file()):
            option = "--labelled" if name == "labelled" else "--from"
            raise UserError(f"{option} names no finished folder of a stage; `maeflow runs` lists them")
