"""`adjoined.save`: networks from your own training loop, as a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from adjoined.data import open_data
from adjoined.errors import AdjoinedError, usage
from adjoined.method_settings import SmallSettings
from adjoined.methods import TrainedNetwork
from adjoined.methods.joint import named
from adjoined.network import AdjoinedNetwork
from adjoined.report.result import figures_from, keep_figures
from adjoined.runs import RunFolder, RunResult, StageCost
from adjoined.runs.finished import with_networks
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan, without_wrappers
from adjoined.training.evaluate import Scores, evaluate
from adjoined.training.finite import NotFinite, not_finite_in
from adjoined.training.job import as_expected
from adjoined.training.writing import write_networks

OWN_LOOP = "own training loop"
"""The only stage of such a run; its duration is unknown."""


@usage('save(net, "runs/mine", model="resnet20", data="folder:photos")')
def save(
    network: nn.Module,
    folder: str | os.PathLike[str],
    *,
    model: str,
    data: str,
    plan: SlicePlan | None = None,
    **settings: Any,
) -> RunResult:
    """Save trained networks as a run folder, which `load` and all commands accept, and measure their accuracy.

    Args:
        network: the joint network, compiled, averaged or as it is, or a small network that `extract` returned, with its
            `plan`; it is not changed.
        folder: the run folder, new or empty.
        model: how the base network is built, as for `adjoined train --model`: a built-in name, timm:NAME,
            torchvision:NAME, or FILE.py:FUNCTION for your own code.
        data: the images, as for `adjoined train --data`; the networks are measured on their validation part.
        plan: the slice plan of a small network that is saved alone.
        settings: further settings of model and data by their names in `adjoined.settings.Settings`, such as
            `image_size`, `model_options` or `data_root`; `pretrained=True` normalises the images as the model's
            pretrained weights expect, without loading these.

    Returns:
        The networks' files, sizes and accuracies on the validation images.

    Raises:
        AdjoinedError: a setting is unknown or of another type, a weight is not finite, the folder is not empty, the
            data are missing or damaged, `model` builds another network, or `network` is neither a joint network nor a
            small one with its plan. Nothing is left in the folder then.

    Example:
        >>> from adjoined import adjoin
        >>> from adjoined.models import build
        >>> net = adjoin(build("resnet8", num_classes=10, in_channels=1), torch.zeros(1, 1, 8, 8), alpha=4)
        >>> result = save(net, "runs/mine", model="resnet8", data="digits")  # usually after training
        >>> [(each.name, each.parameters) for each in result.networks], result.images
        ([('base', 77754), ('small', 6386)], 359)
    """
    Settings.check_names(settings, "save()")
    if sliced := sorted(settings.keys() & {each.name for each in fields(SmallSettings)}):
        raise AdjoinedError(
            "the network's slice plan says how it was sliced", where=f"save(), {sliced[0]}", fix="Leave it out."
        )
    run = RunFolder(folder)
    finished = _finished(network, plan)
    _check_weights(finished)
    values = {**_as_sliced([each.plan for each in finished.values() if each.plan is not None]), **settings}
    given = {name: os.fspath(each) if isinstance(each, os.PathLike) else each for name, each in values.items()}
    known = Settings.from_dict({"model": model, "data": data, **given}, "save()").anchored()
    with run.opened(known, resume=False):
        first = next(iter(finished.values()))
        images = as_expected(open_data(known.data_settings()), first.module, known)
        images.check()
        run.begin(known)
        run.keep_data(images)

        def measure(_: str, module: nn.Module) -> Scores:
            return evaluate(module, images.val_loader(), images.info.num_classes, task=images.info.task)

        networks, count = write_networks(
            run, finished, known, images, weights="last", measure=measure, device="cpu", compare=True
        )
        for name, each in finished.items():
            if each.plan is not None:
                each.plan.save(run.plan(name))
        result = RunResult(
            folder=run.path,
            networks=tuple(networks),
            epochs=0,
            seconds=0.0,
            images=count,
            val_name=images.val_name,
            weights="last",
            stages=(StageCost(OWN_LOOP, 0, None, 0.0),),
        )
        loaded = with_networks(run.path, run.path, result, known.code)
        keep_figures(result, figures_from(loaded), run.path)
        run.finish(result.to_json())
    return result


def _as_sliced(plans: Sequence[SlicePlan]) -> dict[str, Any]:
    """Return the settings with which `adjoined train` would slice as these plans do."""
    first, alphas = plans[0], [plan.alpha for plan in plans]
    alpha: Any = alphas if len(alphas) > 1 else alphas[0]
    return {"alpha": alpha, "round_to": first.round_to, "keep": list(first.keep), "widths": dict(first.widths) or None}


def _check_weights(finished: Mapping[str, TrainedNetwork]) -> None:
    for name, each in finished.items():
        if any(tensor.is_meta for tensor in (*each.module.parameters(), *each.module.buffers())):
            fix = "Move it with to_empty() and load its weights."
            raise AdjoinedError("a network on the meta device has no weights", where=name, fix=fix)
        if bad := not_finite_in({"state_dict": dict(each.module.named_parameters())}):
            raise NotFinite(
                "the weights are not finite",
                where=f"{name}, {bad}",
                expected="no NaN and no infinity",
                fix="Save the networks of an earlier epoch.",
            )


@torch.no_grad()
def _finished(network: nn.Module, plan: SlicePlan | None) -> dict[str, TrainedNetwork]:
    """Return the networks to write, the base first."""
    network = without_wrappers(network)
    if isinstance(network, AdjoinedNetwork):
        modules = [network.base, *(network.extract(which) for which in range(len(network.plans)))]
        pairs = zip(modules, (None, *network.plans), strict=True)
        return named([TrainedNetwork(module, each) for module, each in pairs])
    if isinstance(network, nn.Module) and isinstance(plan, SlicePlan):
        return {"small": TrainedNetwork(network, plan)}
    raise AdjoinedError(
        "a small network alone does not show how it was sliced from its base",
        where="adjoined.save",
        expected="the joint network, or a small network with plan=net.plan",
        got=type(network).__name__,
        fix="Pass its attribute `module`." if isinstance(getattr(network, "module", None), AdjoinedNetwork) else "",
    )
