"""The flags of a model that is not trained yet: its input, its classes, and how its small networks come about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import input_set_by
from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adjoined.slicing import SlicePlan


@dataclass(frozen=True)
class ModelOptions:
    """The model, and its small networks."""

    alpha: float | list[float] = 4.0
    """The small network keeps about 1/alpha of each layer's channels; several values (2,4,8) plan a family."""
    compress: float | None = None
    """Wanted ratio of parameters, base to small, last linear layer left out; it chooses alpha."""
    keep: list[str] = field(default_factory=list)
    """Modules that stay at full width: names or patterns (conv1,layer1)."""
    round_to: int = 8
    """Widths of the small network are multiples of this, where the base network's allow it, channels."""
    widths: dict[str, str] = field(default_factory=dict)
    """Widths of the channels that modules write, not 1/alpha: NAME=1/2 (a share) or NAME='24 channels', by commas."""
    input_size: int = 224
    """Height and width of the images, pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 1000
    """Classes that the model tells apart."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the model's constructor, as a YAML mapping."""

    @property
    def alphas(self) -> list[float]:
        """The factors of all small networks."""
        return self.alpha if isinstance(self.alpha, list) else [self.alpha]

    def __post_init__(self) -> None:
        """Check what is not checked where it is used, as alpha and keep are."""
        for name in ("input_size", "channels", "classes"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise AdjoinedError("out of range", where=flag, expected="at least 1", got=getattr(self, name))
        if not self.alphas or (self.compress and len(self.alphas) > 1):
            flag = "--compress" if self.compress else "--alpha"
            raise AdjoinedError("needs one alpha", where=flag, got=self.alphas, fix="Give one --alpha.")

    def build(self, spec: str) -> tuple[nn.Module, Tensor, list[SlicePlan]]:
        """Build a model and plan its small networks.

        Args:
            spec: the model, as `adjoined.models.build` takes it.

        Returns:
            The model, an input of zeros (1, C, H, W), and a plan for each small network.
        """
        import torch

        from adjoined.models import build
        from adjoined.slicing import make_plan

        model = build(
            spec,
            num_classes=self.classes,
            in_channels=self.channels,
            image_size=self.input_size,
            options=self.model_options,
        )
        example = torch.zeros(1, self.channels, self.input_size, self.input_size)
        settings: dict[str, Any] = {"keep": tuple(self.keep), "round_to": self.round_to, "widths": self.widths}
        with input_set_by("--input-size and --channels"):
            return (
                model,
                example,
                [make_plan(model, example, alpha=a, compress=self.compress, **settings) for a in self.alphas],
            )
