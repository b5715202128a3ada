"""What is measured before a run starts, so that it resumes with the same networks: alpha for a time, and widths."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from adjoined.choices import Choice
from adjoined.commands.latency_flags import LatencyOptions
from adjoined.errors import AdjoinedError
from adjoined.settings import SEARCH, Settings

if TYPE_CHECKING:
    from adjoined.slicing import SlicePlan

MEASURED = "ADJOINED_MEASURED"
"""Environment variable in which the processes that a run starts find what the first one measured."""


def measure_first(settings: Settings, timing: LatencyOptions) -> tuple[Settings, list[Choice]]:
    """Return the settings with alpha and widths in place of what is measured, and these two as choices.

    Raises:
        AdjoinedError: the budget cannot be met, or several processes would each measure for themselves.
    """
    from adjoined.slicing import read_budget

    limits = read_budget(settings.budget) if settings.budget else ()
    timed, searched = any(limit.quantity == "ms" for limit in limits), settings.widths == SEARCH
    if not timed and not searched:
        return settings, []
    if os.environ.get("LOCAL_RANK", "0") != "0" and MEASURED in os.environ:
        return replace(settings, budget=None, **json.loads(os.environ[MEASURED])), []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AdjoinedError(
            "each process would measure for itself, and might choose another small network",
            where="--widths search" if searched else f"--budget {settings.budget!r}",
            fix="Add --dry-run in one process, and give the --alpha and --widths that it prints.",
        )
    within = f" within {settings.budget}" if settings.budget else ""
    how = f", measured {timing.in_words()}" if timed else ""
    if searched:
        from adjoined.training.searching import searched_plan

        plan = searched_plan(settings, timing.measure if timed else None)
        found = {"alpha": plan.alpha, "widths": dict(plan.widths)}
        told = ",".join(f"{name}={share}" for name, share in plan.widths.items())
        why = "found by search" if told else "the uniform network has the lowest loss"
        choices = [Choice("widths", told or "none", f"{why}{within}{how}")]
    else:
        plan = _fastest_enough(settings, timing)
        found, choices = {"alpha": plan.alpha}, []
    if settings.budget:
        choices.insert(0, Choice("alpha", plan.alpha, f"the largest small network{within}{how}"))
    os.environ[MEASURED] = json.dumps(found)
    return replace(settings, budget=None, **found), choices


def _fastest_enough(settings: Settings, timing: LatencyOptions) -> SlicePlan:
    """Return the plan of the largest small network within a budget that has milliseconds."""
    import torch

    from adjoined.slicing import Request, Slicer
    from adjoined.training.job import images_and_base

    images, model = images_and_base(settings, pretrained=False)
    info = images.info
    example = torch.zeros(1, info.channels, info.image_size, info.image_size)
    (plan,) = Slicer(model, example).plans(Request.of(settings), latency=timing.measure(example))
    return plan
