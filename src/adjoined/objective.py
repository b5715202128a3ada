"""The adjoint objective for any task: the base's task loss, and distances of the small networks from the base.

    loss = task(p) + λ(t) · Σ over small networks q: [ distance(p, q) + weight · task(q) ]

At t = 0 the base trains alone; the small networks' influence on the shared weights grows with λ. `adjoint_loss` is the
special case of classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from adjoined.distances import Distance
from adjoined.errors import AdjoinedError, is_number, usage

Schedule = Literal["paper", "constant"]

ROUNDING = 1e-10
"""How far a fraction that a loop adds up may be above 1."""


def kl_weight(progress: float, schedule: Schedule = "paper") -> float:
    """Return λ(t) = min(4t², 1), the weight of the small networks' terms after a fraction t of training.

    Args:
        progress: t, the fraction of training completed, in [0, 1] (optimizer steps done / total steps).
        schedule: "paper"; as an ablation, "constant" for λ(t) = 1.

    Raises:
        AdjoinedError: `progress` is outside [0, 1], or the schedule is unknown.

    Source: Nath, Kushagra, Yang, "Better together", arXiv 2006.05624, the regularisation function.

    Example:
        >>> [kl_weight(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.25, 1.0, 1.0]
    """
    if schedule not in get_args(Schedule):
        expected = f"one of {', '.join(get_args(Schedule))}"
        raise AdjoinedError("no such choice", where="schedule", expected=expected, got=schedule)
    if not is_number(progress, 0, 1 + ROUNDING):
        raise AdjoinedError(
            "the fraction of training completed is out of range",
            where="progress",
            expected="a number from 0 to 1",
            got=progress,
            fix="Pass step / total_steps.",
        )
    return 1.0 if schedule == "constant" else min(4 * progress**2, 1.0)


class Terms(NamedTuple):
    """The terms of the objective, unweighted scalars."""

    task: Tensor
    """Task loss of the base network."""
    distance: Tensor
    """Distance of the small networks from the base, summed over them."""
    small_task: Tensor | None
    """Task loss of the small networks, summed over them; None if it is not part of the objective."""


@usage("objective_terms(net(x), task=..., distance=...)")
def objective_terms(
    outputs: Sequence[Any], *, task: Callable[[Any], Tensor], distance: Distance, small_task: bool = True
) -> Terms:
    """Return the terms of `adjoint_objective` separately, for logging or for a custom loss.

    Arguments and errors are those of `adjoint_objective`.

    Example:
        >>> from adjoined.distances import gaussian_kl
        >>> terms = objective_terms(torch.tensor([1.0, 3.0]).split(1), task=torch.sum, distance=gaussian_kl)
        >>> [term.item() for term in terms]
        [1.0, 2.0, 3.0]
    """
    if isinstance(outputs, Tensor) or len(outputs) < 2:
        raise AdjoinedError(
            "the small network's output is missing",
            where="outputs",
            expected="the outputs of the joint network: p, q",
            got=type(outputs).__name__,
        )
    for name, function in (("task", task), ("distance", distance)):
        if not callable(function):
            got = type(function).__name__
            raise AdjoinedError("not a function", where=name, expected="a function that returns a tensor", got=got)
    p, *smalls = outputs
    apart = torch.stack([_scalar(distance(p, q), "distance") for q in smalls]).sum()
    of_base = _scalar(task(p), "task")
    of_small = torch.stack([_scalar(task(q), "task") for q in smalls]).sum() if small_task else None
    return Terms(of_base, apart, of_small)


def _scalar(loss: Any, where: str) -> Tensor:
    """Return a loss, unless it has a value for each sample: their sum would weigh more than the other terms."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        of_samples = isinstance(loss, Tensor)
        raise AdjoinedError(
            "not a scalar",
            where=where,
            expected="a function that returns one number for the batch" + ("" if of_samples else ", as a tensor"),
            got=f"a tensor {tuple(loss.shape)}" if of_samples else type(loss).__name__,
            fix="Take the mean over the samples in it." if of_samples else "",
        )
    return loss


@usage("adjoint_objective(net(x), task=..., distance=..., progress=step / total_steps)")
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
        task: a function of one network's output that returns its loss, a scalar; it has the targets.
        distance: (p, q) -> a scalar, at least 0; see `adjoined.distances`, and `by_name` for outputs with parts.
        progress: t, the fraction of training done, in [0, 1]; λ(t) = min(4t², 1).
        small_task: weight of the small networks' own task loss; 0 in the paper, 1 in `adjoint+`.

    Returns:
        A scalar, in the units of the task's loss.

    Raises:
        AdjoinedError: a small network's output is missing, `task` or `distance` is not a function that returns a
            scalar, or `progress` is outside [0, 1].

    Source: arXiv 2006.05624, with any task and distance in place of cross-entropy and KL divergence.

    Example:
        >>> from adjoined.distances import gaussian_kl
        >>> p, q, y = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([2.0])
        >>> def task(output):
        ...     return (output - y).abs().mean()
        >>> for progress in (0.0, 0.25, 1.0):  # λ = 0, 1/4 and 1, of (1 - 3)² / 2 + |3 - 2|
        ...     adjoint_objective((p, q), task=task, distance=gaussian_kl, progress=progress).item()
        1.0
        1.75
        4.0
    """
    terms = objective_terms(outputs, task=task, distance=distance, small_task=small_task != 0)
    of_small = terms.distance if terms.small_task is None else terms.distance + small_task * terms.small_task
    return terms.task + kl_weight(progress) * of_small


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
