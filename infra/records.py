"""The MLflow side of a pipeline, best effort: whatever fails here is told and costs no work."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import Recipe
from core.digests import recipe_digest
from core.records import Record
from core.workspace import StageFolder
from infra import mlflow_runs as runs
from infra.mlflow_mirror import Mirror
from infra.reconcile import kill_orphans
from infra.settling import finish

GROUPS = {
    "prepare": ("modality", "seed", "data", "task", "prepare"),
    "pretrain": ("modality", "seed", "data", "model", "pretrain"),
    "finetune": ("modality", "seed", "task", "model", "finetune"),
    "evaluate": ("modality", "seed", "task", "evaluate"),
    "pipeline": ("modality", "name", "seed", "task"),
}
"""Groups of the recipe that are parameters of each kind of run."""


@dataclass
class StageRun:
    """The MLflow run of one stage of one pipeline."""

    client: Any
    run_id: str | None
    mirror: Mirror | None = None
    failure: str | None = None
    experiment: str | None = None
    settled: bool = False
    """Whether it ended well before the flow was retried, and is left as it is."""

    def finish(self, record: Record, folder: Path) -> None:
        """Send what is left, the record and the artifacts, and end the run."""
        self._send_rest()
        self._attempt(lambda: finish(self.client, str(self.run_id), folder))

    def fail(self, status: str, reason: str) -> None:
        """Send what is left and end the run as FAILED or KILLED."""
        self._send_rest()

        def end() -> None:
            runs.set_tags(self.client, str(self.run_id), {"maeflow.error": reason})
            self.client.set_terminated(self.run_id, status=status)

        self._attempt(end)

    def _send_rest(self) -> None:
        if self.mirror and not self.mirror.close():
            self.failure = self.mirror.failure

    def _attempt(self, action: Callable[[], None]) -> None:
        if self.run_id is None or self.settled:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - tracking is best effort
            self.failure = _short(error)


@dataclass
class RunRecords:
    """The MLflow runs of one pipeline."""

    home: Path
    recipe: Recipe
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of all runs: links to the Prefect run, the commit."""
    flow_run: str | None = None
    """The flow run; one that is retried goes on in the runs it began."""
    client: Any = None
    pipeline_id: str | None = None
    failure: str | None = None
    stages: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        """Connect, end what dead processes left running, and start the pipeline's run."""
        try:
            self.client = runs.connect(self.home)
            with suppress(Exception):  # What others left must not keep this run from being recorded.
                kill_orphans(self.client, self.home)
            tags = {**self.tags, "maeflow.recipe_digest": recipe_digest(self.recipe)}
            if earlier := self._earlier("pipeline", "pipeline"):
                self.pipeline_id = str(earlier.info.run_id)
                runs.reopen(self.client, self.pipeline_id)
                return
            tags |= self._key("pipeline")
            self.pipeline_id = runs.start_run(self.client, self.home, "pipeline", self.recipe.name, tags)
            values = self.recipe.model_dump(mode="json")
            runs.log_recipe(self.client, self.pipeline_id, values, GROUPS["pipeline"])
        except Exception as error:  # noqa: BLE001 - tracking is best effort
            self.failure = _short(error)

    def stage(
        self,
        stage: str,
        digest: str,
        folder: StageFolder,
        values: Mapping[str, Any],
        data: Sequence[tuple[str, str]],
        *,
        reused: bool,
    ) -> StageRun:
        """Start a stage's run; events flow into it until it is finished."""
        if self.pipeline_id is None:
            self.open()  # MLflow was away when the flow began.
        if self.pipeline_id is None:
            return StageRun(self.client, None, failure=self.failure)
        try:
            place = runs.experiment(self.client, self.home, stage)
            earlier = self._earlier(stage, digest)
            if earlier is not None and earlier.info.status == "FINISHED":
                self.stages[stage] = str(earlier.info.run_id)
                return StageRun(self.client, self.stages[stage], experiment=place, settled=True)
            run_id = self._open(stage, digest, values, data, earlier, reused=reused)
            mirror = self._mirror(run_id, folder, earlier)
        except Exception as error:  # noqa: BLE001 - tracking is best effort
            return StageRun(self.client, None, failure=_short(error))
        self.stages[stage] = run_id
        # What another run has done is in its curves; what this very run did before it was retried is not all there yet.
        if not reused or earlier is not None:
            mirror.start()
        return StageRun(self.client, run_id, mirror, experiment=place)

    def _open(
        self,
        stage: str,
        digest: str,
        values: Mapping[str, Any],
        data: Sequence[tuple[str, str]],
        earlier: Any,
        *,
        reused: bool,
    ) -> str:
        """The id of the stage's run: the one begun before the flow was retried, or a new one."""
        if earlier is not None:
            runs.reopen(self.client, earlier.info.run_id)
            return str(earlier.info.run_id)
        tags = self._stage_tags(stage, digest, reused=reused) | self._key(digest)
        run_id = runs.start_run(self.client, self.home, stage, self.recipe.name, tags)
        runs.log_recipe(self.client, run_id, values, GROUPS[stage])
        for name, data_digest in data:
            runs.log_dataset(self.client, run_id, name, data_digest, stage)
        return run_id

    def _mirror(self, run_id: str, folder: StageFolder, earlier: Any) -> Mirror:
        state = self.home / "runs" / "mirror" / f"{run_id}.json"
        mirror = Mirror(self.client, run_id, lambda: folder.current, state)
        mirror.remember()
        if earlier is not None:
            mirror.skip(runs.last_steps(self.client, earlier))
        return mirror

    def _key(self, what: str) -> dict[str, str]:
        return {runs.KEY: f"{self.flow_run}/{what}"} if self.flow_run else {}

    def _earlier(self, stage: str, what: str) -> Any:
        if self.flow_run is None:
            return None
        return runs.find_run(self.client, self.home, stage, f"{self.flow_run}/{what}")

    def _stage_tags(self, stage: str, digest: str, *, reused: bool) -> dict[str, str]:
        tags = {
            **self.tags,
            "maeflow.pipeline_run": str(self.pipeline_id),
            "maeflow.digest": digest,
            "maeflow.recipe_digest": recipe_digest(self.recipe),
            "maeflow.reused": str(reused).lower(),
        }
        if reused and (origin := self._original(stage, digest)):
            tags["maeflow.reuses_run"] = origin
        return tags

    def _original(self, stage: str, digest: str) -> str | None:
        """The run in which the reused work was done."""
        place = runs.experiment(self.client, self.home, stage)
        query = f"tags.`maeflow.digest` = '{digest}' AND tags.`maeflow.reused` = 'false'"
        found = self.client.search_runs([place], filter_string=query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def close(self, status: str, metrics: Mapping[str, float], data_digest: str | None, report: Path | None) -> None:
        """End the pipeline's run with its headline metrics, its report, and links to the runs of its stages."""
        if self.pipeline_id is None:
            return
        try:
            runs.log_values(self.client, self.pipeline_id, metrics)
            runs.set_tags(self.client, self.pipeline_id, self._links(data_digest))
            if report and report.exists():
                self.client.log_artifact(self.pipeline_id, str(report))
            self.client.set_terminated(self.pipeline_id, status=status)
        except Exception as error:  # noqa: BLE001 - tracking is best effort
            self.failure = _short(error)

    def _links(self, data_digest: str | None) -> dict[str, str]:
        tags = {f"maeflow.{stage}_run": run_id for stage, run_id in self.stages.items()}
        lines = ["Stages of this pipeline:", ""]
        for stage, run_id in self.stages.items():
            place = runs.experiment(self.client, self.home, stage)
            lines.append(f"- [{stage}]({runs.link(run_id, place)})")
        tags["mlflow.note.content"] = "\n".join(lines)
        if data_digest:
            tags["maeflow.data_digest"] = data_digest
        return tags


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
