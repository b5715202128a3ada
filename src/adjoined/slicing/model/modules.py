"""The modules of a model: their tensors, which of them are norms, and the sizes that they store."""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from adjoined.errors import AdjoinedError

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_OF_ONE_WEIGHT = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.PReLU, *_TABLES)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; a shared tensor appears under each of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def kernel_names(model: nn.Module) -> set[str]:
    """Return the names of convolutions' weights: from dimension 2 on, they hold kernel positions, never channels."""
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.modules.conv._ConvNd)}
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name.partition(".parametrizations.")[0].removesuffix(".weight") in convolutions
    }


def linear_names(model: nn.Module) -> set[str]:
    """Return the names of the weights of linear layers."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {f"{name}.weight".removeprefix(".") for name in linear}


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises: torch's own classes, and others with "norm" in their name.

    Example:
        >>> is_norm(nn.BatchNorm2d(8)), is_norm(nn.Conv2d(3, 8, 3))
        (True, False)
    """
    return isinstance(module, _NORMS) or ("norm" in type(module).__name__.lower() and not _has_weight_matrix(module))


def _has_weight_matrix(module: nn.Module) -> bool:
    """Return whether a module owns a weight that mixes channels (a normalised convolution is not a norm)."""
    return any(p is not None and sum(size > 1 for size in p.shape) > 1 for p in module._parameters.values())


def private_names(model: nn.Module, modules: Collection[str] = ()) -> set[str]:
    """Return the names of the tensors that are private to a small network: all buffers, and the parameters of norms.

    Args:
        model: the base network.
        modules: names of further private modules, with everything in them.
    """
    names = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        if is_norm(module) or any(is_inside(prefix, each) for each in modules):
            names |= {full_name(prefix, name) for name in module._parameters}
    return names


def filters(model: nn.Module) -> dict[str, int]:
    """Return the parameters whose filters write channels, each with the dimension of its output channels.

    These are the weights of convolutions and linear layers, and other parameters that mix channels. Norms, biases and
    scales only change channels that other layers write.

    Example:
        >>> filters(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2)))
        {'0.weight': 0, '2.weight': 1}
    """
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module = model.get_submodule(owner_of(name))
        layer = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        if parameter.ndim >= 2 and not is_norm(module) and (layer or sum(size > 1 for size in parameter.shape) > 1):
            # A grouped transposed convolution writes the channels of the groups that its dimension 0 holds.
            turned = isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups == 1
            found[name] = int(turned)
    return found


def full_name(module: str, name: str) -> str:
    """Return the name of a module's tensor or submodule.

    Example:
        >>> full_name("layer1.conv", "weight"), full_name("", "weight")
        ('layer1.conv.weight', 'weight')
    """
    return f"{module}.{name}" if module else name


def and_parents(module: str) -> Iterator[str]:
    """Yield a module and all modules that contain it, innermost first; the last is "", the model itself.

    Example:
        >>> list(and_parents("layer1.0"))
        ['layer1.0', 'layer1', '']
    """
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def is_inside(name: str, module: str) -> bool:
    """Return whether a tensor or a module belongs to a module, or is that module; "" is the model itself.

    Example:
        >>> is_inside("layer1.0.weight", "layer1"), is_inside("layer10.weight", "layer1"), is_inside("weight", "")
        (True, False, True)
    """
    return not module or f"{name}.".startswith(f"{module}.")


def owner_of(tensor: str) -> str:
    """Return the name of the module that uses a tensor as its own; a parametrised weight belongs to its layer.

    Example:
        >>> owner_of("layer1.conv.weight"), owner_of("conv.parametrizations.weight.original")
        ('layer1.conv', 'conv')
    """
    before, found, _ = f".{tensor}".partition(".parametrizations.")
    return before[1:] if found else tensor.rpartition(".")[0]


def set_sizes(module: nn.Module, groups: int | None) -> None:
    """Update what one of torch's modules stores: the sizes of its narrower tensors, and its number of groups."""
    weight = module._parameters.get("weight")
    sized: Any = module  # norms other than torch's store their sizes under the same names
    if isinstance(module, _OF_ONE_WEIGHT) and not hasattr(module, "weight"):
        return  # a hook computes it when the layer runs
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = module.weight  # a parametrised convolution computes it
        module.groups = groups or module.groups
        out, into = kernel.shape[:2]
        if module.transposed:
            out, into = into * module.groups, out
        else:
            into *= module.groups
        module.in_channels, module.out_channels = into, out
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = groups or module.num_groups
        if weight is not None:
            module.num_channels = weight.shape[0]
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim, module.num_heads = module.out_proj.weight.shape[0], groups or module.num_heads
        module.head_dim = module.embed_dim // module.num_heads
        if module.in_proj_weight is not None:
            module.kdim = module.vdim = module.embed_dim
    elif isinstance(module, _RECURRENT):
        layer = "_l0" if isinstance(module, nn.RNNBase) else ""
        into, state = getattr(module, f"weight_ih{layer}"), getattr(module, f"weight_hh{layer}")
        module.input_size, module.hidden_size = into.shape[1], state.shape[1]
        if isinstance(module, nn.RNNBase) and module.proj_size:  # an LSTM, with four gates
            module.proj_size, module.hidden_size = state.shape[1], state.shape[0] // 4
    elif isinstance(module, _TABLES):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif weight is not None and hasattr(module, "normalized_shape"):
        sized.normalized_shape = tuple(weight.shape)
    elif hasattr(module, "num_features"):
        kept = weight if weight is not None else module._buffers.get("running_mean")
        if kept is not None:
            sized.num_features = kept.shape[0]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode within the block; the mode of each of their submodules is restored afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


