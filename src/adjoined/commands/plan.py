"""`adjoined plan MODEL`: the small networks of a model, without training it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from adjoined.commands.flags import parse
from adjoined.commands.latency_flags import LatencyOptions
from adjoined.commands.model_flags import ModelOptions
from adjoined.commands.options import AsJson
from adjoined.commands.streams import print_json
from adjoined.errors import AdjoinedError
from adjoined.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adjoined.slicing import SlicePlan

PURPOSE = "Plan the small networks of a model: channels, parameters and MACs of each layer, next to the base network's."


@dataclass(frozen=True, kw_only=True)
class PlanOptions(AsJson):
    """What to plan."""

    model: str
    """A built-in name, timm:NAME, torchvision:NAME, FILE.py:FUNCTION or package.module:FUNCTION."""
    all: bool = False
    """One row per layer instead of one per group of equal blocks."""
    out: str | None = None
    """File for the slice plan, as JSON."""


def main(argv: Sequence[str]) -> None:
    """Plan and print."""
    options, asked, timing = parse("plan", argv, PlanOptions, ModelOptions, LatencyOptions, purpose=PURPOSE)
    timing.check_use(asked.budget, shown=True)
    from adjoined.report.console import show
    from adjoined.report.figures import Figures, result_table
    from adjoined.report.plan import alpha_table, layers, plan_table
    from adjoined.runs.hub import out_path
    from adjoined.slicing import cost_by_module

    if options.out:
        if len(asked.alphas) > 1:
            raise AdjoinedError("needs one alpha", where="--out", got=asked.alphas, fix="Give one --alpha.")
        check_writable(out_path(options.out, "a plan"))  # now, not after minutes of measuring
    model, example, plans, slicer = asked.build(options.model, timing.measure)
    if options.out:
        plans[0].save(options.out)
        show(f"plan saved: {options.out}", file=sys.stderr)
    networks = [model, *(plan.apply(model) for plan in plans)]
    costs = [cost_by_module(network, example) for network in networks]
    names = ["base", *(["small"] if len(plans) == 1 else [f"small α={plan.alpha:g}" for plan in plans])]
    base, *smalls = (Figures.of(name, cost[""]) for name, cost in zip(names, costs, strict=True))
    checks, others = slicer.checks, asked.others(slicer)
    times = _times(model, example, others, timing) if timing.asked else None
    if options.json:
        shape = list(example.shape[1:])
        content = {"model": options.model, "input": shape, "networks": [asdict(each) for each in (base, *smalls)]}
        content["alphas"] = [{"alpha": each.alpha, **asdict(each.cost)} for each in others if each.cost is not None]
        if times is not None:
            content["milliseconds"] = times
        content["checks"] = [asdict(check) for check in checks]
        print_json(content | {"plans": [plan.to_json() for plan in plans]})
    else:
        checked = "\n".join(f"{small.name}: {check}" for small, check in zip(smalls, checks, strict=True))
        title = _title(options, asked, example.shape[-1], plans)
        show(
            plan_table(layers(networks, costs), plans, title=title, full=options.all),
            result_table(base, smalls),
            checked,
            alpha_table(costs[0][""], others, times, measured=timing.in_words()),
        )


def _times(model: nn.Module, example: Tensor, plans: Sequence[SlicePlan], timing: LatencyOptions) -> list[float]:
    """Return the milliseconds of the base network and of every small one."""
    measure = timing.measure(example)
    return [measure(network) for network in (model.eval(), *(plan.apply(model).eval() for plan in plans))]


def _title(options: PlanOptions, asked: ModelOptions, size: int, plans: Sequence[SlicePlan]) -> str:
    alphas = ", ".join(f"{plan.alpha:.4g}" for plan in plans)
    kept = f", kept: {', '.join(asked.keep)}" if asked.keep else ""
    order = f", channels ordered by {asked.order}" if asked.order else ""
    return f"{options.model} at {size} px, alpha {alphas}, widths in multiples of {asked.round_to}{kept}{order}"
