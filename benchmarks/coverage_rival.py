"""The same models under Torch-Pruning, for the last column of the coverage table (`pip install torch-pruning`)."""

from __future__ import annotations

import time
from typing import Any

import torch
from coverage_models import Subject
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adjoined.slicing import Inputs


def measure_rival(subject: Subject, alpha: float) -> dict[str, Any]:
    """Return the result of Torch-Pruning on a model: parameters left, seconds, or the error.

    L1 importance, one ratio of 1 - 1/alpha for every layer, the model's last layers left alone, as its examples do;
    the pruned model must run and return the shapes that the model returned.
    """
    torch.manual_seed(0)
    model, inputs = subject.build().eval(), Inputs.of(subject.example())
    before = sum(p.numel() for p in model.parameters())
    found: dict[str, Any] = {}
    start = time.process_time()
    try:
        expected = _shapes(model, inputs)
        _prune(model, inputs, alpha)
        found["seconds"] = round(time.process_time() - start, 2)
        found["result"] = "ok" if _shapes(model, inputs) == expected else "other output shapes"
        found["left"] = round(sum(p.numel() for p in model.parameters()) / before, 4)
    except Exception as error:  # the table shows whatever goes wrong
        found = {"result": "failed", "error": f"{type(error).__name__}: {str(error)[:200]}"}
        found["seconds"] = round(time.process_time() - start, 2)
    return {"model": subject.name, f"alpha {alpha:g}": found}


def _prune(model: nn.Module, inputs: Inputs, alpha: float) -> None:
    import torch_pruning as tp

    def first(outputs: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

    pruner = tp.pruner.MetaPruner(
        model,
        inputs.kwargs or inputs.args,  # pyright: ignore[reportArgumentType]  (a tuple of arguments, it says)
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=1 - 1 / alpha,
        ignored_layers=_last_layers(model, inputs),
        output_transform=lambda out: sum(t.sum() for t in first(out)),
    )
    pruner.step()


def _last_layers(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Return the layers whose outputs are the model's outputs: they must not be narrowed."""
    made: dict[tuple[int, ...], nn.Module] = {}
    hooks = [
        module.register_forward_hook(lambda module, _, out: made.__setitem__(tuple(out.shape), module))
        for module in model.modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    ]
    shapes = _shapes(model, inputs)
    for hook in hooks:
        hook.remove()
    return [module for shape, module in made.items() if shape in shapes]


def _shapes(model: nn.Module, inputs: Inputs) -> list[tuple[int, ...]]:
    with torch.no_grad():
        out = model.eval()(*inputs.args, **inputs.kwargs)
    return [tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
