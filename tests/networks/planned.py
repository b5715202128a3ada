"""Models whose plans, together, have every kind of entry: sizes, groups, tied and raw parameters, unreached parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

import constructs
from zoo import Concatenated, Flattened, Residual, TwoGroups

PLANNED: list[Callable[[], nn.Module]] = [
    Residual, Flattened, TwoGroups, Concatenated, constructs.SplitSizes, constructs.GroupNorm,
    constructs.TiedParameters, constructs.RawParameters, constructs.AuxiliaryHead,
]  # fmt: skip
