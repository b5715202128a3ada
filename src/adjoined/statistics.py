"""Running statistics of batch norms, measured again at the end of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from adjoined.errors import AdjoinedError
from adjoined.slicing import Inputs


def measure_statistics(
    networks: Sequence[nn.Module], runs: Sequence[Callable[..., Any]], batches: Iterable[Any]
) -> int:
    """Replace the running statistics of several networks' norms by means over batches, all with the same weight.

    Args:
        networks: the modules that hold the norms; tensors that they share with others need not be in them.
        runs: functions that run each of them on a batch.
        batches: as in `AdjoinedNetwork.measure_statistics`.

    Returns:
        The number of images used.

    Raises:
        AdjoinedError: there is no batch, or one on which a norm cannot be measured; all statistics are unchanged then.

    Source: `torch.optim.swa_utils.update_bn`, for networks that are not called as `network(batch)`.
    """
    norms = [each for network in networks for each in network.modules() if isinstance(each, _NormBase)]
    norms = [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]
    images = 0
    if not norms:
        return images
    device = next(buffer.device for norm in norms for buffer in norm.buffers())
    with _measuring(networks, norms), torch.no_grad():
        for number, batch in enumerate(batches):
            inputs = _inputs_of(batch).map(lambda tensor: tensor.to(device, non_blocking=True))
            for norm in norms:  # instance norms have no cumulative average of their own
                norm.momentum = None if isinstance(norm, nn.modules.batchnorm._BatchNorm) else 1 / (number + 1)
            for run in runs:
                try:
                    run(*inputs.args, **inputs.kwargs)
                except ValueError as error:  # torch's, for one value per channel
                    raise AdjoinedError(
                        f"the batch norms cannot be measured on this batch: {error}",
                        where=f"batch {number}",
                        expected="at least two values for each channel",
                        fix="Use larger batches, and drop an incomplete last one (drop_last=True).",
                    ) from error
            images += inputs.batch_size
        if not images:
            raise AdjoinedError("no batch to measure the statistics on", where="batches", expected="at least one image")
    return images


@contextmanager
def _measuring(networks: Sequence[nn.Module], norms: Sequence[_NormBase]) -> Iterator[None]:
    """Reset the norms and put them alone in train mode; restore modes and momentum afterwards.

    After an exception, the statistics are restored, too.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    before = [(norm, norm.momentum, [(buffer, buffer.clone()) for buffer in norm.buffers()]) for norm in norms]
    try:
        for network in networks:
            network.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in (pair for _, _, buffers in before for pair in buffers):
                buffer.copy_(value)
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum, _ in before:
            norm.momentum = momentum


def _inputs_of(batch: Any) -> Inputs:
    """Return the network's inputs in a batch of a data loader."""
    if isinstance(batch, (list, tuple)) and batch:
        batch = batch[0]
    return Inputs.of(batch)
