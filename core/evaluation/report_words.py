"""What a report says in words: its verdict, its key numbers, the names of metrics, and its limits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "map": "mean average precision",
    "auroc": "AUROC",
    "f1": "F1",
    "classes_scored": "classes scored",
    "r2": "R squared",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "dice": "Dice",
    "knn": "k-NN",
    "linear": "linear probe",
}
"""Metrics and probes as people call them."""
COLUMNS = ("original", "masked", "reconstructed")
"""What is shown, and played, of every sample."""
HEADLINES = {"single_label": "top1", "multi_label": "map", "regression": "r2", "segmentation": "dice"}
"""The metric that probes are scored with, by kind of task."""
FEW = 20
"""Test items of a class below which its figures are called rough."""


def percent(value: float) -> str:
    """0.861 as 86.1 %."""
    return f"{100 * value:.1f} %"


def name_of(metric: str) -> str:
    """A metric as people call it."""
    kind, _, of = metric.partition("_")
    if of and kind == "dice":
        return f"Dice of {of}"
    return NAMES.get(metric, metric.replace("_", " "))


def value_of(metric: str, value: float) -> str:
    """A value in the unit of its metric: accuracies in percent, counts whole."""
    if metric.startswith("top"):
        return percent(value)
    return f"{value:.0f}" if metric == "classes_scored" else f"{value:.3f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """``number`` with its noun: 1 file, 2 files."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def headline_of(recipe: Mapping[str, Any]) -> str:
    """The metric that ranks models of this recipe's task."""
    return HEADLINES.get((recipe.get("task") or {}).get("kind", "single_label"), "top1")


def near_five(labels: Sequence[int]) -> int:
    """The entry nearest to five labels per class, the one the verdict is about."""
    return min(range(len(labels)), key=lambda i: abs(labels[i] - 5))


def gain(paired: Mapping[str, float]) -> str:
    """A paired difference in points with its interval, which a single seed has not."""
    if not math.isfinite(paired["low"]):
        return f"{points(paired['mean'])} points, no interval from one seed"
    return f"{points(paired['mean'])} points, 95 % interval {points(paired['low'])} to {points(paired['high'])}"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed; what rounds to nothing has no sign."""
    rounded = round(100 * share, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def verdict(results: Mapping[str, Any] | None, encoder_metrics: Mapping[str, float]) -> str:
    """The result that matters most, in one to three sentences, for better or for worse."""
    if not results:
        loss = encoder_metrics.get("pretrain/loss")
        told = f" Its reconstruction loss ended at {loss:.3f}." if loss is not None else ""
        return f"An encoder was pretrained without labels; nothing was labelled, so nothing was tuned or scored.{told}"
    if table := results.get("label_efficiency"):
        return _compared(table)
    name, value = next(iter(results["test"].items()))
    low, high = results["intervals"].get(name, (None, None))
    sure = "" if low is None else f" (95 % interval {value_of(name, low)} to {value_of(name, high)})"
    return f"On test data that no stage trained on, the tuned model's {name_of(name)} is {value_of(name, value)}{sure}."


def _compared(table: Mapping[str, Any]) -> str:
    number = near_five(table["labels_per_class"])
    paired = table["paired"][number]
    ours, theirs = mean(table["pretrained"][number]), mean(table["random"][number])
    baseline = mean(table["baseline"]["values"][number])
    labels = counted(table["labels_per_class"][number], "label")
    seeds = f" ({len(table['seeds'])} seeds)" if len(table["seeds"]) > 1 else ""
    first = (
        f"With {labels} per class the pretrained encoder reaches {percent(ours)}, random initialisation "
        f"{percent(theirs)}: {gain(paired)}{seeds}."
    )
    sentences = [first]
    if math.isfinite(paired["low"]) and paired["low"] <= 0 <= paired["high"]:
        sentences.append("The interval spans zero: no clear difference.")
    name = table["baseline"]["name"]
    if baseline == max(ours, theirs):
        sentences.append(f"{name}, without any network, does as well: {percent(baseline)}.")
    elif baseline > max(ours, theirs):
        sentences.append(f"{name}, without any network, does better than both: {percent(baseline)}.")
    elif baseline > ours:
        sentences.append(f"{name}, without any network, does better than the pretrained encoder: {percent(baseline)}.")
    else:
        sentences.append(f"{name}, without any network, reaches {percent(baseline)}.")
    return " ".join(sentences)


def tiles(
    results: Mapping[str, Any] | None, headline: str, cards: Sequence[Mapping[str, Any]], seconds: float
) -> list[tuple[str, str]]:
    """(what, value) of the key numbers."""
    shown = []
    if results and (table := results.get("label_efficiency")):
        number = near_five(table["labels_per_class"])
        labels = counted(table["labels_per_class"][number], "label")
        shown.append(
            (f"points over random initialisation, {labels} per class", points(table["paired"][number]["mean"]))
        )
    if results:
        shown += [(f"{name_of(n)} on test, all labels", value_of(n, v)) for n, v in list(results["test"].items())[:2]]
        for kind, arms in results["probes"].items():
            other = f"frozen encoder; random encoder {value_of(headline, arms['random'])}"
            shown.append((f"{name_of(kind)} {name_of(headline)}, {other}", value_of(headline, arms["pretrained"])))
    items = sum(sum(card["counts"].values()) for card in cards)
    shown.append(("items read", f"{items:,}"))
    if seconds:
        shown.append(("of work", duration(seconds)))
    return shown


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def confused(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The classes mistaken for one another most often."""
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    if not pairs:
        return "No test item was mistaken for another class."
    worst = sorted(pairs, key=lambda p: (-p[0], p[1:]))[:5]
    return "Most often mistaken: " + ", ".join(f"{names[i]} for {names[j]} ({n})" for n, i, j in worst) + "."


def limits(results: Mapping[str, Any] | None, cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must not take from the figures."""
    lines = ["One encoder was pretrained, from one seed. Another seed may give another encoder."]
    if results:
        lines.append("Test items come from the same source as the training items; other sources may be harder.")
        if results["intervals"]:
            lines.append("The interval of the tuned model shows the chance in the test items, not in training.")
            groups = results.get("groups", 0)
            if groups:
                few = "; so few tell little about others" if groups < FEW else ""
                lines.append(f"The test items come from {counted(groups, 'group')}, drawn whole for the interval{few}.")
    if results and results.get("label_efficiency"):
        lines.append(
            "Intervals of the label-efficiency table show the spread over labelled subsets and heads, all from the "
            "one encoder."
        )
    small = sum(0 < counts["test"] < FEW for card in cards for counts in card["classes"].values())
    if small and results:
        has = "class has" if small == 1 else "classes have"
        lines.append(f"{small:,} {has} fewer than {FEW} test items; figures by class are rough there.")
    if any(card["unreadable"] for card in cards):
        lines.append(
            "Files that could not be read are in no figure; if they have something in common, so has what is missing."
        )
    if not results:
        lines.append("A low reconstruction loss does not by itself mean that the encoder is useful for a task.")
    return lines
