"""What the report says of masks: a row for each class, and what its distances leave out."""

from collections.abc import Mapping
from typing import Any

HEAD = ("class", "Dice", "95 % interval", "95th percentile of distances", "95 % interval", "largest distance", "cases")
"""Columns of the table."""


def mask_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each class, the background last."""
    named = [*results["classes"][1:], results["classes"][0]]
    return [_row(results, name, background=name == results["classes"][0]) for name in named]


def _row(results: Mapping[str, Any], name: str, *, background: bool) -> list[str]:
    values = results["test"]
    there = [case for case in results["cases"] if case["dice"][name] is not None]
    return [
        f"{name} (background)" if background else name,
        _text(values.get(f"dice_{name}"), 3),
        _interval(results, f"dice_{name}", 3),
        _text(values.get(f"hd95_{name}"), 1),
        _interval(results, f"hd95_{name}", 1),
        _text(values.get(f"hausdorff_{name}"), 1),
        f"{len(there):,}",
    ]


def mask_note(results: Mapping[str, Any]) -> str:
    """How the figures come about, and in how many cases no distance is known."""
    foreground = results["classes"][1:]
    missed = sum(
        case["dice"][name] is not None and case["hd95"][name] is None
        for case in results["cases"]
        for name in foreground
    )
    pairs = sum(case["dice"][name] is not None for case in results["cases"] for name in foreground)
    text = (
        f"Means over {len(results['cases']):,} test cases, each whole; the Dice above is that of all classes but the "
        "background. A class counts in the cases that have it or are said to. Distances are between surfaces, in mm "
        "where the data tell their spacing, else in pixels of the source."
    )
    if missed:
        text += (
            f" In {missed:,} of {pairs:,} pairs of a case and a class, only one of the masks has the class: there "
            "Dice is 0 and no distance is known, so the distances look better than the masks are."
        )
    return text


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(results: Mapping[str, Any], name: str, digits: int) -> str:
    if name not in results["intervals"]:
        return ""
    low, high = results["intervals"][name]
    return f"{low:.{digits}f} to {high:.{digits}f}"
