"""The four stages as plain functions: no server, no flow, no tracking service is needed to call them.

Each lives in the module of its name, ``from core.stages.pretrain import pretrain``; none is imported before it is
wanted, since preparing data should not wait for all that training needs.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def stage_function(name: str) -> Callable[..., Any]:
    """The function of stage ``name``: `prepare`, `pretrain`, `finetune` or `evaluate`."""
    function: Callable[..., Any] = getattr(import_module(f"core.stages.{name}"), name)
    return function
