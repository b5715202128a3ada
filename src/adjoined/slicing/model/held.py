"""What objects hold: the elements of containers, and the attributes of other objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import CellType
from typing import Any

CONTAINERS = (list, deque, dict)
_ABSENT = object()


def contents(holder: Any) -> dict[Any, Any]:
    """Return the elements of a container by key or position, or the attributes of another object by name.

    Example:
        >>> contents(["a", "b"])
        {0: 'a', 1: 'b'}
    """
    if isinstance(holder, (list, deque)):
        return dict(enumerate(holder))
    if isinstance(holder, dict):
        return dict(holder)
    if isinstance(holder, CellType):  # a variable of an enclosing function
        return _inside_cell(holder)
    in_slots = {name: getattr(holder, name) for name in _slots(type(holder)) if hasattr(holder, name)}
    return in_slots | dict(getattr(holder, "__dict__", {}))


def _inside_cell(cell: CellType) -> dict[Any, Any]:
    try:
        return {"cell_contents": cell.cell_contents}
    except ValueError:  # not assigned yet
        return {}


def has_attributes(holder: Any) -> bool:
    """Return whether an object has attributes that code can set."""
    return hasattr(holder, "__dict__") or bool(_slots(type(holder)))


@lru_cache(1024)
def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of the slots that a class and its bases define."""
    found: list[str] = []
    for each in kind.__mro__:
        slots = vars(each).get("__slots__", ()) if each.__module__ != "builtins" else ()
        found += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def reached(held: Iterable[Any], inside: Callable[[Any], Iterable[Any]], deepest: int) -> Iterator[Any]:
    """Yield objects, what they hold, what that holds and so on, up to `deepest` references away, each object once."""
    seen: set[int] = set()
    left = deque((each, 0) for each in held)
    while left:
        each, depth = left.popleft()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left.extend((value, depth + 1) for value in (inside(each) if depth < deepest else ()))


def changes(holder: Any, before: dict[Any, Any]) -> dict[Any, tuple[Any, Any]]:
    """Return what has changed in an object since its contents were `before`: key -> values then and now."""
    now = contents(holder)
    pairs = {key: (before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in {**now, **before}}
    return {key: (old, new) for key, (old, new) in pairs.items() if old is not new}


def restore(holder: Any, before: dict[Any, Any], keys: Iterable[Any]) -> None:
    """Restore what an object held under these keys; of a list, everything."""
    if isinstance(holder, (list, deque)):
        holder.clear()
        holder.extend(before.values())
        return
    if isinstance(holder, CellType):
        holder.cell_contents = before["cell_contents"]
        return
    own = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
    in_slots = () if isinstance(holder, dict) else _slots(type(holder))
    for key in keys:
        if isinstance(holder, type):  # its attributes cannot be written in place
            setattr(holder, key, before[key]) if key in before else delattr(holder, key)
        elif key in in_slots:  # even if the object is frozen
            object.__setattr__(holder, key, before[key]) if key in before else object.__delattr__(holder, key)
        elif key in before:
            own[key] = before[key]
        else:
            del own[key]
