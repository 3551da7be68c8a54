"""Units that are read ahead of their use: in order, not too many at once, whatever a file does to its reader."""

import sys
from pathlib import Path

import numpy as np
import pytest

from core.data import readers, shards
from core.data.prepare import named_items
from core.data.readers import Readers
from core.data.store import rows_of
from core.errors import Stopped

sys.path.insert(0, str(Path(__file__).parents[2]))
from signals import Signals, SignalSettings, write


@pytest.fixture(params=["here", "apart"])
def where(request, monkeypatch):
    """Units are read in this process, or in others."""
    if request.param == "apart":
        monkeypatch.setattr(readers, "SMALL_ITEMS", 1)
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return request.param


def units(source, size=3):
    plugin = Signals(SignalSettings(), "evaluate")
    items = named_items(plugin, str(source))
    return plugin, shards.units_of([items[start : start + size] for start in range(0, len(items), size)], plugin)


def reader(plugin, folder, should_stop=lambda: False):
    return Readers(plugin, folder, 2, lambda _: None, should_stop)


def keys(folder, unit):
    return [record.key for record in rows_of(shards.arrow_file(folder, unit.digest))]


def test_units_come_in_their_order_and_few_wait(tmp_path, where):
    write(tmp_path / "source", 30)
    plugin, planned = units(tmp_path / "source")
    (tmp_path / "shards").mkdir()
    most, found = 0, []
    for unit in reader(plugin, tmp_path / "shards").each(planned, 2):
        most = max(most, len(list((tmp_path / "shards").glob("*.json"))))
        found += keys(tmp_path / "shards", unit)
        shards.drop(tmp_path / "shards", unit.digest)
    assert found == [item.key for unit in planned for item in unit.items]
    assert most <= 2
    assert not list((tmp_path / "shards").iterdir())


def test_records_come_back_as_they_were_read(tmp_path):
    write(tmp_path / "source", 6)
    plugin, (unit, _) = units(tmp_path / "source")
    (tmp_path / "shards").mkdir()
    list(reader(plugin, tmp_path / "shards").each([unit], 1))
    records = list(rows_of(shards.arrow_file(tmp_path / "shards", unit.digest)))
    for record, item in zip(records, unit.items, strict=True):
        (read,) = plugin.read(item)
        assert bytes(record.payload) == read.payload
        assert (record.key, record.codec, record.shape, record.dtype) == (read.key, read.codec, read.shape, read.dtype)
        assert record.target is None


def test_a_file_that_ends_its_reader_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "SMALL_ITEMS", 1)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    write(tmp_path / "source", 8)
    np.save(tmp_path / "source/c1/killer.npy", np.zeros((2, 16)))
    plugin, planned = units(tmp_path / "source")
    (tmp_path / "shards").mkdir()
    found, unreadable = [], {}
    for unit in reader(plugin, tmp_path / "shards").each(planned, 3):
        found += keys(tmp_path / "shards", unit)
        unreadable |= dict(shards.read_result(tmp_path / "shards", unit.digest).unreadable)
    assert len(found) == 8
    assert set(unreadable) == {"c1/killer.npy"}
    assert "died" in unreadable["c1/killer.npy"]


def test_a_unit_whose_reading_ended_this_process_is_read_in_another(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    write(tmp_path / "source", 6)
    np.save(tmp_path / "source/c1/killer.npy", np.zeros((2, 16)))
    plugin, planned = units(tmp_path / "source")
    (tmp_path / "shards").mkdir()
    (fatal,) = [unit for unit in planned if any("killer" in item.key for item in unit.items)]
    shards.marker_file(tmp_path / "shards", fatal.digest).write_text("0")
    found = [len(keys(tmp_path / "shards", unit)) for unit in reader(plugin, tmp_path / "shards").each(planned, 1)]
    assert sum(found) == 6


def test_a_request_to_stop_is_heard_between_units(tmp_path, where):
    write(tmp_path / "source", 30, prefix="slow")
    plugin, planned = units(tmp_path / "source")
    (tmp_path / "shards").mkdir()
    taken = []
    with pytest.raises(Stopped):
        taken.extend(reader(plugin, tmp_path / "shards", lambda: len(list((tmp_path / "shards").glob("*.json"))) > 1)
                     .each(planned, 2))  # fmt: skip
    assert len(list((tmp_path / "shards").glob("*.json"))) < len(planned)
