"""Values out of JSON that others wrote, of the types they should have: nothing in such a file is believed unseen."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from core.errors import NotThis

FILE = "config.json"
SHOWN = 60
"""Most characters of a wrong value that are shown."""
MOST = 2**31
"""Above this no size is meant seriously."""


def inner(config: Mapping[str, Any], key: str, file: str = FILE) -> Mapping[str, Any]:
    """The object under ``key``; empty where there is none.

    Raises:
        NotThis: if it is something else.
    """
    found: Mapping[str, Any] = _given(config, key, {}, lambda value: isinstance(value, Mapping), "an object", file)
    return found


def word(config: Mapping[str, Any], key: str, default: str = "", file: str = FILE) -> str:
    """The text under ``key``, or ``default``.

    Raises:
        NotThis: if it is something else.
    """
    return str(_given(config, key, default, lambda value: isinstance(value, str), "text", file))


def whole(config: Mapping[str, Any], key: str, default: int, file: str = FILE) -> int:
    """The whole number under ``key``, 0 or more, or ``default``.

    Raises:
        NotThis: if it is something else.
    """
    return int(_given(config, key, default, lambda value: is_whole(value, 0, MOST), "a whole number", file))


def number(config: Mapping[str, Any], key: str, default: float, file: str = FILE) -> float:
    """The number under ``key``, or ``default``.

    Raises:
        NotThis: if it is something else.
    """
    return float(_given(config, key, default, is_number, "a number", file))


def numbers(config: Mapping[str, Any], key: str, file: str = FILE) -> tuple[float, ...]:
    """The numbers under ``key``, one of its own counting as a list of it; empty where there are none.

    Raises:
        NotThis: if it is something else.
    """
    found = _given(config, key, (), lambda value: all(map(is_number, _listed(value))), "a list of numbers", file)
    return tuple(float(value) for value in _listed(found))


def names(config: Mapping[str, Any], key: str, file: str = FILE) -> tuple[str, ...]:
    """The names under ``key``, a list of them or an object's values in their order; empty where there are none.

    Raises:
        NotThis: if it is something else.
    """
    several = (Mapping, list, tuple)
    found = _given(config, key, (), lambda value: isinstance(value, several), "a list of names", file)
    return tuple(str(name) for name in (found.values() if isinstance(found, Mapping) else found))


def _given(
    config: Mapping[str, Any], key: str, default: Any, right: Callable[[Any], bool], wanted: str, file: str
) -> Any:
    """What stands under ``key``, or ``default``; refused unless it is ``right``, which ``wanted`` puts into words."""
    found = config.get(key)
    if found is None:
        return default
    if not right(found):
        raise wrong(key, found, wanted, file)
    return found


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def is_whole(value: Any, least: int, most: int) -> bool:
    """Whether it is a whole number between ``least`` and ``most``; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MOST**2 and isfinite(value)


def wrong(key: str, found: Any, wanted: str, file: str = FILE) -> NotThis:
    """What is to be said of a value of another type."""
    text = repr(found)
    shown = text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
    return NotThis(f"its {file} says {key} {shown}, which should be {wanted}")
