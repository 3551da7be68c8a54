"""Ships a stage's events to its MLflow run, in batches, from a stored offset; an outage costs nothing but delay."""

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from core.tracking import EVENTS_FILE
from core.workspace import write_text

EVERY_SECONDS = 2.0
BATCH = 1000
"""Most metrics MLflow takes in one call."""


class Mirror:
    """Follows the event log of one folder into one run; each (key, step) is sent once, also after a rewind."""

    def __init__(self, client: Any, run_id: str, folder: Callable[[], Path], state: Path) -> None:
        self._client, self._run_id, self._folder = client, run_id, folder
        self._state_file = state
        self._offset, self._sent = 0, dict[str, int]()
        if state.exists():
            saved = json.loads(state.read_text())
            self._offset, self._sent = saved["offset"], saved["sent"]
        self.failure: str | None = None
        """Why the last attempt failed; None when all is sent."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def skip(self, sent: Mapping[str, int]) -> None:
        """Leave out what has arrived already, by key up to a step, though the state on disk may not know it."""
        self._sent = {key: max(self._sent.get(key, -1), sent.get(key, -1)) for key in {*self._sent, *sent}}

    def remember(self) -> None:
        """Write down how far it came, so that others can go on from there."""
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._state_file, json.dumps({"offset": self._offset, "sent": self._sent}))

    def start(self) -> None:
        """Follow the log in the background."""
        self._thread.start()

    def close(self) -> bool:
        """Send what is left; whether all of it arrived."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        self.pump()
        return self.failure is None

    def _loop(self) -> None:
        while not self._closing.wait(EVERY_SECONDS):
            self.pump()

    def pump(self) -> None:
        """Send the events written since the last time; a failure is remembered and the events are sent again later."""
        try:
            while self._pump_once():
                continue
            self.failure = None
        except Exception as error:  # noqa: BLE001 - tracking is best effort: training never fails for it
            self.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def _pump_once(self) -> bool:
        """Send up to a batch of events; whether there may be more."""
        from mlflow.entities import Metric

        lines, end = _whole_lines(self._folder() / EVENTS_FILE, self._offset)
        metrics: list[Metric] = []
        sent = dict(self._sent)
        for line in lines:
            event = json.loads(line)
            if event["kind"] == "metrics":
                fresh = {k: v for k, v in event["values"].items() if event["step"] > sent.get(k, -1)}
                sent |= dict.fromkeys(fresh, event["step"])
                metrics += [Metric(k, float(v), int(event["t"] * 1000), event["step"]) for k, v in fresh.items()]
            elif event["kind"] == "picture" and event["step"] > sent.get(event["key"], -1):
                self._with_file(event["path"], partial(self._picture, event["key"], event["step"]))
                sent[event["key"]] = event["step"]
            elif event["kind"] == "media":
                self._with_file(event["path"], self._media)
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])
        if end > self._offset:
            self._offset, self._sent = end, sent
            self.remember()
        return bool(lines)

    def _with_file(self, name: str, send: Callable[[Path], None]) -> None:
        """Send a file of the folder, which may be getting its final name at this very moment."""
        for _ in range(2):
            with suppress(FileNotFoundError):
                return send(self._folder() / name)
        return None

    def _picture(self, key: str, step: int, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as picture:
            self._client.log_image(self._run_id, picture.convert("RGB"), key=key, step=step)

    def _media(self, path: Path) -> None:
        if not path.exists():  # What MLflow raises for it depends on where it keeps its artifacts.
            raise FileNotFoundError(path)
        self._client.log_artifact(self._run_id, str(path), "media")


def _whole_lines(file: Path, offset: int, limit: int = 1 << 20) -> tuple[list[bytes], int]:
    """Finished lines after ``offset``, up to about ``limit`` bytes, and the offset behind them."""
    if not file.exists():
        return [], offset
    with file.open("rb") as source:
        source.seek(offset)
        data = source.read(limit)
    end = data.rfind(b"\n") + 1
    return data[:end].splitlines(), offset + end
