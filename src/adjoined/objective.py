"""The adjoint objective for any task: the base's task loss, and distances of the small networks from the base.

    loss = task(p) + Σ over small networks q: [ weight · task(q) + λ(t) · distance(p, q) ]

`adjoint_loss` is the special case of classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adjoined.distances import Distance
from adjoined.errors import AdjoinedError
from adjoined.loss import kl_weight


def adjoint_objective(
    outputs: Sequence[Any],
    *,
    task: Callable[[Any], Tensor],
    distance: Distance,
    progress: float,
    small_task: float = 1.0,
) -> Tensor:
    """Return the loss that trains base and small networks together on any task.

    Args:
        outputs: the outputs of the joint network, p, q or p, q1, q2, ..., each of the model's own type.
        task: maps one network's output to its loss, a scalar; it knows the targets.
        distance: (p, q) -> a scalar, at least 0; see `adjoined.distances`, and `by_name` for outputs with parts.
        progress: t, the fraction of training done, in [0, 1]; λ(t) = min(4t², 1).
        small_task: weight of the small networks' own task loss; 0 in the paper, 1 in `adjoint+`.

    Returns:
        A scalar.

    Raises:
        AdjoinedError: a small network's output is missing, or `progress` is outside [0, 1].

    Example:
        >>> from adjoined.distances import gaussian_kl
        >>> p, q, y = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([2.0])
        >>> def task(output):
        ...     return (output - y).abs().mean()
        >>> loss = adjoint_objective((p, q), task=task, distance=gaussian_kl, progress=1.0)
        >>> loss.item()  # 1 + 1 + (1 - 3)² / 2
        4.0
    """
    if isinstance(outputs, Tensor) or len(outputs) < 2:
        raise AdjoinedError(
            "no output of a small network",
            where="outputs",
            expected="the outputs of the joint network: p, q",
            got=type(outputs).__name__,
        )
    p, *smalls = outputs
    loss, weight = task(p), kl_weight(progress)
    for q in smalls:
        loss = loss + weight * distance(p, q)
        if small_task:
            loss = loss + small_task * task(q)
    return loss


def by_name(**parts: Distance | tuple[float, Distance]) -> Distance:
    """Return the distance of outputs with several parts: the sum of the distances of the named parts.

    Args:
        **parts: path to a part -> its distance, or (weight, distance). A path is an entry of a dict, a field of a
            dataclass or object, or an index of a list, and `__` goes down one level: `aux__0` is output["aux"][0].
            Indices of a list at the top level are written `_0`.

    Example:
        >>> from adjoined.distances import class_kl, gaussian_kl
        >>> distance = by_name(logits=class_kl, box=(0.5, gaussian_kl))
        >>> p = {"logits": torch.zeros(2, 3), "box": torch.zeros(2, 4)}
        >>> distance(p, {**p, "box": torch.ones(2, 4)}).item()  # 0 + 0.5 * 1 / 2
        0.25
    """
    if not parts:
        raise AdjoinedError("no part of the output is named", where="by_name()", fix="Name one, as in logits=class_kl.")

    def distance(p: Any, q: Any) -> Tensor:
        terms = []
        for path, of_part in parts.items():
            weight, function = of_part if isinstance(of_part, tuple) else (1.0, of_part)
            terms.append(weight * function(part(p, path), part(q, path)))
        return torch.stack(terms).sum()

    return distance


def part(output: Any, path: str) -> Any:
    """Return a part of an output by its path; see `by_name`.

    Raises:
        AdjoinedError: the output has no such part; the error lists its parts.

    Example:
        >>> part({"aux": [10, 20]}, "aux__1"), part([1, 2], "_0")
        (20, 1)
    """
    found = output
    for name in path.split("__"):
        place = name.removeprefix("_")
        if isinstance(found, Mapping) and name in found:
            found = found[name]
        elif isinstance(found, Sequence) and not isinstance(found, str) and place.isdigit() and int(place) < len(found):
            found = found[int(place)]
        elif not isinstance(found, (Mapping, Tensor)) and hasattr(found, name):
            found = getattr(found, name)
        else:
            raise AdjoinedError(
                "the output has no such part",
                where=f"by_name({path}=...), at {name!r}",
                expected=_parts_of(found),
                got=type(found).__name__,
            )
    return found


def _parts_of(output: Any) -> str:
    if isinstance(output, Mapping):
        return "one of " + ", ".join(map(str, output))
    if isinstance(output, (list, tuple)):
        named = ", ".join(getattr(output, "_fields", ()))
        return f"_0 to _{len(output) - 1}" + (f", or {named}" if named else "")
    fields = ", ".join(name for name in getattr(output, "__dict__", {}) if not name.startswith("_"))
    return f"one of {fields}" if fields else "a dict, a list or an object with fields"
