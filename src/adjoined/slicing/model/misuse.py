"""Errors for likely mistakes in a call: a one-line message for what a model raises on the example input."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from adjoined.errors import AdjoinedError, DoesNotRunError
from adjoined.slicing.model.inputs import Inputs, tensor_leaves

PASS = "Pass the example input that model(...) takes: a tensor, a tuple of arguments or a dict of them."


def check_weights(model: nn.Module) -> None:
    """Raise AdjoinedError if a model has no layer with channels, an uninitialized one, or tensors that aren't dense."""
    lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise AdjoinedError(
            "the parameter is uninitialized",
            where=lazy,
            fix="Run the model once on an input, so that lazy layers get their shapes, then call adjoin.",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise AdjoinedError(
                "the tensor is not dense",
                where=name,
                expected="a dense tensor",
                got="a nested tensor" if tensor.is_nested else str(tensor.layout),
                fix="Store it as a dense tensor or, if it is a constant, as a plain attribute instead of a buffer.",
            )
    if not any(parameter.ndim > 1 for parameter in model.parameters()):
        raise AdjoinedError(
            "nothing to narrow: this is not a CNN",
            where=type(model).__name__,
            expected="a model with convolutions (or linear layers)",
            got=f"{sum(1 for _ in model.parameters())} parameters, none of them a weight of such a layer",
        )


def check_trainable(model: nn.Module) -> None:
    """Raise AdjoinedError if a weight was created in inference mode, which autograd never records."""
    weights = ((name, parameter) for name, parameter in model.named_parameters() if not is_lazy(parameter))
    name = next((name for name, parameter in weights if parameter.is_inference()), None)
    if name is not None:
        raise AdjoinedError(
            "the weight was created in inference mode and cannot be trained",
            where=name,
            fix="Build or load the model outside of torch.inference_mode().",
        )


def check_arguments(model: nn.Module, inputs: Inputs, given: str = "the example input", fix: str = PASS) -> None:
    """Raise AdjoinedError if the model's forward does not accept these arguments, or requires others."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a scripted forward has no signature
        return
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        named = list(signature.parameters.values())
        needed = [p.name for p in named if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        as_dict = ", ".join(f"{name!r}: ..." for name in needed)
        both = f"({', '.join(needed)}{',' * (len(needed) == 1)}) or {{{as_dict}}}"
        raise DoesNotRunError(
            f"the model does not run on {given}: {error}",
            where=type(model).__name__,
            expected=f"the arguments of forward{signature}",
            got=_arguments(inputs),
            fix=f"{fix} Here: {both}.",
        ) from error


def check_made(model: nn.Module, before: Collection[str]) -> None:
    """Raise AdjoinedError if a model's forward has made parameters, which only the models that have run would have."""
    made = next((name for name, _ in model.named_parameters() if name not in before), None)
    if made is not None:
        raise AdjoinedError(
            "the model creates this parameter in its first forward pass",
            where=made,
            fix="Run the model once on an input, so that it has all its layers, then call adjoin.",
        )


def check_output(model: nn.Module, out: Any) -> None:
    """Raise AdjoinedError if a model returns something whose channels cannot be followed."""
    got = "" if tensor_leaves(out) else "no tensor"
    for leaf in tree_leaves(out):
        if isinstance(leaf, Iterator):
            got = f"a {type(leaf).__name__}, whose code has not run yet"
        elif isinstance(leaf, Tensor) and leaf.is_nested:
            got = "a nested tensor"
        elif type(leaf).__module__ == "numpy":
            got = f"a numpy.{type(leaf).__name__}"
    if got:
        raise AdjoinedError(
            "the model's output cannot be followed",
            where=type(model).__name__,
            expected="dense tensors, in tuples, lists, dicts or objects",
            got=got,
            fix="Return tensors, several of them in a list, and convert them outside of the model.",
        )


def takes_functions(operator: HigherOrderOperator, module: str) -> AdjoinedError:
    """Return the error for a model that calls an operator on functions, such as `torch.cond`, in `module`."""
    return AdjoinedError(
        f"channels cannot be followed through {operator.name()}, which torch runs as a graph of its own",
        where=f"'{module}'" if module else "the model's own forward",
        fix="Use operators on tensors instead, such as torch.where or scaled_dot_product_attention.",
    )


def _arguments(inputs: Inputs) -> str:
    positional = f"{len(inputs.args)} positional" if inputs.args else ""
    return " and ".join(part for part in (positional, ", ".join(map(repr, inputs.kwargs))) if part) or "none"


def does_not_run(model: nn.Module, error: Exception, module: str, args: Sequence[Any]) -> AdjoinedError:
    """Return the error for a model that raises on the example input, in `module`, called with `args`."""
    given = next((leaf for leaf in tree_leaves(tuple(args)) if isinstance(leaf, Tensor)), None)
    layer = model.get_submodule(module)
    expected, got = _taken_by(layer), "" if given is None else f"{_dtype(given)} {tuple(given.shape)}"
    where = f" in '{module}' ({type(layer).__name__})" if module else ""
    return DoesNotRunError(
        f"the model does not run on the example input: {type(error).__name__}{where}: {error}",
        where=type(model).__name__,
        expected=expected,
        got=got if expected else "",
        fix=PASS,
    )


def _taken_by(layer: nn.Module) -> str:
    """Return the dtype and shape that a layer accepts; "" for a layer that is not torch's own."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or is_lazy(weight):
        return ""
    if isinstance(layer, nn.modules.conv._ConvNd):
        spatial = ", ".join("DHW"[-len(layer.kernel_size) :])
        return f"{_dtype(weight)} (N, {layer.in_channels}, {spatial})"
    if isinstance(layer, nn.Linear):
        return f"{_dtype(weight)} (..., {layer.in_features})"
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return f"{_dtype(weight)} (N, {layer.num_features}, ...)"
    return ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def another_path(model: nn.Module, reader: str | None, modules: Sequence[str]) -> AdjoinedError:
    """Return the error for a forward that runs other `modules` when values that `reader` reads change."""
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return AdjoinedError(
        f"values of the input decide which modules run: {repr(reader) if reader else 'its own forward'} reads them, "
        f"and {', '.join(map(repr, modules[:3]))}{more} did not always run",
        where=type(model).__name__,
        expected="the same modules for all inputs of the same shape",
        fix="Run both ways and choose with torch.where, or join the parts of the model that always run.",
    )
