"""The report: one self-contained page on what was trained on what, what came of it, and what it does not show."""

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from core.evaluation import report_words as words
from core.evaluation.charts import Line, bars, heat_map, line_chart
from core.evaluation.report_masks import HEAD, mask_note, mask_rows

Curves = dict[str, list[tuple[int, float]]]
MOST_CLASSES = 30
"""Most classes whose confusion matrix can still be read."""
MOST_FILES = 200
"""Longest list of unreadable files on the page; the card holds all."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""Content security policy: the page makes no request and runs no script, whatever a file name holds."""


@dataclass(frozen=True)
class StageTime:
    """How long a stage worked."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class ReportSound:
    """One sound of a sample: the original, what the encoder was given of it, or the reconstruction."""

    sample: str
    column: str
    suffix: str
    """File suffix with its dot."""
    data: str
    """The file in base64."""


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
    moving: str | None = None
    """The same as an animated GIF in base64, where the data move."""
    sounds: Sequence["ReportSound"] = ()
    """Reconstructions that can be heard."""
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
        _efficiency(data.results),
        _results(data.results),
        _reconstructions(data),
        _training(data),
        *[_card(title, card) for title, card in data.cards],
        _time(data.times),
        _limits(data),
        _recipe(data),
    ]
    style = (files("core.evaluation") / "report.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(data.recipe)} - maeflow</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


# --- sections ---


def _head(data: ReportData) -> str:
    seconds = sum(t.seconds for t in data.times)
    cards = [card for _, card in data.cards]
    shown = words.tiles(data.results, words.headline_of(data.recipe_values), cards, seconds)
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in shown)
    verdict = words.verdict(data.results, data.encoder_metrics)
    return (
        f'<header><p class="kind">maeflow report, {escape(data.modality)}</p><h1>{escape(data.recipe)}</h1>'
        f'<p class="verdict">{escape(verdict)}</p></header><div class="tiles">{tiles}</div>'
    )


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
    chart = line_chart(
        [_arm(labels, *arm) for arm in arms],
        x_label="labels per class",
        y_label="test accuracy",
        title="Test accuracy over labels per class; the table below holds the same figures",
        percent=True,
        log_x=True,
    )
    rows = [
        [str(n), *[words.percent(words.mean(values[i])) for _, _, values in arms], _gain(table["paired"][i])]
        for i, n in enumerate(labels)
    ]
    head = ["labels per class", "pretrained", "random", table["baseline"]["name"], "gain in points (95 %)"]
    return (
        f"<h2>How far a few labels go</h2>{chart}{_table(head, rows)}"
        f'<p class="soft">Each dot is one seed ({", ".join(map(str, table["seeds"]))}), each line their mean. A seed '
        "draws the labelled items, the same for every arm. The gain is of the pretrained encoder over random "
        "initialisation, paired by seed, with Student's interval where there is more than one.</p>"
    )


def _gain(paired: dict[str, float]) -> str:
    if not math.isfinite(paired["low"]):
        return words.points(paired["mean"])
    return f"{words.points(paired['mean'])} ({words.points(paired['low'])} to {words.points(paired['high'])})"


def _arm(labels: Sequence[int], name: str, style: str, values: Sequence[Sequence[float]]) -> Line:
    means = [(n, words.mean(v)) for n, v in zip(labels, values, strict=True)]
    dots = [(n, x) for n, several in zip(labels, values, strict=True) for x in several]
    return Line(name, means, style, dots=dots, marked=True)


def _results(results: dict[str, Any] | None) -> str:
    if not results:
        return ""
    rows = []
    masks = "cases" in results
    for name, value in list(results["test"].items())[: 1 if masks else None]:
        low, high = results["intervals"].get(name, (None, None))
        interval = "" if low is None else f"{words.value_of(name, low)} to {words.value_of(name, high)}"
        rows.append([words.name_of(name), words.value_of(name, value), interval])
    page = "<h2>On the test split, tuned with all labels</h2>" + _table(["metric", "value", "95 % interval"], rows)
    if masks:
        return page + _table(HEAD, mask_rows(results)) + f'<p class="soft">{escape(mask_note(results))}</p>'
    if "confusion" not in results:
        return page
    page += f"<p>{escape(words.confused(results['classes'], results['confusion']))}</p>"
    if len(results["classes"]) <= MOST_CLASSES:
        page += heat_map(results["confusion"], results["classes"])
    classes = [
        [str(c["class"]), f"{c['precision']:.3f}", f"{c['recall']:.3f}", f"{c['f1']:.3f}", str(c["support"])]
        for c in results["per_class"]
    ]
    table = _table(["class", "precision", "recall", "F1", "test items"], classes)
    return page + f"<details><summary>Each class</summary>{table}</details>"


def _reconstructions(data: ReportData) -> str:
    if not data.picture:
        return ""
    norm_pix = (data.recipe_values.get("pretrain") or {}).get("norm_pix", "patch")
    scaled = "" if norm_pix == "none" else "; predicted ones are scaled back with the statistics of the patch they hide"
    small = ' class="small"' if _width(data.picture) < 320 else ""
    names = "".join(f"<span>{name}</span>" for name in words.COLUMNS)
    return (
        "<h2>What the encoder learned to fill in</h2><figure>"
        f'<div class="columns" aria-hidden="true">{names}</div>'
        f"<picture>{_moving_source(data)}"
        f'<img{small} alt="Rows of three pictures: an original, the part of it that the encoder saw, and its '
        f'reconstruction" src="data:image/png;base64,{escape(data.picture)}"></picture>'
        f"<figcaption>Visible patches are the original's own{scaled}. The sharpness of the hidden parts is not the "
        f"aim, what the encoder had to know to guess them is.</figcaption></figure>{_sounds(data.sounds)}"
    )


def _sounds(sounds: Sequence[ReportSound]) -> str:
    """Players, a row per sample."""
    if not sounds:
        return ""
    columns = list(dict.fromkeys(sound.column for sound in sounds))
    rows = [
        [
            f'<audio controls preload="metadata" aria-label="sample {escape(s.sample)}, {escape(s.column)}" '
            f'src="data:audio/{escape(s.suffix.removeprefix("."))};base64,{escape(s.data)}"></audio>'
            for s in sounds
            if s.sample == sample
        ]
        for sample in dict.fromkeys(sound.sample for sound in sounds)
    ]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{player}</td>' for player in row)}</tr>" for row in rows)
    table = f'<table class="players"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return (
        f'<div class="scroll">{table}</div><p class="soft">The first samples as sound, made from what the model sees: '
        "even an original sounds only as good as that.</p>"
    )


def _moving_source(data: ReportData) -> str:
    """The animation for those who have not asked their system for less motion."""
    if not data.moving:
        return ""
    return (
        '<source media="(prefers-reduced-motion: no-preference)" type="image/gif" '
        f'srcset="data:image/gif;base64,{escape(data.moving)}">'
    )


def _width(picture: str) -> int:
    """Width of a PNG in base64, in pixels: bytes 16 to 20 of the file."""
    return int.from_bytes(base64.b64decode(picture[:32])[16:20], "big")


def _training(data: ReportData) -> str:
    headline = words.headline_of(data.recipe_values)
    tuned = next(
        (k for k in (f"finetune/val_{headline}", "finetune/val_map", "finetune/val_r2") if k in data.curves), ""
    )
    parts = []
    for title, keys, metric in (
        ("Reconstruction loss", ("pretrain/loss", "pretrain/val_loss"), "loss"),
        ("k-NN on the frozen encoder, while pretraining", ("pretrain/knn",), headline),
        ("Fine-tuning loss", ("finetune/loss", "finetune/val_loss"), "loss"),
        ("Fine-tuning, on the validation split", (tuned,), headline),
    ):
        names = [key for key in keys if len(data.curves.get(key, [])) > 1]
        if names:
            lines = [Line(_split_of(key), data.curves[key], style) for key, style in zip(names, "ab", strict=False)]
            y, share = words.name_of(metric), metric.startswith("top")
            chart = line_chart(lines, x_label="optimiser steps", y_label=y, title=title, percent=share)
            parts.append(f"<h3>{title}</h3>{chart}")
    return f"<h2>Training curves</h2>{''.join(parts)}" if parts else ""


def _split_of(key: str) -> str:
    """Which items a curve is measured on; the k-NN probe asks about the validation split."""
    return "validation split" if "/val" in key or key.endswith("/knn") else "training split"


def _card(title: str, card: dict[str, Any]) -> str:
    rows = [[split, f"{n:,}", f"{card['labelled'][split]:,}"] for split, n in card["counts"].items()]
    page = f"<h2>{escape(title)}</h2>" + _table(["split", "items", "labelled"], rows) + f"<p>{_facts(card)}</p>"
    if card["classes"]:
        classes = [[c, *[f"{n[s]:,}" for s in ("train", "val", "test")]] for c, n in card["classes"].items()]
        table = _table(["class", "train", "val", "test"], classes)
        page += f"<details><summary>{words.counted(len(classes), 'class', 'classes')}</summary>{table}</details>"
    return page + _unreadable(card["unreadable"])


def _facts(card: dict[str, Any]) -> str:
    average, spread = (", ".join(f"{v:.4g}" for v in card["statistics"][name]) for name in ("mean", "std"))
    duplicates = card["duplicates"]["count"]
    groups = card.get("groups")
    facts = [
        f"{words.counted(len(card['unreadable']), 'file')} could not be read.",
        f"{words.counted(duplicates, 'item equals', 'items equal')} an earlier one.",
        f"{words.counted(groups, 'group')}, none divided between splits." if groups else "",
        *[f"{count:,} {what}." for what, count in card.get("noticed", {}).items()],
        f"Input mean {average}, standard deviation {spread}, per channel of the training split.",
        f"Stored in {card['bytes'] / 2**20:.1f} MiB{_from(card['source_bytes'])}.",
    ]
    return escape(" ".join(fact for fact in facts if fact))


def _from(source_bytes: int) -> str:
    """Nothing where the source did not tell sizes."""
    return f", from {source_bytes / 2**20:.1f} MiB" if source_bytes else ""


def _unreadable(entries: Sequence[dict[str, str]]) -> str:
    """Why files could not be read, the commonest reason first, and which they are."""
    if not entries:
        return ""
    reasons = Counter(entry["reason"] for entry in entries).most_common(10)
    summary = _table(["reason", "files"], [[reason, f"{n:,}"] for reason, n in reasons])
    files_table = _table(["file", "reason"], [[e["file"], e["reason"]] for e in entries[:MOST_FILES]], numbers=False)
    more = len(entries) - MOST_FILES
    rest = f"<p>{more:,} more are listed in card.json.</p>" if more > 0 else ""
    return f"<details><summary>What could not be read, and why</summary>{summary}{files_table}{rest}</details>"


def _time(times: Sequence[StageTime]) -> str:
    total = sum(t.seconds for t in times)
    if not total:
        return ""
    slowest = max(times, key=lambda t: t.seconds)
    chart = bars([(t.stage, t.seconds, words.duration(t.seconds)) for t in times], "Time by stage")
    share = f"{100 * slowest.seconds / total:.0f} % of {words.duration(total)}"
    return f"<h2>Where the time went</h2>{chart}<p>The slowest part was {escape(slowest.stage)}: {share}.</p>"


def _limits(data: ReportData) -> str:
    remarks = data.recipe_values.get("evaluate", {}).get("remarks", ())
    lines = [*remarks, *words.limits(data.results, [card for _, card in data.cards])]
    budget = data.recipe_values.get("evaluate", {}).get("label_efficiency")
    if budget and (data.results or {}).get("label_efficiency"):
        lines.append(
            f"With few labels both arms are tuned for the same {budget['steps']} steps of {budget['batch']} samples; "
            "random weights need more than pretrained ones, so a longer budget narrows the gain."
        )
    return f"<h2>What these figures do not show</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _recipe(data: ReportData) -> str:
    text = yaml.safe_dump(data.recipe_values, sort_keys=False, allow_unicode=True)
    about = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in sorted(data.environment.items())
    )
    return (
        f"<h2>To repeat it</h2><dl>{about}</dl>"
        f"<details><summary>The recipe, whole</summary><pre>{escape(text)}</pre></details>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose first column names the row; the others hold numbers, or else words."""
    kind = ' class="number"' if numbers else ""
    top = "".join(f'<th scope="col"{kind if i else ""}>{escape(h)}</th>' for i, h in enumerate(head))
    body = ""
    for row in rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in row[1:])
        body += f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
