"""One machine's part of a stage: ``python -P -m infra.node REQUEST --nodes 2 --rank 0 --rendezvous HOST:PORT``.

Run alike on every machine, with a home that all of them see. A stage that is the work of one process runs on machine 0
alone. SIGTERM has all processes save and end. Exit codes are those of `core.launch`.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from core.config import ComputeConfig
from core.errors import StageError, StageLost, StagePreempted, UserError
from core.request import StageRequest
from infra.launchers import DONE, FAILED, LOST, STOPPED, TOGETHER, WRONG, Nodes, Watch, launcher_for


class _Told(BaseException):
    """This machine was told to stop."""


def main(arguments: list[str]) -> int:
    """Run this machine's part of the stage in the request file; gives the exit code."""
    given = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _tell)
    try:
        _run(given)
    except (_Told, StagePreempted):
        return STOPPED
    except (UserError, StageError) as error:
        print(f"error: {error}", flush=True)
        return WRONG if isinstance(error, UserError) else LOST if isinstance(error, StageLost) else FAILED
    return DONE


def _run(given: argparse.Namespace) -> None:
    request = StageRequest.model_validate_json(given.request.read_bytes())
    if request.stage not in TOGETHER and given.rank > 0:
        print(f"{request.stage} is the work of machine 0", flush=True)
        return
    compute = ComputeConfig.model_validate(request.recipe.get("compute", {}))
    if given.processes:
        compute = compute.model_copy(update={"processes": given.processes})
    nodes = Nodes(given.nodes, given.rank, given.rendezvous) if given.nodes > 1 else None
    if nodes and not nodes.rendezvous:
        raise UserError("several machines need --rendezvous, HOST:PORT of machine 0")
    launcher = launcher_for(request.stage, compute, {}, nodes=nodes)
    launcher.run(request, Watch(line=lambda line: print(line, flush=True)))


def _tell(*_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # It is being done; a second time would only cut it short.
    raise _Told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m infra.node", description=__doc__)
    parser.add_argument("request", type=Path, help="file with the stage's request")
    parser.add_argument("--nodes", type=int, default=1, help="machines that take part")
    parser.add_argument("--rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--rendezvous", default="", help="HOST:PORT of machine 0")
    parser.add_argument("--processes", type=int, help="processes on this machine; default: as the recipe says")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
