"""Running statistics of batch norms, measured after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset, IterableDataset

from adjoined.errors import AdjoinedError
from adjoined.slicing import Inputs, check_arguments, evaluating

_TAKES_STATISTICS = (F.batch_norm, F.instance_norm, F.group_norm)


def measure_statistics(
    networks: Sequence[nn.Module], runs: Sequence[Callable[..., Any]], batches: Iterable[Any]
) -> int:
    """Replace the running statistics of several networks' norms with means over batches of equal weight.

    Args:
        networks: the modules that hold the norms; tensors that they share with others need not be in them.
        runs: functions that run each of them on a batch.
        batches: as in `AdjoinedNetwork.measure_statistics`.

    Returns:
        The number of images used.

    Raises:
        AdjoinedError: `batches` is empty, a norm cannot be measured on one of them, or the results are not finite. The
            networks then keep their old statistics.

    Source: `torch.optim.swa_utils.update_bn`, for networks that are not called as `network(batch)`.
    """
    norms, images = running_norms(networks), 0
    single = isinstance(batches, Dataset) and not isinstance(batches, IterableDataset)
    if single or isinstance(batches, torch.Tensor) or not isinstance(batches, Iterable):
        raise AdjoinedError(
            "not batches of images",
            where="batches",
            expected="an iterable of batches",
            got=type(batches).__name__,
            fix="Pass a data loader, or a list of batches.",
        )
    if not norms:
        return images
    device = next(buffer.device for norm in norms for buffer in norm.buffers())
    with _measuring(networks, norms), torch.no_grad():
        for number, batch in enumerate(batches):
            if isinstance(batch, (list, tuple)) and batch:  # as data loaders return them: the images come first
                batch = batch[0]
            inputs = Inputs.of(batch, f"batch {number}").map(lambda tensor: tensor.to(device, non_blocking=True))
            check_arguments(networks[0], inputs, f"batch {number}", "Pick the model's own arguments from each batch.")
            for norm in norms:  # instance norms have no cumulative average of their own
                norm.momentum = None if isinstance(norm, nn.modules.batchnorm._BatchNorm) else 1 / (number + 1)
            for run in runs:
                again = partial(run, *inputs.args, **inputs.kwargs)
                try:
                    again()
                except ValueError as error:
                    if one_value_per_channel(again) is None:
                        raise
                    raise AdjoinedError(
                        f"the batch norms cannot be measured on this batch: {error}",
                        where=f"batch {number}",
                        expected="at least two values for each channel",
                        fix="Use larger batches, and drop an incomplete last one (drop_last=True).",
                    ) from error
            images += inputs.batch_size
        if not images:
            raise AdjoinedError("no batch to measure the statistics on", where="batches", expected="at least one image")
        if not all(bool(buffer.isfinite().all()) for norm in norms for buffer in norm.buffers()):
            raise AdjoinedError(
                "the measured statistics are not finite",
                where="batches",
                expected="finite images and weights",
                fix="Look for NaN and infinite values in the images and in the weights.",
            )
    return images


def running_norms(networks: Iterable[nn.Module]) -> list[_NormBase]:
    """Return the norms of several networks that have running statistics."""
    norms = (each for network in networks for each in network.modules() if isinstance(each, _NormBase))
    return [norm for norm in norms if norm.running_mean is not None]


@contextmanager
def _measuring(networks: Sequence[nn.Module], norms: Sequence[_NormBase]) -> Iterator[None]:
    """Reset the norms and put them alone in train mode; restore modes and settings afterwards.

    After an exception, the statistics are restored, too.
    """
    settings = [(norm, norm.momentum, norm.track_running_stats) for norm in norms]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    with evaluating(*networks):
        try:
            for norm in norms:
                norm.train()
                norm.track_running_stats = True  # a frozen norm may keep its statistics, and still use them
                norm.reset_running_stats()
            yield
        except BaseException:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            raise
        finally:
            for norm, momentum, tracked in settings:
                norm.momentum, norm.track_running_stats = momentum, tracked


def one_value_per_channel(step: Callable[[], object]) -> tuple[int, ...] | None:
    """Rerun a failed step, and return the shape of a norm's input with one value per channel, if there is one.

    Args:
        step: a forward pass in training mode.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> one_value_per_channel(lambda: norm(torch.zeros(1, 3, 1, 1)))
        (1, 3, 1, 1)
        >>> one_value_per_channel(lambda: norm(torch.zeros(2, 3, 1, 1)))
    """
    watch = _Watch()
    try:
        with watch:
            step()
    except Exception:
        return watch.found
    return None


class _Watch(TorchFunctionMode):
    """Remember the last input of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TAKES_STATISTICS:
            x = args[0]
            per_channel = x.numel() // x.shape[1] if x.ndim > 1 else x.numel()
            per_channel //= x.shape[0] if func is F.instance_norm else 1
            if func is F.group_norm:
                groups = args[1] if len(args) > 1 else kwargs["num_groups"]
                per_channel = x.numel() // groups
            self.found = tuple(x.shape) if per_channel == 1 else None
        return func(*args, **(kwargs or {}))
