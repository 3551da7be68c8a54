"""Commands that use finished models."""

from typing import Annotated

import typer

from flows.options import CheckpointOption, DebugOption, HomeOption, SourceOption, begin

app = typer.Typer()

MODEL = "Finished folder of the model, its record.json, or its name of 16 digits."
ModelArgument = Annotated[str, typer.Argument(help=MODEL)]
WorkOption = Annotated[
    list[str] | None, typer.Option("--set", help="How the work is done, such as compute.device=cpu. Repeatable.")
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", min=1, help="Records that go through the model at once; default: the recipe's.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what another request has left there.")]


@app.command()
def embed(
    data: SourceOption,
    out: Annotated[str, typer.Option("--out", help="Parquet file to write.")],
    model: Annotated[str | None, typer.Argument(help=f"{MODEL} Or give --checkpoint.")] = None,
    checkpoint: CheckpointOption = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="With --checkpoint: what data it is for.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="With --checkpoint: prepared data that give statistics.")
    ] = None,
    patches: Annotated[bool, typer.Option("--patches", help="Features of each patch, not of the whole.")] = False,
    set_: WorkOption = None,
    batch: BatchOption = None,
    overwrite: OverwriteOption = False,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Write what a pretrained encoder makes of new files: a row of features for each. Or what a checkpoint's makes."""
    root = begin(home, debug=debug)
    from flows.adopting import model_or_checkpoint
    from flows.applying import apply

    sets = set_ or []
    folder = model_or_checkpoint(model, checkpoint, recipe, sets, from_, root)
    if checkpoint:  # The others are its recipe's.
        sets = [one for one in sets if one.startswith(("compute.", "prepare.seconds_per_item="))]
    apply("embed", folder, data, out, root, sets=sets, batch=batch, patches=patches, overwrite=overwrite)


@app.command()
def predict(
    model: ModelArgument,
    data: SourceOption,
    out: Annotated[str, typer.Option("--out", help="Parquet file to write; a folder where the model gives masks.")],
    set_: WorkOption = None,
    batch: BatchOption = None,
    overwrite: OverwriteOption = False,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Write what a tuned model says of new files: classes with probabilities, numbers, or masks."""
    root = begin(home, debug=debug)
    from flows.applying import apply

    apply("predict", model, data, out, root, sets=set_ or [], batch=batch, overwrite=overwrite)


@app.command()
def export(
    model: ModelArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="timm, hf (transformers), safetensors, onnx, torch-export, or whose code is to load it: mae, mae_st, "
            "videomae, audiomae, monai.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Folder to write.")],
    with_decoder: Annotated[
        bool, typer.Option("--with-decoder", help="Of an encoder the decoder as well, where the format has room.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a finished model in the form of another tool, checked there, with a card and its preprocessing."""
    root = begin(home, debug=debug)
    from flows.exporting import export as write

    write(model, to, out, root, with_decoder=with_decoder, overwrite=overwrite)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Name of a registered model, such as maeflow-image-tiny.")],
    version: Annotated[str, typer.Argument(help="Version, or an alias that leads to one.")] = "candidate",
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Make a version of a registered model its champion; shows its test beside that of the champion before."""
    root = begin(home, debug=debug)
    from flows.promoting import champion

    champion(root, name, version)
