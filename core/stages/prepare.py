"""Stage 1: raw files into prepared data. The work itself is in `core.data.prepare`."""

from core.config import Recipe
from core.data.prepare import prepare as prepare_data
from core.data.private import secret_of
from core.records import PreparedData
from core.stages.work import Work, live_plugin


def prepare(recipe: Recipe, source: str, work: Work) -> PreparedData:
    """Prepare ``source`` once: readable items into shards, the rest into quarantine.

    Raises:
        UserError: if the source is missing or of no known kind, or a given split divides a group.
        StageError: if too little of it can be read.
        Stopped: if asked to stop; calling again continues.
    """
    plugin = live_plugin(recipe, "evaluate")
    if plugin.info.private:
        plugin.secret = secret_of(work.home)
    return prepare_data(
        recipe,
        source,
        plugin=plugin,
        home=work.home,
        workdir=work.folder,
        digest=work.digest,
        tracker=work.tracker,
        should_stop=work.should_stop,
    )
