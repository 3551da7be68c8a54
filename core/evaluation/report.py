"""The report: one self-contained page on what was trained on what, what came of it, and what it does not show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from core.evaluation.charts import Line, bars, heat_map, line_chart

Curves = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class StageTime:
    """How long a stage worked."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class ReportData:
    """What a page is made of; parts that a run has not are left out of its page."""

    recipe: str
    modality: str
    recipe_values: dict[str, Any]
    cards: Sequence[tuple[str, dict[str, Any]]]
    """(heading, dataset card) of each source."""
    curves: Curves = field(default_factory=dict)
    picture: str | None = None
    """Reconstructions, a PNG in base64."""
    results: dict[str, Any] | None = None
    """What `evaluate` wrote."""
    encoder_metrics: dict[str, float] = field(default_factory=dict)
    tuned_metrics: dict[str, float] = field(default_factory=dict)
    times: Sequence[StageTime] = ()
    environment: dict[str, str] = field(default_factory=dict)


def render_report(data: ReportData) -> str:
    """The page as HTML; it makes no request."""
    sections = [
        _head(data),
        _results(data.results),
        _efficiency(data.results),
        _reconstructions(data.picture),
        _training(data.curves),
        *[_card(title, card) for title, card in data.cards],
        _time(data.times),
        _limits(data),
        _recipe(data),
    ]
    style = (files("core.evaluation") / "report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.recipe)} - maeflow</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def percent(value: float) -> str:
    """0.861 as 86.1 %."""
    return f"{100 * value:.1f} %"


# --- sections ---


def _head(data: ReportData) -> str:
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in _tiles(data))
    return (
        f'<header><p class="kind">maeflow report, {escape(data.modality)}</p><h1>{escape(data.recipe)}</h1>'
        f'<p class="verdict">{escape(_verdict(data))}</p></header><div class="tiles">{tiles}</div>'
    )


def _verdict(data: ReportData) -> str:
    """One sentence with the result that matters most."""
    table = (data.results or {}).get("label_efficiency")
    if table:
        number = _middle(table["labels_per_class"])
        labels, paired = table["labels_per_class"][number], table["paired"][number]
        ours, theirs = _mean(table["pretrained"][number]), _mean(table["random"][number])
        points = (
            f"{100 * paired['mean']:+.1f} points (95 % interval {100 * paired['low']:.1f} to {100 * paired['high']:.1f}"
        )
        return (
            f"With {labels} labels per class the pretrained encoder reaches {percent(ours)}, random initialisation "
            f"{percent(theirs)}: {points}, {len(table['seeds'])} seeds)."
        )
    if data.results:
        name, value = next(iter(data.results["test"].items()))
        return f"On test data that no stage trained on, the tuned model reaches {name} {value:.3f}."
    loss = data.encoder_metrics.get("pretrain/loss")
    told = f" Its reconstruction loss ended at {loss:.3f}." if loss is not None else ""
    return f"An encoder was pretrained without labels; nothing was labelled, so nothing was tuned or scored.{told}"


def _middle(labels: Sequence[int]) -> int:
    """The entry nearest to five labels per class."""
    return min(range(len(labels)), key=lambda i: abs(labels[i] - 5))


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    tiles = []
    if data.results:
        for name, value in list(data.results["test"].items())[:2]:
            tiles.append((f"test {name}, all labels", percent(value) if name.startswith("top") else f"{value:.3f}"))
        for kind, arms in data.results["probes"].items():
            tiles.append((f"{kind}, frozen encoder (random encoder {arms['random']:.3f})", f"{arms['pretrained']:.3f}"))
    items = sum(sum(card["counts"].values()) for _, card in data.cards)
    tiles.append(("items read", f"{items:,}"))
    if data.times:
        tiles.append(("minutes of work", f"{sum(t.seconds for t in data.times) / 60:.1f}"))
    return tiles


def _results(results: dict[str, Any] | None) -> str:
    if not results:
        return ""
    rows = []
    for name, value in results["test"].items():
        low, high = results["intervals"].get(name, (None, None))
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        rows.append([name, f"{value:.4f}", interval])
    page = "<h2>On the test split, tuned with all labels</h2>" + _table(["metric", "value", "95 % interval"], rows)
    if "confusion" not in results:
        return page
    page += f"<p>{escape(_confused(results))}</p>"
    if len(results["classes"]) <= 30:
        page += heat_map(results["confusion"], results["classes"])
    classes = [
        [str(c["class"]), f"{c['precision']:.3f}", f"{c['recall']:.3f}", f"{c['f1']:.3f}", str(c["support"])]
        for c in results["per_class"]
    ]
    table = _table(["class", "precision", "recall", "F1", "items"], classes)
    return page + f"<details><summary>Each class</summary>{table}</details>"


def _confused(results: dict[str, Any]) -> str:
    """The pairs of classes mistaken for one another most often."""
    names, counts = results["classes"], results["confusion"]
    pairs = [(counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i][j]]
    if not pairs:
        return "No test item was mistaken for another class."
    shown = [f"{names[i]} for {names[j]} ({n})" for n, i, j in sorted(pairs, key=lambda p: (-p[0], p[1:]))[:3]]
    return "Most often mistaken: " + ", ".join(shown) + "."


