"""Laws 1, 3 and 4: the joint network, its state, its gradients, and everything that wraps, copies or stores it."""

from __future__ import annotations

import copy
import io
import json
import pickle
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from zoo import Flattened, Residual, TwoGroups, images, lively, residual, torchvision_model

from adjoined import AdjoinedNetwork, SlicePlan, adjoin
from adjoined.network import private_names

X = images(6, 3, 8, 8)


def joint(alpha: float | tuple[float, ...] = 4, *, double: bool = False, keep: tuple[str, ...] = ()) -> AdjoinedNetwork:
    """The small residual network of the zoo, joined, with lively norms."""
    model = lively(residual(), X)
    model = model if double else model.float()
    return adjoin(model, X.to(next(model.parameters())), alpha=alpha, round_to=1, keep=keep)


def bitwise(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


# ---- law 1 ---------------------------------------------------------------------------------------------------------


def small_models() -> dict[str, tuple[nn.Module, int]]:
    torch.manual_seed(0)
    return {"residual": (residual(), 8), "two groups": (TwoGroups(), 8), "flattened": (Flattened(), 8)}
