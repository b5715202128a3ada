"""`adjoined plan MODEL`: what would become of a model, without training it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import input_set_by, parse
from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from torch import nn

    from adjoined.report.figures import Figures
    from adjoined.slicing import Cost, SlicePlan

PURPOSE = "Show what would become of a model: channels, parameters and MACs of each layer in base and small network."


@dataclass(frozen=True)
class PlanOptions:
    """What to plan."""

    model: str
    """A name of ours, timm:NAME, torchvision:NAME, FILE.py:FUNCTION or package.module:FUNCTION."""
    alpha: float | list[float] = 4.0
    """The small network keeps about 1/alpha of each layer's channels; several values (2,4,8) plan a family."""
    compress: float | None = None
    """Wanted ratio of parameters, base to small, last linear layer left out; it chooses alpha."""
    keep: list[str] = field(default_factory=list)
    """Modules that stay at full width: names or patterns (conv1,layer1)."""
    round_to: int = 8
    """Widths of the small network are multiples of this, where the base network's allow it, channels."""
    input_size: int = 224
    """Height and width of the images, pixels."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 1000
    """Classes that the model tells apart."""
    model_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the model's constructor, as a YAML mapping."""
    all: bool = False
    """One row for each layer instead of one for each group of equal blocks."""
    json: bool = False
    """Print everything as JSON instead of tables."""
    out: str | None = None
    """File to save the slice plan in, as JSON."""

    @property
    def alphas(self) -> list[float]:
        """The factors of all small networks."""
        return self.alpha if isinstance(self.alpha, list) else [self.alpha]

    def __post_init__(self) -> None:
        """Check what only this command knows of; alpha and keep are checked where they are used."""
        for name in ("input_size", "channels", "classes"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise AdjoinedError("out of range", where=flag, expected="at least 1", got=getattr(self, name))
        several = len(self.alphas) > 1 and ("--compress" if self.compress else "--out" if self.out else "")
        if several or not self.alphas:
            raise AdjoinedError("needs one alpha", where=several or "--alpha", got=self.alphas, fix="Give one --alpha.")


def main(argv: Sequence[str]) -> None:
    """Plan and print."""
    (options,) = parse("plan", argv, PlanOptions, purpose=PURPOSE)
    import torch

    from adjoined.models import build
    from adjoined.slicing import cost_by_module, make_plan

    model = build(
        options.model,
        num_classes=options.classes,
        in_channels=options.channels,
        image_size=options.input_size,
        options=options.model_options,
    )
    example = torch.zeros(1, options.channels, options.input_size, options.input_size)
    settings: dict[str, Any] = {"keep": tuple(options.keep), "round_to": options.round_to}
    with input_set_by("--input-size and --channels"):
        plans = [make_plan(model, example, alpha=a, compress=options.compress, **settings) for a in options.alphas]
    if options.out:
        plans[0].save(options.out)
        print(f"plan saved: {options.out}", file=sys.stderr)
    networks = [model, *(plan.apply(model) for plan in plans)]
    costs = [cost_by_module(network, example) for network in networks]
    base, *smalls = _figures(plans, costs)
    if options.json:
        shape = list(example.shape[1:])
        told = {"model": options.model, "input": shape, "networks": [f.to_json() for f in (base, *smalls)]}
        print(json.dumps(told | {"plans": [plan.to_json() for plan in plans]}, indent=1))
    else:
        _print(options, networks, costs, plans, base, smalls)


def _figures(plans: Sequence[SlicePlan], costs: Sequence[dict[str, Cost]]) -> list[Figures]:
    from adjoined.report.figures import Figures

    names = ["small"] if len(plans) == 1 else [f"small α={plan.alpha:g}" for plan in plans]
    return [Figures.of(name, cost[""]) for name, cost in zip(["base", *names], costs, strict=True)]


def _print(
    options: PlanOptions,
    networks: Sequence[nn.Module],
    costs: Sequence[dict[str, Cost]],
    plans: Sequence[SlicePlan],
    base: Figures,
    smalls: Sequence[Figures],
) -> None:
    from adjoined.report.console import show
    from adjoined.report.figures import result_table
    from adjoined.report.plan import layers, plan_table

    alphas = ", ".join(f"{plan.alpha:.4g}" for plan in plans)
    title = f"{options.model} at {options.input_size} px, alpha {alphas}, widths in multiples of {options.round_to}" + (
        f", kept: {', '.join(options.keep)}" if options.keep else ""
    )
    table = plan_table(layers(networks, costs), plans, title=title, full=options.all)
    show(table, result_table(base, smalls))
