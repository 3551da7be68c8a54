"""Where raw data are, as flows are told."""

from pathlib import Path

from core.config import Config


class DataSource(Config):
    """Somewhere raw data are."""

    path: str
    """A folder, a manifest, or a dataset saved by Hugging Face datasets; a private one by its public name."""
    weight: float = 1.0
    """How often each of its items appears in an epoch of pretraining, in the mean."""


def weighted(text: str, modality: str, home: Path) -> DataSource:
    """What ``PATH`` or ``PATH=WEIGHT`` of a command line means; a private path becomes its public name.

    Raises:
        UserError: if the source is not there, or its weight is no good.
    """
    from core.errors import UserError
    from flows.privacy import is_private, source_name

    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return DataSource(path=source_name(text, modality, home))
    try:
        value = float(weight)
    except ValueError:
        return DataSource(path=source_name(text, modality, home))
    if value <= 0:
        raise UserError(f"--data{'' if is_private(modality) else f' {text}'}: the weight must be above 0")
    return DataSource(path=source_name(path, modality, home), weight=value)


def anywhere(path: str | None) -> str | None:
    """A path as a worker finds it, which works in another folder; what is no path, such as a hub's name, stays."""
    if path is None or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().absolute())
