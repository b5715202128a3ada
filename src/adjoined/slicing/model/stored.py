"""The numbers that modules store, in their attributes or in an object of settings such as `config.hidden_size`."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from adjoined.slicing.model.modules import full_name

_DEEPEST = 2
"""How far settings are followed: `config.encoder.width`."""


def stored_in(module: nn.Module) -> dict[str, Any]:
    """Return what may count channels: the attributes of a module and of its class, torch's own classes excepted.

    Example:
        >>> class Layer(nn.Module):
        ...     heads = 4
        >>> stored_in(Layer())["heads"]
        4
    """
    kinds = [kind for kind in reversed(type(module).__mro__) if not kind.__module__.startswith(("torch.", "builtins"))]
    stored = {name: value for holder in (*kinds, module) for name, value in vars(holder).items()}
    return {name: value for name, value in stored.items() if not name.startswith("_")}


def settings_in(module: nn.Module) -> dict[str, Any]:
    """Return the contents of the settings that a module keeps in attributes: dicts, and objects with attributes.

    Example:
        >>> layer = nn.Identity()
        >>> layer.config = {"width": 64, "head": {"classes": 10}}
        >>> settings_in(layer)
        {'config.width': 64, 'config.head.classes': 10}
    """
    found: dict[str, Any] = {}
    left = [(name, value, 0) for name, value in vars(module).items() if not name.startswith("_")]
    for name, holder, depth in left:
        for key, value in _contents(holder).items() if depth < _DEEPEST else ():
            if isinstance(key, str) and not key.startswith("_") and "." not in key:
                inner = f"{name}.{key}"
                left.append((inner, value, depth + 1))
                if not _contents(value):
                    found[inner] = value
    return found


def read(module: nn.Module, name: str) -> Any:
    """Return an attribute of a module, or a setting by the name that `settings_in` returns; None if there is none."""
    holder, key = _holder(module, name)
    return getattr(holder, key, None) if holder is module else _contents(holder).get(key)


def replaced(model: nn.Module, sizes: Iterable[tuple[tuple[str, str, int | None], int]]) -> dict[str, Any]:
    """Return "module.attribute" -> its new value, from new values of (module, attribute, element of a list or None)."""
    values: dict[str, Any] = {}
    for (module, name, element), value in sizes:
        key = full_name(module, name)
        if element is None:
            values[key] = value
        else:
            values.setdefault(key, list(read(model.get_submodule(module), name)))[element] = value
    return values


def write(module: nn.Module, name: str, value: Any, *, original: nn.Module) -> None:
    """Replace an attribute or a setting of a module in a copy; `original` is the same module of the model.

    Raises:
        TypeError: the copy's settings are the model's own, which stay.
    """
    holder, key = _holder(module, name)
    if holder is not module and holder is _holder(original, name)[0]:
        raise TypeError(f"copies share '{name.rpartition('.')[0]}' with the model")
    if isinstance(holder, dict) and not getattr(holder, "__dict__", {}):
        holder[key] = value
        return
    try:
        setattr(holder, key, value)
    except AttributeError:
        if holder is module:
            raise
        vars(holder)[key] = value  # this is a copy of a frozen dataclass


def _holder(module: nn.Module, name: str) -> tuple[Any, str]:
    holder: Any = module
    *outer, key = name.split(".")
    for each in outer:
        holder = (vars(module) if holder is module else _contents(holder)).get(each)
    return holder, key


def _contents(holder: Any) -> dict[Any, Any]:
    """Return the entries of a dict, or the attributes of an object that is not a module, a tensor or code."""
    if isinstance(holder, (nn.Module, Tensor, type, ModuleType)) or callable(holder):
        return {}
    attributes = getattr(holder, "__dict__", {})
    return attributes or (holder if isinstance(holder, dict) else {})
