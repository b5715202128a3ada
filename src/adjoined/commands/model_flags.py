"""The flags of an untrained model: its input, its classes and its small networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import input_set_by
from adjoined.commands.option_fields import flag_of
from adjoined.errors import AdjoinedError, check_range
from adjoined.method_settings import SmallSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adjoined.slicing import Latency, SlicePlan, Slicer


USUAL_ALPHAS = (2.0, 4.0, 8.0, 16.0)
"""The alphas that `adjoined plan` compares."""
_MOST = {"input_size": 4096, "channels": 4096, "classes": 1 << 22}
"""Larger networks and inputs may not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SmallSettings):
    """The model."""

    input_size: int | None = None
    """Height and width of the images, pixels; none: the model's own."""
    channels: int | None = None
    """Channels of the images; none: the model's own."""
    classes: int | None = None
    """Number of classes; none: the model's own."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Additional arguments for the model's constructor, as a YAML mapping."""

    def __post_init__(self) -> None:
        """Check the flags that are not checked where they are used."""
        super().__post_init__()
        for name, most in _MOST.items():
            value = getattr(self, name)
            check_range(value is None or 1 <= value <= most, flag_of(name), f"1 to {most}", value)
        if not self.alphas:
            raise AdjoinedError("needs one alpha", where="--alpha", got=[])

    def build(
        self, spec: str, latency: Callable[[Tensor], Latency] | None = None, *, check: bool = True
    ) -> tuple[nn.Module, Tensor, list[SlicePlan], Slicer]:
        """Build a model and plan its small networks.

        Args:
            spec: the model, as `adjoined.models.build` takes it.
            latency: an example input -> the function that measures a candidate, for a budget in milliseconds.
            check: whether the small networks are compared with the masked base.

        Returns:
            The model, an input of zeros (1, C, H, W), a plan for each small network, and the slicer with their checks.
        """
        import torch

        from adjoined.models import build, usual_input
        from adjoined.slicing import Request, Slicer

        usual = usual_input(spec)
        channels, size = self.channels or usual.channels, self.input_size or usual.size
        model = build(
            spec,
            num_classes=self.classes or usual.classes,
            in_channels=channels,
            image_size=size,
            options=self.model_options,
        )
        example = torch.zeros(1, channels, size, size)
        with input_set_by("--input-size and --channels"):
            slicer = Slicer(model, example)
            plans = slicer.plans(Request.of(self), latency=latency(example) if latency else None, check=check)
        return model, example, plans if self.order is None else slicer.reorder(plans, self.order), slicer

    def others(self, slicer: Slicer) -> list[SlicePlan]:
        """Return plans for the usual alphas, as far as the model's layers have enough channels for them.

        They are not checked, but stay wide where the slicer's checks have found that they have to.
        """
        from adjoined.slicing import AlphaTooLarge, Request

        found: list[SlicePlan] = []
        for alpha in USUAL_ALPHAS:
            try:
                found += slicer.plans(Request.of(replace(self, alpha=alpha, compress=None, budget=None)), check=False)
            except AlphaTooLarge:
                break
        return found
