"""The moving average of the weights, on Lightning's weight averaging."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """Average parameters and buffers over the steps; validation and the finished networks use the average.

    After n steps the decay is min(decay, (1 + n) / (10 + n)): the average follows closely at first, so that a short
    run does not keep its random initial weights.

    Args:
        decay: fraction of the average kept in each step, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._blend)
        self.decay = decay
        self._step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Update after every optimizer step."""
        if step_idx is not None:
            self._step = step_idx
        return step_idx is not None

    def _blend(self, averages: Any, current: Any, count: Tensor | int) -> None:
        decay = min(self.decay, (1 + self._step) / (10 + self._step))
        get_ema_multi_avg_fn(decay)(averages, current, count)
