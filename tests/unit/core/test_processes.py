"""Work in processes side by side: what is left to do when it has to end is neither waited for nor begun."""

import multiprocessing
import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from core.errors import Stopped
from core.processes import die_with, side_by_side


def test_all_is_done_where_nothing_comes_in_between(tmp_path):
    others = set(multiprocessing.active_children())
    with side_by_side(2, die_with) as pool:
        for number in range(8):
            pool.submit(Path.touch, tmp_path / str(number))
    assert len(list(tmp_path.iterdir())) == 8
    assert set(multiprocessing.active_children()) <= others


def stopped(*work):
    """Begin with ``work``, and want to stop at once."""
    with side_by_side(1, die_with) as pool:
        assert pool.submit(os.getppid).result() == os.getpid()
        for function, argument in work:
            pool.submit(function, argument)
        raise Stopped


def test_what_is_in_hand_is_not_waited_for_and_what_waits_never_begins(tmp_path):
    others, start = set(multiprocessing.active_children()), time.monotonic()
    with pytest.raises(Stopped):
        stopped((time.sleep, 600), *((Path.touch, tmp_path / str(number)) for number in range(8)))
    assert time.monotonic() - start < 60
    assert set(multiprocessing.active_children()) <= others
    assert not list(tmp_path.iterdir())


def test_children_of_somebody_else_stay():
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    other.start()
    with pytest.raises(Stopped):
        stopped((time.sleep, 600))
    assert other.is_alive()
    other.kill()
    other.join()


def test_a_process_that_dies_is_told_of():
    with side_by_side(2, die_with) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 3).result()
