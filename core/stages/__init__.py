"""The four stages as plain functions: no server, no flow, no tracking service is needed to call them."""

from core.stages.evaluate import evaluate
from core.stages.finetune import finetune
from core.stages.prepare import prepare
from core.stages.pretrain import pretrain
from core.stages.work import Work

__all__ = ["Work", "evaluate", "finetune", "prepare", "pretrain"]
