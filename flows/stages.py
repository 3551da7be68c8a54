"""One Prefect task per stage: each finds the finished folder, or has the stage run in a process of its own."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from core import digests
from core.config import Recipe
from core.data.private import resolve_source, secret_of
from core.data.sources import listing, unnamed
from core.errors import StageError, StageLost, UserError
from core.interop.account import ACCOUNT_FILE, Account
from core.interop.places import located
from core.records import EvalReport, PreparedData, PretrainedEncoder, Record, TunedModel, read_record
from core.request import StageName, StageRequest, WeightedInput
from core.workspace import Home
from flows import artifacts, console
from flows.admission import admitted
from flows.privacy import discretion, is_private
from infra import devices, registering
from infra.launchers import Launcher, SubprocessLauncher, Watch
from infra.records import RunRecords, StageRun

if TYPE_CHECKING:
    import subprocess

R = TypeVar("R", bound=Record)
M = TypeVar("M", PretrainedEncoder, TunedModel)
P = ParamSpec("P")
T = TypeVar("T")
RETRY_SECONDS = [2.0, 10.0, 60.0]
"""Before each further attempt of a stage whose process was lost."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What a stage came to."""

    stage: str
    record: R
    folder: Path
    run_id: str | None
    """Its MLflow run; None where MLflow could not be reached."""
    reused: bool
    seconds: float


@dataclass
class Context:
    """What all stages of a pipeline share."""

    home: Home
    recipe: Recipe
    records: RunRecords
    served: bool = False
    """Whether a worker carries the flow, so that people look at it on Prefect's pages."""
    outcomes: list[Outcome[Any]] = field(default_factory=list)
    registering: list["subprocess.Popen[str]"] = field(default_factory=list)
    """Processes that register a model in MLflow while the pipeline goes on."""

    @property
    def values(self) -> dict[str, Any]:
        """The recipe in JSON form."""
        return self.recipe.model_dump(mode="json")


CONTEXT: ContextVar[Context] = ContextVar("context")
"""Set by the flow. Prefect looks into whatever is passed to a task, so clients and processes are not passed."""


def _lost(task_: Any, task_run: Any, state: Any) -> bool:
    """Whether a stage was lost, and not wrong: then another attempt goes on from its last checkpoint."""
    try:
        state.result()
    except StageLost:
        return True
    except BaseException:  # noqa: BLE001 - whatever else it is, it would come again
        return False
    return False


