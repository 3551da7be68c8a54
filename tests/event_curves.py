"""Curves out of an event log."""

import json


def curves(folder):
    """Every metric by (key, step), as a reader of the log sees them after all rewinds, timings aside."""
    values = {}
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            values |= {(k, event["step"]): v for k, v in event["values"].items() if not k.startswith("perf/")}
    return values
