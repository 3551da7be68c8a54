"""The README of an exported model: what it is, what it was made of, what it is worth, how to load it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from core.interop.subject import Subject
from core.records import PreparedData, Statistics

SHOWN = 5
"""Most reasons and classes that are listed one by one."""
FOLDER = "FOLDER"
"""What the folder is called in code until its name is known."""
UNITS = {"unit": "values from 0 to 1", "log-mel": "natural logarithms of mel energies"}
"""What units are called for people."""
WHOLE_INPUTS = (
    "It takes whole inputs: padding, which maeflow itself marks and does not attend to, counts as part of them, so cut "
    "recordings and scans to the size or make them up to it with what `preprocessing.json` describes."
)


@dataclass(frozen=True)
class Written:
    """What a format has to say of what it wrote."""

    library: str
    """Name of the library that loads it, as hubs call it."""
    load: str
    """Code that loads it, a few lines, in which `FOLDER` stands for the folder."""
    notes: tuple[str, ...] = ()
    """What users should know of it, a sentence each."""
    checked: tuple[str, ...] = ()
    """What it was compared with, and how far apart they were, a sentence each."""


def card(subject: Subject, target: str, written: Written, folder: str) -> str:
    """The whole text, in Markdown with the header that hubs read; ``folder`` is the name of the one it stands in.

    It holds nothing that differs between two calls.
    """
    parts = [
        _header(subject, written),
        _what(subject, target),
        "## Load it\n\n```python\n" + written.load.strip().replace(FOLDER, folder) + "\n```",
        _listed([*written.notes, *written.checked]),
        _inputs(subject),
        "## What it was trained on\n\n" + _data(subject),
        "## What it is worth\n\n" + _worth(subject),
        "## Use and limits\n\n" + _limits(subject),
        "## Licence\n\nTo be filled in by whoever may pass on the weights: that also depends on the data.",
        "## Versions\n\n" + _table(["of", "version"], sorted(_versions(subject).items())),
        "## Recipe\n\nAll that decides the result:\n\n```yaml\n" + _recipe(subject) + "```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(subject: Subject, written: Written) -> str:
    tags = ["maeflow", "masked-autoencoder", subject.record.modality]
    lines = ["license: # to be filled in", f"library_name: {written.library}", f"tags: [{', '.join(tags)}]"]
    lines += [f"pipeline_tag: {_pipeline(subject)}"] if _pipeline(subject) else []
    return "\n".join(["---", *lines, "---"])


def _pipeline(subject: Subject) -> str:
    """What hubs call the task; empty where they have no word for it."""
    axes = len(subject.spec.grid)
    if subject.info.units != "unit" or subject.tuned is None or not subject.tuned.target.classes or subject.segments:
        return ""
    return {2: "image-classification", 3: "video-classification"}.get(axes, "")


def _what(subject: Subject, target: str) -> str:
    record, config, spec = subject.record, subject.record.model, subject.spec
    size, patch = (" x ".join(map(str, shape)) for shape in (spec.input_shape, spec.patch_shape))
    channels = "1 channel" if spec.channels == 1 else f"{spec.channels} channels"
    what = (
        f"A Vision Transformer of {config.depth} blocks, {config.width} features and {config.heads} heads for inputs "
        f"of {size} with {channels} ({record.modality}), in patches of {patch}, {_origin(subject)}"
    )
    tuned = subject.tuned
    if tuned is None:
        what += (
            f", with its decoder, {_target(subject)}."
            if subject.with_decoder
            else ", as the encoder without its decoder."
        )
    else:
        kind = tuned.target.task.kind.value.replace("_", " ")
        what += f" and tuned for a {kind} task with {tuned.target.outputs} outputs."
        if tuned.target.classes:
            what += f" Its outputs, in their order: {', '.join(tuned.target.classes)}."
    return f"# {record.recipe} {record.digest}\n\n{what} Written by `maeflow export --to {target}`."


def _origin(subject: Subject) -> str:
    """Where its encoder comes from."""
    name = subject.checkpoint
    return f"taken over from the checkpoint {name}" if name else "pretrained as a masked autoencoder (He et al. 2021)"


def _target(subject: Subject) -> str:
    """What its decoder predicts."""
    if subject.model.norm_pix is None:
        return "of which nobody says how the pixels were normalised that it learned to predict"
    return f"which predicts the pixels of hidden patches (`norm_pix`: {subject.model.norm_pix})"


def _inputs(subject: Subject) -> str:
    record = subject.record
    units = UNITS.get(subject.info.units, f"the units of the {record.modality} plugin")
    mean, std = _said(record.statistics, 6)
    crop = subject.crop
    steps = ""
    if crop is not None:
        how = (
            "resized whole to the size, whatever its aspect"
            if crop.squeezed
            else f"cut to {crop.share:g} of the largest box from its centre that has the input's aspect, then resized"
        )
        steps = f" In evaluation a picture or frame is {how} (bicubic, with antialiasing)."
    return (
        f"## Inputs\n\nFeatures are {units}; normalised they are (features - mean) / std for each channel, with mean "
        f"{mean} and std {std}.{steps} `preprocessing.json` has all of it for programs, with the plugin's settings."
    )


def _data(subject: Subject) -> str:
    parts = [_prepared(purpose, prepared, about, subject) for purpose, prepared, about in subject.data]
    if subject.checkpoint:
        parts.insert(
            0, f"What {subject.checkpoint} was trained on, its publisher has to say; its licence holds as well."
        )
    return "\n\n".join(parts) or "Its prepared data are not beside it any more; the recipe below is what is known."


def _prepared(purpose: str, prepared: PreparedData, about: Mapping[str, Any], subject: Subject) -> str:
    rows = [(split, count, prepared.labelled.get(split, 0)) for split, count in prepared.counts.items()]
    mean, std = _said(prepared.statistics, 4)
    more = [
        f"{prepared.unreadable} files could not be read{_reasons(about, subject)}.",
        f"{prepared.duplicates} items equal an earlier one and stand on its side of the splits.",
        f"Mean {mean}, deviation {std} of the training split.",
        f"Hash of the contents: {prepared.data_digest}.",
    ]
    if about.get("groups"):
        divided = subject.recipe.prepare.divided_groups == "allow"
        more.insert(2, f"{about['groups']} groups{'' if divided else ', none of which is in two splits'}.")
    more += [f"{count} {what}." for what, count in about.get("noticed", {}).items()]
    return f"For {purpose}:\n\n{_table(['split', 'items', 'labelled'], rows)}\n\n{' '.join(more)}"


def _said(statistics: Statistics, digits: int) -> tuple[str, str]:
    """Means and deviations for people."""
    mean, std = ([f"{v:.{digits}g}" for v in values] for values in (statistics.mean, statistics.std))
    return ", ".join(mean), ", ".join(std)


def _reasons(about: Mapping[str, Any], subject: Subject) -> str:
    """The commonest reasons; none where sources are private, for a reason is the plugin's own text."""
    if subject.info.private or not about.get("unreadable"):
        return ""
    common = Counter(bad["reason"] for bad in about["unreadable"]).most_common(SHOWN)
    return f" ({'; '.join(f'{count}: {reason}' for reason, count in common)})"


