"""Options that several commands of the command line share, and what each begins with."""

import os
from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    str | None, typer.Option("--home", help="Folder for everything; default MAEFLOW_HOME, or .maeflow.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a recipe value: key.key=value. Repeatable.")]
LabelledOption = Annotated[
    str | None, typer.Option("--labelled", help="Labelled data; default: those of the first --data.")
]
PreparedOption = Annotated[str | None, typer.Option("--labelled", help="Folder of labelled prepared data.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Raw data: folder, manifest or saved dataset, or a file where the modality reads one; SRC=0.5 weighs it.",
    ),
]
SourceOption = Annotated[
    str, typer.Option("--data", help="Folder, manifest or saved dataset; a file where the modality reads one.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", help="Weights of others: a file, a folder, a hub's owner/name, or one of timm's names."
    ),
]
RecipeArgument = Annotated[str, typer.Argument(help="A packaged recipe such as image/tiny, or a YAML file.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and Prefect's own log.")]


def begin(home: str | None, *, debug: bool = False) -> Path:
    """Settings of the process; the home folder, made if absent."""
    from core.workspace import Home
    from infra import settings

    root = settings.home_folder(home)
    if debug:
        os.environ["MAEFLOW_DEBUG"] = "1"
    settings.apply(root, verbose=debug)
    Home.create(root)
    return root
