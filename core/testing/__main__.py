"""``python -P -m core.testing NAME [--data SRC] [--recipe NAME]``: one JSON line per rule, as they are checked."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from core.testing.rules import Kit
from core.testing.subject import subject
from core.testing.suite import RULES


def main(arguments: list[str]) -> int:
    """Check a plugin; gives 0 if no rule is broken, else 1."""
    parser = argparse.ArgumentParser(prog="core.testing", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--recipe")
    given = parser.parse_args(arguments)
    source = (lambda _: given.data.absolute()) if given.data else None
    broken = False
    with subject(given.name, source, given.recipe) as under_test:
        for finding in Kit(under_test, RULES).findings():
            broken |= finding.status == "failed"
            print(json.dumps(asdict(finding)), flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
