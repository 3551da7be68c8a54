"""Finished models on new files: what is asked for is checked here, and done in a process of its own."""

import csv
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from core.data.parts import Output, about_of
from core.errors import StageLost, StagePreempted, UserError
from core.records import TunedModel, read_model
from core.registry import plugin_info
from core.request import ApplyRequest
from core.workspace import Home
from flows import console
from flows.finished import finished_folder
from flows.privacy import discretion, source_name
from infra.launchers import Watch, run_process

ATTEMPTS = 3
"""How often work is begun whose process dies; each goes on from where the last one was."""
REASONS = 5
"""Different reasons that are shown, the most frequent first."""


def apply(
    kind: Literal["embed", "predict"],
    record: str,
    data: str,
    out: str,
    home: Path,
    *,
    sets: Sequence[str] = (),
    batch: int | None = None,
    patches: bool = False,
    overwrite: bool = False,
) -> None:
    """Do what is asked with live progress, and say what came out.

    Raises:
        UserError: if the request is wrong.
        StageError: if the work failed.
    """
    folder = finished_folder(Home(home), record, "pretrain", "finetune")
    model = read_model(folder)
    place = Path(out).absolute()
    plugin_info(model.modality)  # One that is not installed is told of before anything else.
    with discretion(model.modality):
        request = ApplyRequest(
            home=str(home),
            kind=kind,
            modality=model.modality,
            model=str(folder),
            source=source_name(data, model.modality, home),
            out=writable(place),
            patches=patches,
            batch=batch,
            sets=tuple(sets),
            overwrite=overwrite,
        )
        request.check(model)
        masks = isinstance(model, TunedModel) and model.target.task.kind == "segmentation"
        if not masks and place.suffix not in ("", ".parquet"):
            raise UserError(f"--out: a Parquet file is written, and no {place.suffix}; let its name end in .parquet")
        _follow(request, Output(place, folder=masks), console.for_terminal())


def writable(place: Path) -> str:
    """The place of an output as a request can say it.

    Raises:
        UserError: if its name is of no characters that a request can hold.
    """
    try:
        str(place).encode()
    except UnicodeEncodeError:
        raise UserError("--out is not spelled in UTF-8; give it a name that is") from None
    return str(place)


def _follow(request: ApplyRequest, output: Output, out: console.Console) -> None:
    """Start the process, again where it dies, and show how far it is."""
    start, told = time.monotonic(), list[str]()

    def line(text: str) -> None:
        told.append(text)
        if text.startswith(("waiting:", "note:")):
            out.line(f"  {text}")

    out.stage(request.kind)
    follower = console.Follower(lambda: output.partial, out)
    text = f"{request.kind}: stopped"
    try:
        for attempt in range(ATTEMPTS):
            try:
                run_process("core.apply", request, Watch(line=line, tick=follower.tick))
                break
            except StagePreempted:
                raise
            except StageLost as error:
                if attempt + 1 == ATTEMPTS:
                    raise
                out.line(f"  note: {error}; trying again")
        text = _summary(output, time.monotonic() - start, reused=any(said.startswith("reused:") for said in told))
    except Exception:
        text = f"{request.kind}: failed"
        raise
    finally:
        out.finished(text)
    _tell_unreadable(output, out)


def _summary(output: Output, seconds: float, *, reused: bool) -> str:
    """One line on what came out."""
    from pyarrow import parquet

    about, rows = about_of(output.table) or {}, parquet.read_metadata(output.table).num_rows
    classes = about.get("classes", ())
    what = "x".join(str(extent) for extent in about.get("shape", ())) or (f"{len(classes)} classes" if classes else "")
    how = "already done" if reused else f"{seconds:.0f} s"
    return f"{about['request']['kind']}  {how}   {rows} rows{f' ({what})' if what else ''} in {output.final}"


def _tell_unreadable(output: Output, out: console.Console) -> None:
    """How many files could not be read, and why."""
    if not output.unreadable.exists():
        return
    with output.unreadable.open(encoding="utf-8", newline="") as lines:
        reasons = Counter(row["reason"] for row in csv.DictReader(lines))
    out.line(f"  {reasons.total()} could not be read; {output.unreadable} lists them:")
    for reason, count in reasons.most_common(REASONS):
        out.line(f"  {count:6d}  {reason}")
    if len(reasons) > REASONS:
        out.line(f"  and {len(reasons) - REASONS} more reasons")