def _stage_task(stage: StageName | Literal["checkpoint"]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function the task of a stage: named by recipe and stage, tried again only where its process was lost."""

    def name() -> str:
        return f"{CONTEXT.get().recipe.name}: {stage}"

    made: Callable[[Callable[P, T]], Callable[P, T]] = task(
        name=stage,
        task_run_name=name,
        cache_policy=NO_CACHE,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=_lost,
    )
    return made


@_stage_task("prepare")
def prepare(source: str, role: str = "data") -> Outcome[PreparedData]:
    """Prepare ``source``; ``role`` says what it is for."""
    context = CONTEXT.get()
    private = is_private(context.recipe.modality)
    with discretion(context.recipe.modality), unnamed(private):
        secret = secret_of(context.home) if private else b""
        digest = digests.prepare_digest(context.recipe, listing(resolve_source(context.home, source)), secret)
    name = source if private else str(Path(source).absolute())
    request = _request(context, "prepare", digest, source=name)
    if context.recipe.compute.dask is not None:
        from flows.fanout import warm_shards  # Needs the extra `dask`.

        warm_shards(context, request)
    return _run(context, request, PreparedData, title="prepare" if role == "data" else f"prepare {role}")


@_stage_task("checkpoint")
def adopt(reference: str, data: PreparedData | None, *, further: bool = False) -> Outcome[PretrainedEncoder]:
    """Take over the encoder of a foreign checkpoint: a file, a folder, or a name on a hub.

    Where pretraining goes ``further`` from it, it is that which is registered.
    """
    context = CONTEXT.get()
    place = located(reference)
    digest = digests.adopt_digest(context.recipe, place.fingerprint, data)
    inputs = {"checkpoint": place, "labelled": data.folder if data else None}
    request = _request(context, "pretrain", digest, **inputs)
    outcome = _account(_run(context, request, PretrainedEncoder, data=[data] if data else [], title="checkpoint"))
    return outcome if further else _registered(context, outcome)


@_stage_task("checkpoint")
def adopt_tuned(reference: str, encoder: PretrainedEncoder, labelled: PreparedData) -> Outcome[TunedModel]:
    """Take over the tuned model of a foreign checkpoint, whose encoder was adopted before."""
    context = CONTEXT.get()
    place = located(reference)
    digest = digests.adopt_digest(context.recipe, place.fingerprint, labelled, encoder.digest)
    inputs = {"checkpoint": place, "encoder": encoder.folder, "labelled": labelled.folder}
    request = _request(context, "finetune", digest, **inputs)
    return _registered(context, _account(_run(context, request, TunedModel, data=[labelled], title="its head")))


def _account(outcome: Outcome[R]) -> Outcome[R]:
    """Tell what became of a checkpoint also where it was taken over before; the first time its process does."""
    if outcome.reused:
        for line in Account.model_validate_json((outcome.folder / ACCOUNT_FILE).read_bytes()).lines:
            console.current().line(f"  {line}")
    return outcome


@_stage_task("pretrain")
def pretrain(
    data: Sequence[tuple[PreparedData, float]],
    labelled: PreparedData | None,
    start: PretrainedEncoder | None = None,
) -> Outcome[PretrainedEncoder]:
    """Pretrain on weighted prepared data, from ``start`` or from random weights."""
    context = CONTEXT.get()
    digest = digests.pretrain_digest(context.recipe, data, labelled, start)
    inputs = tuple(WeightedInput(folder=prepared.folder, weight=weight) for prepared, weight in data)
    before = {"labelled": labelled.folder if labelled else None, "encoder": start.folder if start else None}
    request = _request(context, "pretrain", digest, data=inputs, **before)
    return _registered(context, _run(context, request, PretrainedEncoder, data=[prepared for prepared, _ in data]))


@_stage_task("finetune")
def finetune(encoder: PretrainedEncoder, labelled: PreparedData) -> Outcome[TunedModel]:
    """Fine-tune an encoder on labelled data."""
    context = CONTEXT.get()
    digest = digests.finetune_digest(context.recipe, encoder, labelled)
    request = _request(context, "finetune", digest, encoder=encoder.folder, labelled=labelled.folder)
    return _registered(context, _run(context, request, TunedModel, data=[labelled]))


@_stage_task("evaluate")
def evaluate(encoder: PretrainedEncoder, tuned: TunedModel | None, labelled: PreparedData) -> Outcome[EvalReport]:
    """Score the encoder, and the tuned model if there is one, on the test split."""
    context = CONTEXT.get()
    digest = digests.evaluate_digest(context.recipe, encoder, tuned, labelled)
    inputs = {"encoder": encoder.folder, "tuned": tuned.folder if tuned else None, "labelled": labelled.folder}
    return _run(context, _request(context, "evaluate", digest, **inputs), EvalReport, data=[labelled])


def _request(context: Context, stage: StageName, digest: str, **inputs: Any) -> StageRequest:
    return StageRequest(stage=stage, home=str(context.home.root), digest=digest, recipe=context.values, **inputs)


def _run(
    context: Context, request: StageRequest, kind: type[R], *, data: Sequence[PreparedData] = (), title: str = ""
) -> Outcome[R]:
    """The stage's outcome: reused, or worked for; its MLflow run tells the same story."""
    with discretion(context.recipe.modality):
        return _followed(context, request, kind, data, title or request.stage)


def _followed(
    context: Context, request: StageRequest, kind: type[R], data: Sequence[PreparedData], title: str
) -> Outcome[R]:
    folder, out = context.home.stage(request.stage, request.digest), console.current()
    start, reused = time.monotonic(), folder.done
    inputs = [(prepared.modality, prepared.data_digest) for prepared in data]
    run = context.records.stage(request.stage, request.digest, folder, context.values, inputs, reused=reused)
    try:
        if not reused:
            with _launcher(context, request) as launcher:
                out.stage(title)
                follower = console.Follower(lambda: folder.current, out)
                launcher.run(request, Watch(line=_teller(context), tick=follower.tick))
        record = read_record(folder.final, kind)
    except BaseException as error:
        _close(run, error)
        out.finished(f"{title}: {'stopped' if not isinstance(error, Exception) else 'failed'}")
        raise
    run.finish(record, folder.final)
    outcome = Outcome(request.stage, record, folder.final, run.run_id, reused, time.monotonic() - start)
    context.outcomes.append(outcome)
    out.finished(_summary(title, outcome))
    if run.failure:
        out.line(f"  note: MLflow lacks part of this run ({run.failure}); `maeflow runs --sync` sends the rest")
    if context.served:
        links = artifacts.run_links(run.experiment, run.run_id)
        shown = not is_private(context.recipe.modality)
        artifacts.tell_stage(context.recipe.name, title, record, folder.final, links, picture=shown)
    return outcome


def _launcher(context: Context, request: StageRequest) -> AbstractContextManager[Launcher]:
    """What runs the stage, once there is a place for it; taking a checkpoint over needs no GPU and one process."""
    if request.checkpoint is not None:
        return nullcontext(SubprocessLauncher(devices.hidden()))
    return admitted(context.home.root, request.stage, context.recipe.compute, served=context.served)


def _close(run: StageRun, error: BaseException) -> None:
    kind = "KILLED" if not isinstance(error, Exception) else "FAILED"
    run.fail(kind, str(error) if isinstance(error, (StageError, UserError)) else type(error).__name__)


def _teller(context: Context) -> Callable[[str], None]:
    """Where lines of the stage process go: all into the log of a run on a server, the telling ones to a terminal."""
    out = console.current()
    everything = context.served and not is_private(context.recipe.modality)

    def tell(line: str) -> None:
        if everything or line.startswith(("waiting:", "reused:", "stopped:")):
            out.line(f"  {line}")

    return tell


def _summary(title: str, outcome: Outcome[Any]) -> str:
    """One line on what came out."""
    record = outcome.record
    if isinstance(record, PreparedData):
        counts = ", ".join(f"{n} {split}" for split, n in record.counts.items())
        text = f"{counts}; {record.unreadable} unreadable, {record.duplicates} duplicates"
    else:
        chosen = [(k, v) for k, v in record.metrics.items() if not k.endswith(("_low", "_high"))][:4]
        text = "  ".join(f"{key} {value:.4g}" for key, value in chosen)
    how = "already done" if outcome.reused else f"{outcome.seconds:.0f} s"
    return f"{title:10s} {how:>12s}   {text}"


def _registered(context: Context, outcome: Outcome[M]) -> Outcome[M]:
    """Have a model registered in MLflow if it is not, in a process of its own; the pipeline goes on meanwhile."""
    if context.recipe.compute.registry:
        client = context.records.client if outcome.run_id is not None else None
        with discretion(context.recipe.modality):
            process = registering.begin(context.home.root, outcome.record, outcome.run_id, client)
        context.registering += [process] if process else []
    return outcome


def finish_registering(context: Context) -> None:
    """Wait until models are registered; a failure is told and costs nothing else."""
    for process in context.registering:
        if why := registering.reason(process):
            text = f"a model is not in MLflow's registry ({why}); `maeflow runs --sync` tries again"
            console.current().line(f"  note: {text}")
    context.registering.clear()


def stop_registering(context: Context) -> None:
    """End what still registers a model: who wants everything to stop is not kept waiting. It is left for later."""
    for process in context.registering:
        process.kill()
        process.communicate()
    context.registering.clear()
