"""Every fault is caught by the rule meant for it, and by no other; the table of all of them is printed at the end."""

import sys
from pathlib import Path

import pytest

from core.testing.bystander import start
from core.testing.suite import RULES

sys.path.insert(0, str(Path(__file__).parent))
from broken_plugins import FAULTS, Fault, findings
from forking import Forker

SOUND = Fault("none", "")
PRIVATE = Fault("none, of private sources", "", "config.py", "revision=1,", "revision=1, private=True,")
ALONE = {"a crash on a bad file", "files in the order of the folder"}
"""Faults that show by the second process: for them it is started as for everyone. For the others a fork will do."""


@pytest.fixture(scope="module")
def forker():
    """Imports torch once for all faults."""
    one = Forker()
    yield one
    one.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught_by_its_rule_alone(fault, tmp_path, record_property, forker):
    found = findings(fault, tmp_path, RULES, start if fault.name in ALONE else forker.run)
    caught = [finding for finding in found if finding.status == "failed"]
    seen = caught[0].text if caught else "nothing"
    record_property("fault table", f"{fault.name:40s} {fault.rule:22s} {seen[:100]}")
    assert [finding.rule for finding in caught] == [fault.rule], [str(finding) for finding in caught]
    assert caught[0].method
    assert caught[0].text
    assert caught[0].advice


@pytest.mark.parametrize("sound", [SOUND, PRIVATE], ids=lambda fault: fault.name)
def test_the_same_plugin_without_a_fault_keeps_every_rule(sound, tmp_path):
    """Nor has a private one to hash anything by itself that the engine sees."""
    assert {finding.status for finding in findings(sound, tmp_path, RULES)} == {"passed"}


def test_every_rule_has_a_fault_that_only_it_catches():
    rules = {rule.name for rule in RULES}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 15
    assert {fault.rule for fault in FAULTS} == rules
