"""The process that finds a file to show what a model takes: ``python -P -m core.example FOLDER OUT``.

It takes the plugin's own small source, never anybody's data, and copies the smallest of its files that the model in
FOLDER answers to into the folder OUT, as ``example`` with its suffix. Where there is none it writes nothing. Plugins'
code runs here, and whoever starts it keeps passwords out of its environment.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from core.processes import die_with


def find(folder: Path, out: Path) -> Path | None:
    """Write the example of the model in ``folder`` into the folder ``out``; gives its path, None if there is none.

    Raises:
        UserError: if there is no model, its plugin is not installed, or it brings no small source.
    """
    from core.data.prepare import named_items
    from core.model.weights import recipe_of
    from core.records import read_model
    from core.registry import plugin_for
    from core.stages.answering import Answers, Sent
    from core.testing.subject import sample_source

    record = read_model(folder)
    answers = Answers(folder, "cpu", here=True)
    plugin = plugin_for(recipe_of(folder / record.weights), "evaluate")
    plugin.secret = b"example"
    with tempfile.TemporaryDirectory(prefix="maeflow-example-") as made:
        items = named_items(plugin, str(sample_source(record.modality, Path(made))))
        alone = [Path(item.path) for item in items if item.row is None and not item.parts]
        for file in sorted(set(alone), key=lambda path: (path.stat().st_size, path)):
            if answers([Sent(file.read_bytes(), file.name)])[0]["error"] is None:
                name = f"example{''.join(file.suffixes)}"
                return Path(shutil.copyfile(file, out / name))
    return None


def main(arguments: list[str]) -> int:
    """Write the example; gives the exit code."""
    find(Path(arguments[0]), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    import os

    die_with(os.getppid())
    sys.exit(main(sys.argv[1:]))
