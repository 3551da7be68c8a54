"""``maeflow check-modality``: the contract kit's findings as a table, each as soon as it is there."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from core.errors import UserError
from core.registry import claims, entries
from core.testing.rules import Finding, Kit

SIGNS = {"passed": "ok  ", "failed": "FAIL", "not run": "-   "}


def check(name: str, data: str | None, recipe: str | None) -> bool:
    """Print a line per rule and what to do about broken ones; whether none is broken.

    Raises:
        UserError: if there is no such plugin.
    """
    if name not in {claim.name for claim in claims()}:
        raise UserError(f"modality {name!r} is not installed (installed: {', '.join(entries()) or 'none'})")
    if data is not None and not Path(data).exists():
        raise UserError(f"--data {data} does not exist")
    claim = entries()[name]
    print(f"{name}: {claim.value} of {claim.package} {claim.version}\n")
    found = []
    for finding in _findings(name, data, recipe):
        print(_line(finding), flush=True)
        found.append(finding)
    _summary(name, found)
    return all(finding.status != "failed" for finding in found)


def _line(finding: Finding) -> str:
    line = f"{SIGNS[finding.status]} {finding.rule:22s} {finding.method:12s} "
    if finding.status == "failed":
        return f"{line}{finding.says}\n       seen: {finding.text}\n       do:   {finding.advice}"
    return line + (f"({finding.text})" if finding.status == "not run" else finding.says)


def _summary(name: str, found: list[Finding]) -> None:
    count = {status: sum(finding.status == status for finding in found) for status in SIGNS}
    broken, waiting = count["failed"], count["not run"]
    print(
        f"\n{count['passed']} rules hold, {broken} {'is' if broken == 1 else 'are'} broken, "
        f"{waiting} {'was' if waiting == 1 else 'were'} not run"
    )
    if not count["failed"]:
        print(f"next:  maeflow demo {name}")


def _findings(name: str, data: str | None, recipe: str | None) -> Iterator[Finding]:
    """The rules of core from a process of their own, since a plugin may end it; then the rule that needs Prefect."""
    options = [*(["--data", data] if data else []), *(["--recipe", recipe] if recipe else [])]
    command = [sys.executable, "-P", "-m", "core.testing", name, *options]
    passed = set()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        for line in process.stdout or ():
            if line.startswith('{"rule":'):
                finding = Finding(**json.loads(line))
                passed |= {finding.rule} if finding.status == "passed" else set()
                yield finding
        if process.wait() not in (0, 1):
            errors.seek(0)
            yield _ended(errors.read().strip().splitlines(), process.returncode)
    if "recipe-schema" in passed:
        from flows.testing import BOOK

        yield from Kit(SimpleNamespace(name=name), BOOK).findings()


def _ended(errors: list[str], code: int) -> Finding:
    seen = errors[-1] if errors else f"exit code {code}"
    advice = "The rule after the last one above ended it; look for os._exit, sys.exit and crashes in libraries."
    return Finding("survives", "plugin.py", "The plugin leaves its process alive.", "failed", seen, advice)
