"""Writing finished networks into a run folder, and measuring them as they were written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from adjoined.data import ImageData
from adjoined.methods import TrainedNetwork
from adjoined.runs import NetworkResult, RunFolder
from adjoined.runs.answer import answer
from adjoined.runs.networks import load_weights, rebuild, save_description, save_weights
from adjoined.settings import Settings
from adjoined.training.evaluate import Scores
from adjoined.training.finite import NotFinite
from adjoined.training.job import model_recipe

Measure = Callable[[str, nn.Module], Scores]
"""Name of a network, and the network -> its scores on the validation images."""


def write_networks(
    run: RunFolder,
    finished: Mapping[str, TrainedNetwork],
    settings: Settings,
    images: ImageData,
    *,
    weights: str,
    measure: Measure,
    device: str,
) -> tuple[list[NetworkResult], int]:
    """Write weights and descriptions of networks, rebuild them from these files, and measure what was rebuilt.

    The files are measured, not the networks in memory: the files are what users get.

    Returns:
        The networks' results, and the number of images that they were measured on.

    Raises:
        AdjoinedError: the files cannot be written, or do not rebuild a network; `NotFinite` if a loss is not finite.
    """
    recipe = {"weights": weights, "model": model_recipe(settings, images), "data": images.info.to_json()}
    measured_on = {"measured_on": images.val_name, "device": device}
    written = [
        _write(run, name, network, recipe, settings.code, measure, measured_on) for name, network in finished.items()
    ]
    return [result for result, _ in written], written[0][1].images


def _write(
    run: RunFolder,
    name: str,
    finished: TrainedNetwork,
    description: Mapping[str, Any],
    code: str | None,
    measure: Measure,
    measured_on: Mapping[str, Any],
) -> tuple[NetworkResult, Scores]:
    plan = None if finished.plan is None else finished.plan.to_json()
    content = {"name": name, **description, "plan": plan, "sha256": save_weights(finished.module, run.weights(name))}
    again = rebuild(content, where=run.description(name), model=code)
    load_weights(again, run.weights(name), content["sha256"])
    if code is not None:
        content["answer"] = answer(again.eval(), content)
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
