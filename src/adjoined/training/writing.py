"""Writing finished networks into a run folder, and measuring them as they were written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from torch import nn

from adjoined.data import ImageData
from adjoined.methods import TrainedNetwork
from adjoined.runs import NetworkResult, RunFolder
from adjoined.runs.answer import answer, check_rebuilt
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
    compare: bool = False,
) -> tuple[list[NetworkResult], int]:
    """Write weights and descriptions of networks, rebuild them from these files, and measure what was rebuilt.

    The files are measured, not the networks in memory: the files are what users get.

    With `compare`, a network of the user's own code must also compute what it computes in memory.

    Returns:
        The networks' results, and the number of images that they were measured on.

    Raises:
        AdjoinedError: the files cannot be written, or do not rebuild a network; `NotFinite` if a loss is not finite.
    """
    recipe = {"weights": weights, "model": model_recipe(settings, images), "data": images.info.to_json()}
    measured_on = {"measured_on": images.val_name, "device": device}
    results, count = [], 0
    for name, network in finished.items():
        path, place = run.weights(name), run.description(name)
        plan = None if network.plan is None else network.plan.to_json()
        content: dict[str, Any] = {"name": name, **recipe, "plan": plan, "sha256": save_weights(network.module, path)}
        again = rebuild(content, where=place, model=settings.code)
        load_weights(again, path, content["sha256"])
        if settings.code is not None:
            content["answer"] = answer(again.eval(), content)
            if compare:
                check_rebuilt(network.module, content, place)
        measured = measure(name, again)
        if not isfinite(measured.loss):
            raise NotFinite("the finished network's loss is not finite", where=path, got=measured.loss)
        count, parameters = measured.images, sum(each.numel() for each in again.parameters())
        metrics = {**asdict(measured), **measured_on}
        save_description(place, {**content, "parameters": parameters, "metrics": metrics})
        nonzero = sum(int(each.count_nonzero()) for each in again.parameters()) if network.sparse else None
        figures: dict[str, Any] = {"nonzero": nonzero, "path": path, **measured.measures()}
        results.append(NetworkResult(name, parameters, measured.loss, **figures))
    return results, count