def _efficiency(results: dict[str, Any] | None) -> str:
    table = (results or {}).get("label_efficiency")
    if not table:
        return ""
    labels = table["labels_per_class"]
    arms = [
        ("from the pretrained encoder", "a", table["pretrained"]),
        ("from random initialisation", "b", table["random"]),
        (table["baseline"]["name"], "c", table["baseline"]["values"]),
    ]
    lines = [
        Line(
            name,
            [(n, _mean(v)) for n, v in zip(labels, values, strict=True)],
            style,
            dots=[(n, x) for n, several in zip(labels, values, strict=True) for x in several],
            marked=True,
        )
        for name, style, values in arms
    ]
    chart = line_chart(
        lines,
        x_label="labels per class",
        y_label="test accuracy",
        title="Accuracy over labels",
        percent=True,
        log_x=True,
    )
    rows = []
    for i, n in enumerate(labels):
        gain = table["paired"][i]
        interval = f"{100 * gain['mean']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        rows.append([str(n), *[percent(_mean(values[i])) for _, _, values in arms], interval])
    head = ["labels per class", "pretrained", "random", "baseline", "gain in points (95 %)"]
    return (
        f"<h2>How far a few labels go</h2>{chart}{_table(head, rows)}"
        f'<p class="soft">Each dot is one seed ({", ".join(map(str, table["seeds"]))}); a seed draws the labelled '
        "items, the same for every arm. The gain is paired by seed, with Student's interval.</p>"
    )


def _reconstructions(picture: str | None) -> str:
    if not picture:
        return ""
    return (
        "<h2>What the encoder learned to fill in</h2><figure>"
        f'<img alt="Original, masked and reconstructed inputs side by side" src="data:image/png;base64,{picture}">'
        "<figcaption>Left to right: the original, what the encoder saw, the reconstruction. Visible patches are the "
        "original's own; predicted ones are scaled back with the statistics of the patch they stand for.</figcaption>"
        "</figure>"
    )


def _training(curves: Curves) -> str:
    parts = []
    for title, keys, as_percent in (
        ("Reconstruction loss", ("pretrain/loss", "pretrain/val_loss"), False),
        ("k-NN on the frozen encoder, while pretraining", ("pretrain/knn",), True),
        ("Fine-tuning loss", ("finetune/loss", "finetune/val_loss"), False),
    ):
        names = [key for key in keys if len(curves.get(key, [])) > 1]
        styles = zip(names, "ab", strict=False)
        lines = [Line(key.partition("/")[2].replace("_", " "), curves[key], style) for key, style in styles]
        if lines:
            y = "accuracy" if as_percent else "loss"
            chart = line_chart(lines, x_label="optimiser steps", y_label=y, title=title, percent=as_percent)
            parts.append(f"<h3>{title}</h3>{chart}")
    return f"<h2>Training curves</h2>{''.join(parts)}" if parts else ""


def _card(title: str, card: dict[str, Any]) -> str:
    rows = [[split, f"{n:,}", f"{card['labelled'][split]:,}"] for split, n in card["counts"].items()]
    page = f"<h2>{escape(title)}</h2>" + _table(["split", "items", "labelled"], rows)
    mean = ", ".join(f"{v:.4f}" for v in card["statistics"]["mean"])
    std = ", ".join(f"{v:.4f}" for v in card["statistics"]["std"])
    page += (
        f"<p>{len(card['unreadable'])} files could not be read; {card['duplicates']['count']} items equal an earlier "
        "one. "
        f"Input mean {mean}, deviation {std}. Stored in {card['bytes'] / 2**20:.1f} MiB, "
        f"from {card['source_bytes'] / 2**20:.1f} MiB.</p>"
    )
    if card["classes"]:
        classes = [[c, *[str(n[s]) for s in ("train", "val", "test")]] for c, n in card["classes"].items()]
        page += f"<details><summary>Classes</summary>{_table(['class', 'train', 'val', 'test'], classes)}</details>"
    if card["unreadable"]:
        bad = [[entry["file"], entry["reason"]] for entry in card["unreadable"]]
        page += f"<details><summary>What could not be read</summary>{_table(['file', 'reason'], bad)}</details>"
    return page


def _time(times: Sequence[StageTime]) -> str:
    if not times:
        return ""
    slowest = max(times, key=lambda t: t.seconds)
    rows = [(t.stage, t.seconds, f"{t.seconds:.0f} s") for t in times]
    chart = bars(rows, "Seconds per stage")
    return f"<h2>Where the time went</h2>{chart}<p>The slowest part was {escape(slowest.stage)}.</p>"


def _limits(data: ReportData) -> str:
    """What a reader must not take from the figures."""
    lines = [
        "One encoder was pretrained, from one seed: intervals show the spread over labelled subsets, not over encoders."
    ]
    if data.results:
        lines.append("Test items come from the same source as the training items; other sources may be harder.")
    small = [name for _, card in data.cards for name, counts in card["classes"].items() if 0 < counts["test"] < 20]
    if small:
        lines.append(f"{len(small)} classes have fewer than 20 test items; their figures are rough.")
    if any(card["unreadable"] for _, card in data.cards):
        lines.append(
            "Files that could not be read are in no figure; if they have something in common, so has what is missing."
        )
    return (
        "<h2>What these figures do not show</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
    )


def _recipe(data: ReportData) -> str:
    text = yaml.safe_dump(data.recipe_values, sort_keys=False)
    about = ", ".join(f"{name} {value}" for name, value in sorted(data.environment.items()))
    return (
        f"<h2>To repeat it</h2><p>{escape(about)}</p>"
        f"<details><summary>The recipe, whole</summary><pre>{escape(text)}</pre></details>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the row."""
    top = "".join(f'<th scope="col"{"" if i == 0 else " class=number"}>{escape(h)}</th>' for i, h in enumerate(head))
    body = ""
    for row in rows:
        cells = "".join(f'<td class="number">{escape(cell)}</td>' for cell in row[1:])
        body += f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
