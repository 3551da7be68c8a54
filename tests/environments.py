"""Environments with packages of their own, as a user's: maeflow and plugins from wheels, the repository elsewhere."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
OFFLINE = {
    # Building and installing need no network: hatchling is there, and so is all that the packages depend on.
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip's own spelling of "yes, without isolation".
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}


class Environment:
    """A virtual environment that borrows the libraries of this one, but neither maeflow nor any plugin."""

    def __init__(self, folder):
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        packages = run(self.python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
        # Paths named by a .pth file come last, and .pth files there (an editable maeflow) are not read.
        (Path(packages) / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.variables = clean() | {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def install(self, *packages):
        """Install folders or wheels."""
        self.run("python", "-m", "pip", "install", "-q", *packages)

    def run(self, *command, cwd=None, check=True, **variables):
        """Run a command inside."""
        return run(*command, cwd=cwd or self.folder, env=self.variables | variables, check=check)

    def shell(self, script, cwd, check=True):
        """Run lines as in a terminal, ending with the first that fails."""
        return self.run("bash", "-euo", "pipefail", "-c", script, cwd=cwd, check=check)


def clean():
    """The environment variables without what a test process has set for itself."""
    own = ("MAEFLOW", "PREFECT", "MLFLOW", "PYTHONPATH", "PYTEST")
    return {k: v for k, v in os.environ.items() if not k.startswith(own)} | OFFLINE


def wheel(project, folder):
    """Build the wheel of ``project`` into ``folder``."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", folder, project, env=clean())
    (built,) = folder.glob("*.whl")
    return built


def run(*command, check=True, **options):
    """Run a command and show what it printed if it failed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
