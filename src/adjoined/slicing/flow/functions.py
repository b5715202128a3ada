"""The functions that the model's code calls, before torch turns them into operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode

from adjoined.slicing.flow.sizes import sizes_in
from adjoined.slicing.flow.state import State


class Functions(TorchFunctionMode):
    """Intercepts calls that torch handles, wholly or in part, before any operator runs.

    `reshape` refuses a wrong target before any operator, and attention computes its scale from the number of features.
    Reading and setting `tensor.data` are not operators, but they pass channels on; `detach` and `copy_` replace them.
    """

    def __init__(self, flow: State) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, or what stands for it."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # it compiles what it calls; the run refuses it
            return func(*args, **kwargs)
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
