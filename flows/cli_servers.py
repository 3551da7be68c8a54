"""Commands that start servers or speak to them."""

import sys
from typing import Annotated

import typer

from flows.options import CheckpointOption, DebugOption, HomeOption, LabelledOption, SetOption, begin
from infra.settings import MLFLOW_PORT, PREFECT_PORT

app = typer.Typer()
DONE, FAILED = 0, 1
LAST = "default: the last one in this home"

PoolOption = Annotated[
    str | None, typer.Option("--pool", help="Prefect's work pool; default MAEFLOW_POOL, or maeflow.")
]


@app.command()
def up(
    home: HomeOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    prefect_port: Annotated[
        int | None, typer.Option("--prefect-port", help=f"Port of Prefect's server; {LAST}, or {PREFECT_PORT}.")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option("--mlflow-port", help=f"Port of MLflow's server; {LAST}, or {MLFLOW_PORT}.")
    ] = None,
    auth: Annotated[bool, typer.Option("--auth", help="Ask for a password; `maeflow access` shows it.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="Most runs at once.")] = None,
    pool: PoolOption = None,
    background: Annotated[bool, typer.Option("--background", help="Give the terminal back.")] = False,
    debug: DebugOption = False,
) -> None:
    """Start a Prefect server, an MLflow server and a worker on this machine, and watch over them."""
    root = begin(home, debug=debug)
    from flows.serving import start
    from infra import settings
    from infra.stack import Options, addresses

    options = Options(addresses(root, host, prefect_port, mlflow_port), auth, pool or settings.pool(), limit)
    start(root, options, background=background)


@app.command()
def status(home: HomeOption = None) -> None:
    """Say which servers run, where, and what they are doing."""
    root = begin(home)
    from flows.serving import show

    sys.exit(DONE if show(root) else FAILED)


@app.command()
def down(home: HomeOption = None) -> None:
    """Stop what `up` started; runs save first, and go on when they are triggered again."""
    root = begin(home)
    from infra.stack import down as stop

    stop(root, print)
    print("stopped")


@app.command()
def access(home: HomeOption = None) -> None:
    """Show the name and password that `up --auth` asks for."""
    root = begin(home)
    from core.errors import UserError
    from infra.access import read_access

    found = read_access(root)
    if found is None:
        raise UserError(f"nothing in {root} asks for a password; `maeflow up --auth` makes one up")
    print(f"{found.user}:{found.password}")


@app.command()
def env(home: HomeOption = None) -> None:
    """Print what Prefect's and MLflow's own commands need to find the servers, as `eval "$(maeflow env)"` takes it."""
    root = begin(home)
    from flows.serving import exports

    print(exports(root))


@app.command()
def worker(
    home: HomeOption = None,
    pool: PoolOption = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most runs at once.")] = None,
) -> None:
    """Carry runs on this machine for the servers that PREFECT_API_URL and MLFLOW_TRACKING_URI name."""
    root = begin(home)
    from flows.serving import work
    from infra import settings

    work(root, pool or settings.pool(), limit)


@app.command()
def deploy(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes: names or YAML files; default: all.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Source that forms begin with.")] = None,
    labelled: LabelledOption = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove deployments of recipes that are gone.")] = False,
    pool: PoolOption = None,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Register each recipe with Prefect: its pipeline, and each of its stages. Calling it again changes nothing."""
    root = begin(home, debug=debug)
    from infra import settings
    from infra.stack import join_or_refuse

    join_or_refuse(root)
    from flows.deploying import deploy as register

    register(root, recipes or [], data or [], labelled, pool or settings.pool(), prune=prune)


@app.command()
def trigger(
    deployment: Annotated[str, typer.Argument(help="FLOW/NAME as `maeflow deploy` lists it, such as image/tiny.")],
    data: Annotated[list[str] | None, typer.Option("--data", help="Raw data; SRC=0.5 weighs it.")] = None,
    labelled: LabelledOption = None,
    from_: Annotated[str | None, typer.Option("--from", help="Of a stage: folder of the stage before.")] = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow its log; the exit code is the run's.")] = False,
    home: HomeOption = None,
    debug: DebugOption = False,
) -> None:
    """Start a run of a deployment; what is wrong with the request is said before anything starts."""
    root = begin(home, debug=debug)
    from infra.stack import join_or_refuse

    join_or_refuse(root)
    from flows.triggering import trigger as start

    good = start(root, deployment, data or [], labelled, from_, set_ or [], checkpoint=checkpoint, watch=watch)
    sys.exit(DONE if good else FAILED)


@app.command()
def source(
    modality: Annotated[str, typer.Argument(help="Name of the modality that reads it.")],
    path: Annotated[str, typer.Argument(help="Folder, file, manifest or saved dataset.")],
    home: HomeOption = None,
) -> None:
    """Say what a source is called in forms: a path, or the public name of a private one."""
    root = begin(home)
    from flows.privacy import discretion, source_name

    with discretion(modality):
        print(source_name(path, modality, root))
