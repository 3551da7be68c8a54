"""Prepares a source as a flow does, with `compute.dask` or without: ``tests/fanning.py HOME RECIPE SOURCE [SET ...]``.

What stands in the finished folder is for tests and benchmarks to compare.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))
UNLIKE = ("events.jsonl", "request.json")
"""What may differ between two preparations: times and rates in one, the home's path and `compute.dask` in the other."""


def main(home, name, source, *sets):
    from infra import settings

    Path(home).mkdir(parents=True, exist_ok=True)
    settings.apply(Path(home))
    from prefect import flow, task

    from core import recipes
    from core.data.private import resolve_source, secret_of
    from core.data.sources import listing
    from core.digests import prepare_digest
    from core.request import StageRequest
    from core.workspace import Home
    from flows import console, fanout
    from flows.privacy import is_private, source_name
    from infra.launchers import SubprocessLauncher, Watch

    recipe, root = recipes.load(name, sets), Home.create(Path(home))
    context = SimpleNamespace(home=root, recipe=recipe)
    source = source_name(source, recipe.modality, root.root)
    secret = secret_of(root) if is_private(recipe.modality) else b""
    digest = prepare_digest(recipe, listing(resolve_source(root, source)), secret)
    values = recipe.model_dump(mode="json")
    request = StageRequest(stage="prepare", home=home, digest=digest, recipe=values, source=source)

    @task
    def prepare():
        fanout.warm_shards(context, request)
        print(f"warm after {time.monotonic() - start:.1f} s", flush=True)
        SubprocessLauncher().run(request, Watch())

    @flow
    def pipeline():
        prepare()

    console.CURRENT.set(console.for_terminal())
    start = time.monotonic()
    pipeline()
    print(f"prepared after {time.monotonic() - start:.1f} s: {root.stage('prepare', digest).final}", flush=True)


def files(folder):
    """Contents of all files of a prepared folder by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def compare(one, other):
    """(files compared, names of those that differ or are missing in one of them, times aside)."""
    a, b = files(one), files(other)
    names = sorted((a.keys() | b.keys()) - set(UNLIKE))
    return len(names), [name for name in names if a.get(name) != b.get(name)]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
