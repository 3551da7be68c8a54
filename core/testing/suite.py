"""The kit as a test class and as a command: all rules, a subject made once."""

import unittest
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from core.testing import computing, describing, masks, preparing, reading, viewing
from core.testing.rules import Finding, Kit, Rule
from core.testing.subject import Subject, sample_source, subject

RULES: tuple[Rule[Subject], ...] = (
    *describing.BOOK,
    *reading.BOOK,
    *viewing.BOOK,
    *computing.BOOK,
    *masks.BOOK,
    *preparing.BOOK,
)
"""All rules, in the order in which a plugin is written."""


class ModalityContract:
    """Base of a plugin's test: one test per rule. Name the plugin; override `source` if it brings no sample."""

    modality: ClassVar[str]
    """Name of the plugin under test."""
    recipe: ClassVar[str | None] = None
    """Recipe whose settings it is tested with; by default its demo."""
    rules: ClassVar[Sequence[Rule[Subject]]] = RULES
    _kit: ClassVar[Kit[Subject] | None] = None
    _folders: ClassVar[ExitStack] = ExitStack()

    def source(self, folder: Path) -> Path:
        """A small source, written into ``folder``: a few dozen items, some of them in groups."""
        return sample_source(self.modality, folder)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._kit = None
        for one in cls.rules:
            setattr(cls, f"test_{one.name.replace('-', '_')}", _test_of(one))

    def finding(self, name: str) -> Finding:
        """What becomes of the rule ``name``."""
        cls = type(self)
        if cls._kit is None:
            cls._folders = ExitStack()
            cls._kit = Kit(cls._folders.enter_context(subject(cls.modality, self.source, cls.recipe)), cls.rules)
        return cls._kit.finding(name)

    @classmethod
    def teardown_class(cls) -> None:
        """Remove what was written."""
        cls._folders.close()
        cls._kit = None


def _test_of(one: Rule[Subject]) -> Callable[[ModalityContract], None]:
    def test(self: ModalityContract) -> None:
        __tracebackhide__ = True
        found = self.finding(one.name)
        if found.status == "not run":
            raise unittest.SkipTest(found.text)
        assert found.status == "passed", str(found)

    test.__doc__ = one.says
    return test
