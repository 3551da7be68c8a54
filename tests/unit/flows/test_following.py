"""Following a stage's event log while the stage goes on."""

import json
import threading

from core.tracking import EVENTS_FILE, JsonlTracker
from flows.console import Follower, PlainConsole


def event(number):
    return json.dumps({"kind": "note", "text": str(number)}) + "\n"


def test_each_event_is_told_once_and_whole(tmp_path):
    said = []
    follower = Follower(lambda: tmp_path, PlainConsole(said.append))
    follower.tick()
    log = tmp_path / EVENTS_FILE
    log.write_text(event(0) + event(1)[:10])
    follower.tick()
    log.write_text(event(0) + event(1) + event(2))
    follower.tick()
    assert [line.split()[-1] for line in said] == ["0", "1", "2"]


def test_a_folder_that_is_given_its_final_name_meanwhile_costs_nothing(tmp_path):
    """A stage renames its folder when it is done, at any moment between two looks."""
    partial, final = tmp_path / "a.partial", tmp_path / "a"
    partial.mkdir()
    (partial / EVENTS_FILE).write_text(event(0))
    done = threading.Event()

    def rename():
        while not done.is_set():
            partial.rename(final)
            final.rename(partial)

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        said = []
        follower = Follower(lambda: final if final.exists() else partial, PlainConsole(said.append))
        for _ in range(3000):
            follower._offset = 0
            follower.tick()
    finally:
        done.set()
        thread.join()
    assert said


def test_a_torn_event_that_the_next_attempt_cuts_off_is_passed_over(tmp_path):
    log = tmp_path / EVENTS_FILE
    log.write_text(event(0) + event(1)[:10])  # The disk was full.
    said = []
    follower = Follower(lambda: tmp_path, PlainConsole(said.append))
    follower.tick()
    with JsonlTracker(tmp_path) as tracker:
        tracker.note("again")
    follower.tick()
    assert [line.split()[-1] for line in said] == ["again"]