_DICTS = (dict, OrderedDict)


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy that shares nothing with the model, not even what its forward stores.

    Tensors that a forward has stored in attributes are copied without their autograd history. Tensors in cached
    dicts are left out, since the copy's tensors will be different. Caches in a class, which all its instances would
    write into, become the copy's own.

    `memo` is that of `copy.deepcopy`: id -> what replaces that object in the copy.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        # A module has a dozen dicts of hooks, most of them empty, which take most of deepcopy's time.
        memo.update({id(held): type(held)() for held in vars(module).values() if type(held) in _DICTS and not held})
    with WithoutHistory():
        copied = copy.deepcopy(model, memo)
        caches = {kind: _caches_of_class(kind) for kind in set(map(type, copied.modules()))}
        for module in copied.modules():
            for name, held in caches[type(module)].items():
                with suppress(Exception):  # what cannot be copied stays shared
                    vars(module).setdefault(name, copy.deepcopy(held, memo))
    own_classes(copied)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in copied.named_modules():
        module.training = modes.get(name, module.training)  # copies of traced modules start in train mode
        for attribute, held in vars(module).items():
            if "cache" in attribute.lower() and isinstance(held, dict):
                for key, value in list(held.items()):
                    if not all(isinstance(leaf, (str, bytes, int, float, type(None))) for leaf in tree_leaves(value)):
                        del held[key]
    return copied


def own_classes(copied: nn.Module) -> None:
    """Give every parametrized module of a deep copy a class of its own.

    `remove_parametrizations` deletes the weight's property from the class, which a copy shares with the original.
    """
    for module in copied.modules():
        if is_parametrized(module):
            kind = type(module)
            own: Any = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            module.__class__ = own


def _caches_of_class(kind: type) -> dict[str, Any]:
    """Return the containers in a class's body that are empty or hold tensors: its code may fill them with tensors."""
    bodies = [each for each in reversed(kind.__mro__) if not each.__module__.startswith(("torch.", "builtins"))]
    return {
        name: held
        for body in bodies
        for name, held in vars(body).items()
        if isinstance(held, (dict, list)) and not name.startswith("__")
        if not held or any(isinstance(leaf, Tensor) for leaf in tree_leaves(held))
    }


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 or complex128; integers stay."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


class WithoutHistory(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors that an operation has returned, which torch refuses otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and _has_history(args[0]):
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _has_history(tensor: Tensor) -> bool:
    try:
        return not tensor.is_leaf
    except RuntimeError:  # a slice that a layer kept, whose weight an optimizer has changed since
        return True


def in_place_of(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a value that can replace a tensor in a module: a parameter, trained or not, in place of a parameter."""
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def sizes_by_input(module: nn.Module, ndim: int) -> dict[int, tuple[str, int | None]]:
    """Return where a norm without tensors stores sizes of its input.

    Returns:
        Dimension of the input -> the attribute that stores its size, and the element of it, None for a plain integer.

    Example:
        >>> sizes_by_input(nn.InstanceNorm2d(8), 4), sizes_by_input(nn.LayerNorm((8, 4), elementwise_affine=False), 3)
        ({1: ('num_features', None)}, {1: ('normalized_shape', 0), 2: ('normalized_shape', 1)})
    """
    if next(module.parameters(recurse=False), None) is not None or module._buffers.get("running_mean") is not None:
        return {}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        spatial = next((n for n in (1, 2, 3) if type(module).__name__.endswith(f"{n}d")), ndim - 2)
        instances = isinstance(module, nn.modules.instancenorm._InstanceNorm)
        return {ndim - spatial - 1 if instances else 1: ("num_features", None)}
    if isinstance(module, nn.GroupNorm):
        return {1: ("num_channels", None)}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape = module.normalized_shape
        return {ndim - len(shape) + i: ("normalized_shape", i) for i in range(len(shape))}
    return {}


MANAGED_SIZES = {
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters", "in1_features", "in2_features", "num_embeddings", "embedding_dim",
    "normalized_shape", "embed_dim", "kdim", "vdim", "num_heads", "head_dim",
}  # fmt: skip
"""The attributes that `set_sizes` updates; a class derived from one of torch's layers may add others."""


def has_managed_sizes(module: nn.Module) -> bool:
    """Return whether `set_sizes` updates a module's sizes."""
    known = (nn.modules.conv._ConvNd, nn.Linear, nn.PReLU, nn.MultiheadAttention, *_RECURRENT, *_TABLES, *_NORMS)
    return isinstance(module, known)


def as_patterns(given: Any, setting: str) -> tuple[str, ...]:
    """Return names and patterns of modules as a tuple; a single one may stand alone.

    Raises:
        AdjoinedError: they are not strings.
    """
    patterns = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        expected = "names or patterns such as ('conv1', 'layer1')"
        raise AdjoinedError("not names of modules", where=setting, expected=expected, got=repr(given))
    return patterns


def matching_modules(model: nn.Module, patterns: Iterable[str], *, setting: str = "keep") -> dict[str, str]:
    """Return the modules that names or patterns match, each with its pattern.

    A pattern matches whole names in the manner of file names (`layer1`, `layer?.0.*`, `*.downsample`).

    Raises:
        AdjoinedError: a pattern matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for pattern in as_patterns(patterns, setting):
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:5]
            raise AdjoinedError(
                "no module of the model has this name",
                where=f"{setting}={pattern!r}",
                expected=f"a name or pattern such as {', '.join(map(repr, close))}",
                fix="List the names with: for name, _ in model.named_modules(): print(name).",
            )
        found |= {name: pattern for name in matched if name not in found}
    return found
