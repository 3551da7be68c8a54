"""Checkpoints of others for commands that need no flow: taken over once, into a finished folder of the home."""

from collections.abc import Sequence
from pathlib import Path

from core import digests
from core.errors import UserError
from core.interop.account import ACCOUNT_FILE, Account
from core.interop.places import located
from core.recipes import load
from core.records import PreparedData, read_record
from core.request import StageRequest
from core.workspace import Home
from flows import console
from flows.finished import finished_folder
from infra import devices
from infra.launchers import SubprocessLauncher, Watch


def adopted(checkpoint: str, recipe: str | None, overrides: Sequence[str], prepared: str | None, home: Home) -> Path:
    """The finished folder of the encoder in ``checkpoint``, for the data that ``recipe`` describes; tells its account.

    ``prepared`` names the prepared data whose statistics serve where the checkpoint's own do not apply.

    Raises:
        UserError: if no recipe is given, or the checkpoint cannot be used.
    """
    if recipe is None:
        raise UserError("--checkpoint needs --recipe, which says what kind of data it is for, such as image/vit_base")
    described = load(recipe, overrides)
    data = read_record(finished_folder(home, prepared, "prepare"), PreparedData) if prepared else None
    place = located(checkpoint)
    request = StageRequest(
        stage="pretrain",
        home=str(home.root),
        digest=digests.adopt_digest(described, place.fingerprint, data),
        recipe=described.model_dump(mode="json"),
        checkpoint=place,
        labelled=data.folder if data else None,
    )
    folder = home.stage("pretrain", request.digest)
    if not folder.done:
        SubprocessLauncher(devices.hidden()).run(request, Watch())
    screen = console.for_terminal()
    for line in Account.model_validate_json((folder.final / ACCOUNT_FILE).read_bytes()).lines:
        screen.line(f"  {line}")
    return folder.final


def model_or_checkpoint(
    model: str | None,
    checkpoint: str | None,
    recipe: str | None,
    overrides: Sequence[str],
    prepared: str | None,
    home: Path,
) -> str:
    """What stands for the model: the one that is named, or the folder of the checkpoint.

    Raises:
        UserError: unless one of the two is given.
    """
    if (model is None) == (checkpoint is None):
        raise UserError("give either a finished model or --checkpoint")
    if checkpoint is None:
        return str(model)
    return str(adopted(checkpoint, recipe, overrides, prepared, Home(home)))
