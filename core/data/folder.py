"""The prepared folder: shards, the index beside them, and what Hugging Face `datasets` needs to open it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from core.data import shards
from core.data.facts import Facts
from core.data.shards import Unit
from core.data.store import INDEX_FILE
from core.workspace import digest_of, write_bytes, write_text


def link_shards(units: Sequence[Unit], folder: Path, workdir: Path) -> None:
    """Shards appear in the prepared folder by hard link, so that it is whole by itself."""
    for old in workdir.glob("data-*.arrow"):
        old.unlink()
    for number, unit in enumerate(units):
        origin, target = shards.arrow_file(folder, unit.digest), workdir / f"data-{number:05d}.arrow"
        try:
            target.hardlink_to(origin)
        except OSError:
            shutil.copyfile(origin, target)


def write_index(workdir: Path, facts: Facts) -> None:
    """One line per row; see `core.data.store.INDEX_FILE`."""
    columns = {
        "key": pa.array([row.key for row in facts.rows], pa.string()),
        "group": pa.array([row.group for row in facts.rows], pa.string()),
        "split": pa.array(facts.splits, pa.string()),
        "target": pa.array([None if t is None else json.dumps(t) for t in facts.targets], pa.string()),
        "content": pa.array([row.content for row in facts.rows], pa.string()),
        "repeated": pa.array(facts.repeated, pa.bool_()),
    }
    out = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), out)
    write_bytes(workdir / INDEX_FILE, out.getvalue().to_pybytes())


def describe_for_datasets(workdir: Path, digests: Sequence[str]) -> None:
    """The two files with which ``datasets.load_from_disk`` opens the folder."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    shape = {"feature": value("int32"), "_type": "List"}
    texts = {name: value("string") for name in ("key", "codec", "dtype", "meta")}
    types = texts | {"payload": value("large_binary"), "shape": shape}
    features = {name: types[name] for name in shards.SHARD_SCHEMA.names}
    files = [{"filename": f"data-{number:05d}.arrow"} for number in range(len(digests))]
    state: dict[str, Any] = {
        "_data_files": files,
        "_fingerprint": digest_of("rows", list(digests)),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(workdir / "dataset_info.json", json.dumps({"features": features}, indent=1) + "\n")
    write_text(workdir / "state.json", json.dumps(state, indent=1) + "\n")