def _worth(subject: Subject) -> str:
    rows = [("in training", name, f"{value:.4g}") for name, value in sorted(subject.record.metrics.items())]
    for report in subject.reports:
        whose = f"evaluation {report.digest}"
        rows += [(whose, name, f"{value:.4g}") for name, value in sorted(report.metrics.items())]
    if not subject.reports:
        return _table(["where", "figure", "value"], rows) + "\n\nNo evaluation of it was found beside it."
    return _table(["where", "figure", "value"], rows) + (
        "\n\nEvaluations are on the test split of the labelled data, which no stage trained on; `eval/knn` and "
        "`eval/linear` are of the frozen encoder, `random` of one with random weights."
    )


def _limits(subject: Subject) -> str:
    tuned = subject.tuned
    use = (
        "Features for models of one's own on data of the same kind; it decides nothing by itself."
        if tuned is None
        else "To say what the labels of its training data say, of inputs that come from where these came from."
    )
    sentences = [
        f"Intended use: {use}",
        "It was trained on the data above and nothing else is known of what it does on other data.",
        *_left_out(subject),
        WHOLE_INPUTS,
    ]
    if subject.info.private:
        sentences.append("It is no medical device, and no figure above is of its use on people.")
    return _listed(sentences)


def _left_out(subject: Subject) -> list[str]:
    """Whom the data leave out, as far as their cards tell."""
    found = []
    for purpose, prepared, about in subject.data:
        total = sum(prepared.counts.values()) + prepared.unreadable
        if prepared.unreadable:
            found.append(f"Left out of {purpose}: {prepared.unreadable} of {total} files, which could not be read.")
        if not about.get("groups"):
            found.append(f"Nobody said which items of {purpose} belong together (a person, a camera, a recording).")
        counts = {name: count["train"] for name, count in about.get("classes", {}).items()}
        if missing := [name for name, count in counts.items() if not count]:
            found.append(f"No training item at all for {len(missing)} classes: {', '.join(missing[:SHOWN])}.")
        if counts:
            few, many = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
            found.append(f"Labelled training items per class: from {counts[few]} ({few}) to {counts[many]} ({many}).")
    return [*found, "What the data do not show at all, no card can tell: ask who collected them."]


def _versions(subject: Subject) -> dict[str, str]:
    return subject.record.versions | {"maeflow that exported it": version("maeflow")}


def _recipe(subject: Subject) -> str:
    return str(yaml.safe_dump(subject.said_recipe, sort_keys=False, allow_unicode=True))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
