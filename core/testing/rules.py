"""What a rule of the contract is, and how rules are run one after another."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from core.errors import UserError

S = TypeVar("S")
Status = Literal["passed", "failed", "not run"]


class Broken(AssertionError):  # noqa: N818 - a finding about a plugin, not an error of the kit's.
    """A rule is broken; the text is what was seen."""


class NotApplicable(Exception):  # noqa: N818 - no error: there is nothing to check.
    """The source gives nothing to check this rule on; the text says what is missing."""


@dataclass(frozen=True)
class Rule(Generic[S]):
    """One thing that the engine relies on."""

    name: str
    """Short name, as people and tests spell it."""
    method: str
    """The method, file or setting of the plugin that it is about."""
    says: str
    """The rule, one sentence."""
    advice: str
    """What to do where it is broken."""
    check: Callable[[S], None]
    """Returns, or raises `Broken` or `NotApplicable`; any other error counts as broken."""
    needs: tuple[str, ...] = ()
    """Rules without which this one says nothing new."""


@dataclass(frozen=True)
class Finding:
    """What became of one rule."""

    rule: str
    method: str
    says: str
    status: Status
    text: str = ""
    """What was seen, or why it was not run."""
    advice: str = ""
    """What to do; empty unless it failed."""

    def __str__(self) -> str:
        return f"{self.method}: {self.says}\n  seen: {self.text}\n  do:   {self.advice}\n  rule: {self.rule}"


class Kit(Generic[S]):
    """Runs rules on one subject, each at most once, and those it needs before it."""

    def __init__(self, subject: S, rules: Iterable[Rule[S]]) -> None:
        self.subject = subject
        self.rules = {rule.name: rule for rule in rules}
        self._found: dict[str, Finding] = {}

    def findings(self) -> Iterator[Finding]:
        """One finding per rule, in order, as they come."""
        for name in self.rules:
            yield self.finding(name)

    def finding(self, name: str) -> Finding:
        """What becomes of the rule ``name``."""
        if name not in self._found:
            rule = self.rules[name]
            status, text = self._outcome(rule)
            advice = rule.advice if status == "failed" else ""
            self._found[name] = Finding(rule.name, rule.method, rule.says, status, text, advice)
        return self._found[name]

    def _outcome(self, rule: Rule[S]) -> tuple[Status, str]:
        for need in (name for name in rule.needs if name in self.rules):
            before = self.finding(need)
            if before.status == "failed" or before.text.startswith("waits for"):
                return "not run", f"waits for {need}"
        try:
            rule.check(self.subject)
        except NotApplicable as reason:
            return "not run", str(reason)
        except Broken as seen:
            return "failed", str(seen)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises is a finding
            return "failed", describe(error)
        return "passed", ""


def describe(error: BaseException) -> str:
    """An error in one line, with the place outside of the engine where it came from, if there is one."""
    if isinstance(error, UserError):
        return str(error)
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not Path(frame.filename).is_relative_to(ours)] or frames
    place = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{place}"


def named(function: Callable[[S], None]) -> str:
    """A rule's name from its function's: dashes for underscores."""
    return function.__name__.replace("_", "-")


class RuleBook(list[Rule[S]]):
    """Rules in the order in which they are written."""

    def rule(
        self, method: str, says: str, advice: str, *needs: str
    ) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
        """Decorator: the function checks the rule that ``says`` what holds for ``method``."""

        def add(function: Callable[[S], None]) -> Callable[[S], None]:
            self.append(Rule(named(function), method, says, advice, function, needs))
            return function

        return add
