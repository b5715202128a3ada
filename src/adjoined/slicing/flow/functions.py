"""The functions that the model's code calls, before torch turns them into operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from adjoined.slicing.flow.call import tensors_in
from adjoined.slicing.flow.origins import function_name, may_keep_origin
from adjoined.slicing.flow.sizes import sizes_in
from adjoined.slicing.flow.state import State


class Functions(TorchFunctionMode):
    """Intercepts calls that torch handles, wholly or in part, before any operator runs.

    `reshape` refuses a wrong target before any operator, and attention computes its scale from the number of features.
    Reading and setting `tensor.data` are not operators, but they pass channels on; `detach` and `copy_` replace them.
    Torch chooses operators by shapes, but only the model's code calls functions, so these calls are compared.
    """

    def __init__(self, flow: State) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compare what the function gets with what it gets in the base network, and run it."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # it compiles what it calls; the run refuses it
            return func(*args, **kwargs)
        name = function_name(func, args, kwargs)
        if name is not None and not may_keep_origin(name):
            with _disable_current_modes():  # labels are tensors, too, and not part of the run
                self.flow.check_function(name, {**dict(enumerate(args)), **kwargs})
        out = self._called(func, args, kwargs)
        results = [args[0]] if func.__name__ in _WRITES else tensors_in(out)
        if name is not None and results:
            with _disable_current_modes():
                self.flow.note_function(name, args[0] if args else None, results)
        return out

    def _called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.flow.strict and func in (torch.Tensor.reshape, torch.reshape):
            target = kwargs.get("shape", args[1:])
            target = target[0] if len(target) == 1 and not isinstance(target[0], int) else target
            self.flow.last_op = "reshape"
            self.flow.check_sizes(self.flow.site("view", ahead=1), sizes_in("view", {"size": target}))
        elif func is torch.einsum:
            with self.flow.counting_apart():
                return func(*args, **kwargs)
        elif func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            self.flow.last_op = "scaled_dot_product_attention"
            kwargs = kwargs | {"scale": self.flow.attention_scale(args[0] if args else kwargs["query"])}
        elif func == _GET_DATA and self.flow.knows(args[0]):
            return args[0].detach()
        elif func == _SET_DATA and args[0].shape == args[1].shape and self.flow.knows(args[1]):
            args[0].copy_(args[1])
            return None
        return func(*args, **kwargs)


_GET_DATA, _SET_DATA = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # pyright: ignore

_WRITES = ("__setitem__", "__set__")
"""Functions that return nothing and write into their first argument."""
