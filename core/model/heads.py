"""What stands on top of the encoder. A classifier is pooling, norm and a linear layer, with timm's parameter names."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.config import ModelConfig
from core.model.mae import Encoder, mean_tokens
from core.model.patches import PatchSpec


class Head(Encoder):
    """An encoder with something on top that a task is learned with."""

    added: ClassVar[tuple[str, ...]]
    """What the names of parameters begin with that the encoder has not."""

    @abstractmethod
    def classify(self, x: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Logits (B, outputs, ...) in float32 of whole inputs (B, C, *input_shape)."""

    def load_encoder(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of a pretrained encoder of the same geometry; what was added to it stays as it is.

        Raises:
            ValueError: if a weight is missing, left over, or of another shape.
        """
        own = {name for name in self.state_dict() if not name.startswith(self.added)}
        given = {name: value for name, value in weights.items() if name in own or not name.startswith("norm.")}
        if missing := own - set(given):
            raise ValueError(f"encoder weights lack {sorted(missing)[:3]} ({len(missing)} in all)")
        if extra := set(given) - own:
            raise ValueError(f"encoder weights hold unknown {sorted(extra)[:3]} ({len(extra)} in all)")
        with torch.no_grad():
            self.load_state_dict(given, strict=False)


class Classifier(Head):
    """Encoder with a head; mean pooling normalises after pooling, as MAE's fine-tuning does."""

    added = ("head.", "fc_norm.")

    def __init__(self, spec: PatchSpec, config: ModelConfig, outputs: int, pool: str, drop_path: float = 0.0) -> None:
        super().__init__(spec, config, drop_path)
        if pool == "cls" and not config.cls_token:
            raise ValueError("pool 'cls' needs a model with a class token; use pool 'mean'")
        self.pool = pool
        if pool == "mean":
            self.fc_norm = nn.LayerNorm(config.width, eps=config.head_norm_eps or config.norm_eps)
            self.norm = nn.Identity()
        self.head = nn.Linear(config.width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def classify(self, x: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Logits (B, outputs) in float32 of whole inputs (B, C, *input_shape)."""
        tokens = self.norm(self.forward_tokens(self.spec.patchify(x), valid_BN=valid_BN))
        patches = tokens[:, self.prefix :]
        pooled = tokens[:, 0] if self.pool == "cls" else self.fc_norm(mean_tokens(patches, valid_BN))
        logits: Tensor = self.head(pooled)
        return logits.float()
