"""The worker of `maeflow up` in place of Prefect's, by Prefect's own ways of finding one."""

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from infra import services
from infra.worker import BUSY, Worker


def test_pools_of_processes_get_our_worker_by_the_options_of_prefects():
    from prefect.workers.base import BaseWorker

    assert BaseWorker.get_worker_class_from_type("process") is Worker
    command = services.worker(Path("home"), {}, "some-pool", 3).command
    assert command[:4] == (sys.executable, "-P", "-m", "infra.worker")
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "prefetch-seconds" in said


def test_a_place_that_is_still_held_is_told_in_the_words_that_the_worker_knows():
    async def twice():
        limiter = anyio.CapacityLimiter(2)
        limiter.acquire_on_behalf_of_nowait("run")
        limiter.acquire_on_behalf_of_nowait("run")

    with pytest.raises(RuntimeError, match=BUSY):
        anyio.run(twice)
