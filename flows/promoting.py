"""A registered model becomes the champion: its test beside that of the one before, then the alias moves."""

from collections.abc import Sequence
from pathlib import Path

from infra.mlflow_runs import connect
from infra.registry import CHAMPION, DIGEST, Measured, Promotion, promote, promotion

SHOWN = 8
"""Metrics that are shown."""


def champion(home: Path, name: str, which: str) -> None:
    """Show what is known of the two versions, and have the alias `champion` lead to the new one.

    Raises:
        UserError: if there is no such model or version.
        StageError: if MLflow does not answer.
    """
    client = connect(home)
    wanted = promotion(client, home, name, which)
    for line in comparison(wanted):
        print(line)
    promote(client, wanted)
    print(f"models:/{name}@{CHAMPION} is version {wanted.new.version} from now on")


def comparison(wanted: Promotion) -> Sequence[str]:
    """Lines of a table: a column for each version, a row for each metric of its test."""
    versions = [v for v in (wanted.old, wanted.new) if v is not None]
    tests = [wanted.measured[str(v.version)] for v in versions]
    names = [key for test in tests for key in test.metrics if not key.endswith(("_low", "_high"))]
    titles = ["champion", "new"] if wanted.old is not None else ["new (there is no champion yet)"]
    lines = [
        _line("", titles),
        _line("version", [str(v.version) for v in versions]),
        _line("stage", [v.tags.get(DIGEST, "?") for v in versions]),
        *(_line(name, [_value(test, name) for test in tests]) for name in list(dict.fromkeys(names))[:SHOWN]),
    ]
    if not all(test.metrics for test in tests):
        lines.append("note: where a column is empty, nothing is known of a test; `maeflow evaluate` makes one")
    elif len({test.on for test in tests}) > 1:
        lines.append("note: the two were tested on different data")
    return lines


def _line(name: str, values: Sequence[str]) -> str:
    return f"{name:32s} " + " ".join(f"{value:28s}" for value in values).rstrip()


def _value(test: Measured, name: str) -> str:
    """A metric with its interval, if there is one."""
    if name not in test.metrics:
        return ""
    ends = [test.metrics.get(f"{name}_{end}") for end in ("low", "high")]
    return f"{test.metrics[name]:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if None not in ends else "")
