"""Finished folders as people name them."""

from pathlib import Path

from core.errors import UserError
from core.records import RECORD_FILE
from core.request import StageName
from core.workspace import Home


def finished_folder(home: Home, given: str, *stages: StageName) -> Path:
    """The finished folder of one of ``stages`` that a path, its record or its name mean.

    Raises:
        UserError: if there is none.
    """
    named = [home.stage(stage, given).final for stage in stages]
    for candidate in (Path(given), *named, home.resolve(given)):
        folder = candidate.parent if candidate.name == RECORD_FILE else candidate
        if (folder / RECORD_FILE).is_file():
            return folder.absolute()
    raise UserError(f"{given} is no finished folder of {' or '.join(stages)}; `maeflow runs` lists those there are")
