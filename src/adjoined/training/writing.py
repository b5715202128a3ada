"""Writing one finished network into a run folder, and measuring it as it was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from adjoined.methods import TrainedNetwork
from adjoined.runs import NetworkResult, RunFolder
from adjoined.runs.networks import load_weights, rebuild, save_description, save_weights
from adjoined.training.evaluate import Scores
from adjoined.training.finite import NotFinite

Measure = Callable[[str, nn.Module], Scores]
"""Name of a network, and the network -> its scores on the validation images."""


def write_network(
    run: RunFolder,
    name: str,
    finished: TrainedNetwork,
    description: Mapping[str, Any],
    *,
    code: str | None,
    measure: Measure,
    measured_on: Mapping[str, Any],
) -> tuple[NetworkResult, Scores]:
    """Write weights and description of a network, rebuild it from these files, and measure what was rebuilt.

    The files are measured, not the network in memory: the files are what users get.

    Args:
        run: the folder.
        name: name of the network.
        finished: the network.
        description: weights, model and data for the JSON beside the weights.
        code: FILE.py:FUNCTION or package.module:FUNCTION, if the user's own code builds the base network.
        measure: measures the rebuilt network.
        measured_on: entries for the metrics in the JSON: images and device.

    Raises:
        AdjoinedError: the files cannot be written, or do not rebuild the network; `NotFinite` if the loss is not
            finite.
    """
    plan = None if finished.plan is None else finished.plan.to_json()
    content = {"name": name, **description, "plan": plan, "sha256": save_weights(finished.module, run.weights(name))}
    again = rebuild(content, where=run.description(name), model=code)
    load_weights(again, run.weights(name), content["sha256"])
    measured = measure(name, again)
    if not torch.tensor(measured.loss).isfinite():
        raise NotFinite("the finished network's loss is not finite", where=run.weights(name), got=measured.loss)
    parameters = sum(each.numel() for each in again.parameters())
    metrics = {**asdict(measured), **measured_on}
    save_description(run.description(name), {**content, "parameters": parameters, "metrics": metrics})
    nonzero = sum(int(each.count_nonzero()) for each in again.parameters()) if finished.sparse else None
    result = NetworkResult(
        name, parameters, measured.loss, nonzero=nonzero, path=run.weights(name), **measured.measures()
    )
    return result, measured
