"""What people see of work that goes on."""

import pytest

from flows import console


@pytest.mark.parametrize(
    ("rate", "said"),
    [(0, ""), (1e-5, ""), (0.001, ", 4/h"), (0.05, ", 3/min"), (0.999, ", 60/min"), (1, ", 1/s"), (12.4, ", 12/s")],
)
def test_a_pace_is_told_in_the_unit_in_which_it_is_a_number(rate, said, monkeypatch):
    monkeypatch.setattr(console, "PLAIN_EVERY", 0)
    lines = []
    plain = console.PlainConsole(lines.append)
    plain.stage("evaluate")
    plain.update("evaluate", 3, 45, "fine-tunings", rate)
    start = f"evaluate: 3/45 fine-tunings{said}"
    assert lines[1].startswith(start)
    assert lines[1].removeprefix(start).startswith(", ") or lines[1] == start
