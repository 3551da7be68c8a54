"""The dataset card: what is in prepared data, what is not, and why."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.workspace import write_text

CARD_FILE = "card.json"
SHOWN = 100
"""Longest list of duplicates in a card; the count is always whole."""


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card for programs and for people. It holds nothing that differs between two runs."""
    write_text(folder / CARD_FILE, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "card.md", _markdown(card))


def read_card(folder: Path) -> dict[str, Any]:
    """The card of prepared data."""
    card: dict[str, Any] = json.loads((folder / CARD_FILE).read_text())
    return card


def class_counts(classes: Sequence[str], targets: Sequence[Any], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Labelled items of each class in each split; several classes of one item all count."""
    counts: Counter[tuple[str, str]] = Counter()
    for target, split in zip(targets, splits, strict=True):
        if target is None:
            continue
        present = [target] if isinstance(target, int) else [c for c, there in enumerate(target) if there]
        counts.update((classes[c], split) for c in present)
    return {name: {split: counts[name, split] for split in ("train", "val", "test")} for name in classes}


def _markdown(card: dict[str, Any]) -> str:
    lines = ["# Dataset card", "", "| split | items | labelled |", "| --- | --- | --- |"]
    lines += [f"| {split} | {n} | {card['labelled'][split]} |" for split, n in card["counts"].items()]
    lines += ["", f"{card['duplicates']['count']} items equal an earlier one and stand on its side of the splits."]
    if card["classes"]:
        lines += ["", "| class | train | val | test |", "| --- | --- | --- | --- |"]
        lines += [f"| {c} | {n['train']} | {n['val']} | {n['test']} |" for c, n in card["classes"].items()]
    lines += ["", " ".join(f"{count} {what}." for what, count in card.get("noticed", {}).items())]
    lines += ["", f"{len(card['unreadable'])} files could not be read."]
    if card["unreadable"]:
        lines += ["", "| file | reason |", "| --- | --- |"]
        lines += [f"| {_cell(bad['file'])} | {_cell(bad['reason'])} |" for bad in card["unreadable"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
