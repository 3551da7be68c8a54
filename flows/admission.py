"""Which devices a stage gets, and when: stages that train wait for a GPU of their own, the others run beside them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.config import ComputeConfig
from core.errors import UserError
from core.request import StageName
from flows import console
from infra import devices
from infra.launchers import TOGETHER, Launcher, launcher_for

LEASE_SECONDS = 60.0
"""A slot whose holder is gone is free again after this long."""
TRY_SECONDS = 20.0
TELL_EVERY = 3


@contextmanager
def admitted(home: Path, stage: StageName, compute: ComputeConfig, *, served: bool) -> Iterator[Launcher]:
    """Inside, the stage may run by the launcher given; before, this waits, visibly, for as many GPUs as it needs.

    A slot in Prefect admits, where a server counts them; a lock per device in the home decides which one it is.
    """
    names = devices.device_names() if stage != "prepare" and compute.device in ("auto", "cuda") else ()
    if not names:
        yield launcher_for(stage, compute, devices.hidden())
        return
    out = console.current()
    with ExitStack() as held:
        count = (compute.processes or 1) if stage in TOGETHER else 1

        def admit() -> None:
            if served:
                _slot(held, count)

        taken = held.enter_context(devices.take(home, names, count, out.line, admit))
        out.line(f"{stage} runs on GPU {', '.join(taken.names)}")
        yield launcher_for(stage, compute, taken.environment, inherited=taken.descriptors)


def _slot(held: ExitStack, count: int) -> None:
    """Take slots; a server that cannot be asked holds nobody up, since the locks are there as well.

    Raises:
        UserError: if there will never be as many.
    """
    from infra.orchestrator import slot_name

    tries = 0
    while True:
        try:
            _never_more(count)
            held.enter_context(_leased(slot_name(), count))
        except TimeoutError:
            if tries % TELL_EVERY == 0:
                console.current().line(f"waiting for a GPU: all slots of {slot_name()} are taken")
            tries += 1
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - told, and left to the locks
            console.current().line(f"note: Prefect's slots cannot be asked for ({type(error).__name__})")
            return
        else:
            return


def _never_more(count: int) -> None:
    """Refuse what would be waited for in vain.

    Raises:
        UserError: if people have set the limit below ``count``.
    """
    from infra.orchestrator import slot_limit, slot_name

    limit = slot_limit()
    if limit is not None and count > limit:
        raise UserError(
            f"compute.processes asks for {count} GPUs, and Prefect's concurrency limit {slot_name()} is {limit}; lower "
            "the one or raise the other"
        )


@contextmanager
def _leased(name: str, count: int) -> Iterator[None]:
    """Slots for the time within; giving them back may fail, since they expire by themselves and the work is done."""
    from prefect.concurrency.sync import concurrency

    with ExitStack() as slots:
        slots.enter_context(concurrency(name, occupy=count, timeout_seconds=TRY_SECONDS, lease_duration=LEASE_SECONDS))
        given = slots.pop_all()
    try:
        yield
    finally:
        try:
            given.close()
        except Exception as error:  # noqa: BLE001 - told; the server is away
            console.current().line(f"note: Prefect was not told that a slot is free ({type(error).__name__})")
