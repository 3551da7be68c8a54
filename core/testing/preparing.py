"""The last rule: the source goes through the engine's own preparation."""

from core.data.prepare import prepare as run
from core.errors import StageError, UserError
from core.testing.rules import Broken, RuleBook
from core.testing.subject import Subject
from core.tracking import NullTracker
from core.workspace import Home

FEW = 10
"""Labelled items from which on one in five (`prepare.test_fraction`) can be asked for."""
BOOK: RuleBook[Subject] = RuleBook()


@BOOK.rule(
    "all of it",
    "The source can be prepared: every item is read, split and measured by the engine, and some are held out.",
    "Read the message. Records are held out by group: those that may be parted need groups of their own.",
    "records-pickle",
    "groups-kept",
    "features-finite",
)
def prepares(s: Subject) -> None:
    """What `maeflow prepare` does."""
    home = Home.create(s.scratch / "home")
    folder = s.scratch / "prepared"
    folder.mkdir()
    recipe = s.recipe.model_copy(update={"compute": s.recipe.compute.model_copy(update={"workers": 1})})
    try:
        record = run(
            recipe,
            str(s.source),
            plugin=s.live,
            home=home,
            workdir=folder,
            digest="kit",
            tracker=NullTracker(),
            should_stop=lambda: False,
        )
    except (UserError, StageError) as error:
        raise Broken(str(error)) from error
    if record.unreadable:
        raise Broken(f"{record.unreadable} of {len(s.items)} items could not be read")
    if record.counts["train"] == 0:
        raise Broken(f"no item is left for training: {record.counts}")
    if record.labelled["train"] >= FEW and record.counts["test"] == 0:
        raise Broken(f"nothing is held out for testing: {record.counts}, in groups that are never divided")
