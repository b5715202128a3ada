"""Wrapped models: unwrapped where that is safe, refused with advice where it is not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from adjoined.errors import AdjoinedError

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_STAND_INS = ("FloatFunctional", "FXFloatFunctional")
"""Modules of these packages that still compute with floats, in networks prepared for quantization."""
WRAP = "Pass the plain model, and wrap the joint network that adjoin returns."
UNQUANTIZED = "Call adjoin on the model before it is quantized, and quantize base and small networks at the end."


def without_wrappers(model: Any) -> Any:
    """Return what `nn.DataParallel`, a compiled model or an average of weights runs unchanged, or else the model."""
    while isinstance(model, (nn.DataParallel, AveragedModel)) or _is_compiled(model):
        model = model._orig_mod if _is_compiled(model) else model.module
    return model


def unwrap(model: Any) -> nn.Module:
    """Return the plain model inside the user's model.

    Raises:
        AdjoinedError: not a module, or one that cannot be narrowed: scripted, traced, exported or quantized, sharded
            over processes, or made by `adjoin`.
    """
    model = without_wrappers(model)
    if isinstance(model, torch.export.ExportedProgram):
        raise _refused(model, "an exported program", "Call adjoin on the module that was exported.")
    if not isinstance(model, nn.Module):
        raise AdjoinedError("not a model", where="model", expected="a torch.nn.Module", got=type(model).__name__)
    if isinstance(model, torch.jit.ScriptModule):
        name = model.original_name
        raise _refused(
            model,
            f"a TorchScript module made from the class {name}, which cannot be resized",
            f"Call adjoin on the {name} as it was before it was scripted. If only the scripted one is left, build a "
            f"new {name} in Python and give it the weights: load_state_dict(scripted.state_dict()).",
        )
    for name, part in model.named_modules():
        inside = f"'{name}' is " if name else ""
        homes = {kind.__module__ for kind in type(part).__mro__ if kind.__name__ not in _STAND_INS}
        if "adjoined.network" in homes:
            fix = "Call adjoin on `net.base`, or on `net.extract()` for a small network of the small network."
            raise _refused(model, f"{inside}a joint network already", fix)
        if any(home.startswith("torch.export") for home in homes):
            what = f"{inside}an exported program, which does not change between training and evaluation"
            raise _refused(model, what, "Call adjoin on the model as it was before it was exported.")
        if any(home.startswith(_QUANTIZED) for home in homes):
            raise _refused(model, f"{inside}quantized already, and integers cannot be trained", UNQUANTIZED)
        if isinstance(part, nn.parallel.DistributedDataParallel):
            plain = "Pass the plain model, its attribute `module`, and wrap the joint network that adjoin returns."
            raise _refused(model, f"{inside}wrapped for several processes", plain)
        if any(home.startswith("torch.distributed.fsdp") for home in homes):
            raise _refused(model, f"{inside}sharded over several processes", WRAP)
    for name, parameter in model.named_parameters():
        homes = {kind.__module__ for kind in type(parameter).__mro__}
        if any(home.startswith("torch.distributed.tensor") for home in homes):
            raise _refused(model, f"'{name}' is sharded over several processes", WRAP)
        if any(home.startswith("torchao") for home in homes):
            raise _refused(model, f"'{name}' is quantized already, and integers cannot be trained", UNQUANTIZED)
    return model


def _is_compiled(model: Any) -> bool:
    """Return whether this is what `torch.compile` returns, without importing the compiler."""
    return type(model).__module__ == "torch._dynamo.eval_frame" and hasattr(model, "_orig_mod")


def _refused(model: object, what: str, fix: str) -> AdjoinedError:
    return AdjoinedError(what, where=type(model).__name__, expected="a plain torch.nn.Module", fix=fix)
