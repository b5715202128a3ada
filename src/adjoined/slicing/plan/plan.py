"""The slice plan: for every tensor of the base network, the indices that the small network has of it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.files import as_path
from adjoined.json_files import read_json, write_json
from adjoined.slicing.model.cost import Cost
from adjoined.slicing.model.modules import and_parents, duplicate, in_place_of, is_inside, named_tensors, set_sizes
from adjoined.slicing.model.original import check_copy
from adjoined.slicing.model.stored import read, write
from adjoined.slicing.model.wrapped import unwrap
from adjoined.slicing.plan.index import Index, take
from adjoined.slicing.plan.reasons import Reason
from adjoined.slicing.plan.validation import check_data

FORMAT = 2


@dataclass(frozen=True)
class ChannelGroup:
    """Channels, over all layers, that can only be kept or dropped together."""

    name: str
    """The first module with these channels at its output."""
    modules: tuple[str, ...]
    """All modules that write or read them."""
    width: int
    """Channels of the base network."""
    kept: int
    """Channels of the small network: the first ones."""
    why: Reason | None = None
    """Why the group stays at full width, with the kind that code may decide by; None if it is narrowed."""

    @property
    def reason(self) -> str:
        """Why the group stays at full width, as text; "" if it is narrowed."""
        return "" if self.why is None else self.why.text

    def to_json(self) -> dict[str, Any]:
        """Return the group as plain data for JSON."""
        own = {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "why"}
        return own | {"reason": _plain(self.why)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChannelGroup:
        """Read what `to_json` returned, once `check_data` has seen it."""
        why = None if data["reason"] is None else Reason.from_json(data["reason"])
        return cls(data["name"], tuple(data["modules"]), data["width"], data["kept"], why)


def check_is_plan(given: object) -> None:
    """Raise AdjoinedError unless this is a slice plan; users pass paths to plans."""
    if not isinstance(given, SlicePlan):
        raise AdjoinedError(
            "not a slice plan",
            where="plan",
            expected="a SlicePlan",
            got=type(given).__name__,
            fix="Read a saved one with SlicePlan.load(path).",
        )


@dataclass(frozen=True)
class SlicePlan:
    """The indices of the base's tensors that make up a small network.

    `print` shows it as a table; `save` and `load` store it as JSON; `apply` makes the small network from any copy of
    the model.

    Attributes:
        alpha: the factor requested, or found for a requested size.
        round_to: widths are multiples of this, where the base allows it.
        keep: names and patterns of modules kept at full width.
        widths: names and patterns of modules -> requested width, "1/2" or "24 channels".
        tensors: tensor name -> kept indices for each dimension (None: all of them), narrowed tensors only.
        shapes: tensor name -> shape in the base network, all tensors.
        conv_groups: module name -> its `groups` (or `num_groups`) in the small network, where it changes.
        attributes: "module.attribute" -> value in the small network, for sizes that modules store themselves.
        groups: the channel groups, widest reach first.
        crossing: module -> operator that computes statistics across channels, over the kept ones in the small network.
        unaligned: modules with channel shuffles after which the small network's channels no longer correspond to the
            base's; only their number is right.
        unreached: module or parameter that did not run on the example input -> the module whose channels it follows, or
            "" if it follows none: it is at full width, and small networks refuse to run it.
        order: how the base network's channels were ordered when this plan was first used ("l1", "l2", "bn"), or "". It
            is only a note: a plan never reorders channels.
        unordered: name of a group that was not reordered -> reason.
        base_cost, cost: parameters, bytes and MACs (for one sample of the example input's size) of the base and of the
            small network; None in a plan that was not made by tracing. Comparing plans ignores them.

    Example:
        >>> from adjoined.slicing import make_plan
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 10, 1))
        >>> plan = make_plan(net, torch.zeros(1, 3, 8, 8), alpha=4)
        >>> plan.small_shape("0.weight"), plan.cost.parameters, plan.groups[1].reason
        ((8, 3, 3, 3), 314, 'model output')
    """

    alpha: float
    round_to: int
    keep: tuple[str, ...]
    tensors: dict[str, tuple[Index | None, ...]]
    shapes: dict[str, tuple[int, ...]]
    conv_groups: dict[str, int] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    groups: tuple[ChannelGroup, ...] = ()
    crossing: dict[str, str] = field(default_factory=dict)
    unaligned: tuple[str, ...] = ()
    widths: dict[str, str] = field(default_factory=dict)
    order: str = ""
    unordered: dict[str, str] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)
    base_cost: Cost | None = field(default=None, compare=False)
    cost: Cost | None = field(default=None, compare=False)

    @property
    def in_order(self) -> bool:
        """Whether the small network has its channels in the order of the base network."""
        return all(index is None or index.ascending for indices in self.tensors.values() for index in indices)

    def indices(self, name: str) -> tuple[Index | None, ...]:
        """Return the kept indices of a tensor for each dimension; None stands for all of them."""
        return self.tensors.get(name, (None,) * len(self.shapes[name]))

    def small_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor in the small network."""
        return tuple(
            size if index is None else len(index)
            for size, index in zip(self.shapes[name], self.indices(name), strict=True)
        )

    def is_unknown(self, tensor: str) -> bool:
        """Return whether a tensor belongs to a part that did not run and whose channels are unknown.

        No tensor is unknown in a plan that narrows nothing.
        """
        parts = (part for part, followed in self.unreached.items() if not followed and self.tensors)
        return any(is_inside(tensor, part) for part in parts)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a small network made of slices of the model's tensors.

        Args:
            model: the model the plan was made for, or a fresh copy of it with any weights; it is not changed.

        Returns:
            A module of the model's own classes with its own narrow tensors; it shares nothing with the model.

        Raises:
            AdjoinedError: the model's tensors are not those that the plan was made for, or a function that the model
                holds would still use the model itself; `DoesNotFit` if a module's own code does not accept narrower
                tensors.

        Example:
            >>> from adjoined.slicing import make_plan
            >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 10, 1))
            >>> small = make_plan(net, torch.zeros(1, 3, 8, 8), alpha=4).apply(net)
            >>> tuple(small[0].weight.shape), tuple(small[2].weight.shape)
            ((8, 3, 3, 3), (10, 8, 1, 1))
        """
        model = unwrap(model)
        small = self.cut(model)
        check_copy(small, model)
        return small

    def cut(self, model: nn.Module, *, in_common: Mapping[int, Tensor] | None = None) -> nn.Module:
        """Return what `apply` returns, for a model whose copies have been run and are independent of it.

        Args:
            model: as for `apply`.
            in_common: id -> tensor that the small network takes from the model as it is, instead of a copy.
        """
        tensors = self.check_fits(model)
        # deepcopy returns what the memo holds, so nothing is copied at full width, and tied tensors stay tied.
        memo: dict[int, Any] = dict(in_common or {})
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):  # it cannot be resized, and copies its own tensors
                memo[id(module)] = copy.deepcopy(module)
        for name, tensor in tensors.items():
            if id(tensor) not in memo:
                # For a slice of a contiguous tensor they are the same, but `preserve_format` is slow to find out.
                layout = torch.contiguous_format if tensor.is_contiguous() else torch.preserve_format
                kept = take(tensor.detach(), self.tensors.get(name, ())).clone(memory_format=layout)
                memo[id(tensor)] = in_place_of(tensor, kept)
        small = duplicate(model, memo)
        for name, module in small.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                with _naming(name, module):
                    set_sizes(module, self.conv_groups.get(name))
        held = dict(small.named_modules())
        for place, value in self.attributes.items():
            module = next(each for each in and_parents(place.rpartition(".")[0]) if each in held)
            attribute = place.removeprefix(f"{module}.")
            old = read(held[module], attribute)
            if not _replaces(value, old) or any(name.startswith("_") for name in attribute.split(".")):
                raise AdjoinedError(
                    "the slice plan was made for another model",
                    where=place,
                    expected="a number, or a list of numbers, in place of the model's own",
                    got=f"{str(value)[:40]} in place of {type(old).__name__}",
                    fix="Make a new plan.",
                )
            with _naming(module, held[module]):
                new = type(old)(value) if isinstance(value, list) else value
                write(held[module], attribute, new, original=model.get_submodule(module))
        return small

    def check_fits(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's parameters and buffers by name.

        Raises:
            AdjoinedError: they are not those that the plan was made for.
        """
        tensors = named_tensors(model)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        learned = dict(model.named_parameters(remove_duplicate=False)).keys()
        # A forward may create buffers or change their shapes; only sliced buffers have to match.
        fixed = {name for name in found if name in learned} | self.tensors.keys()
        fixed |= {name for name in self.shapes if name not in found}
        wrong = [name for name in fixed if found.get(name) != self.shapes.get(name)]
        if not wrong:
            return tensors
        name = min(wrong)
        raise AdjoinedError(
            "the slice plan was made for another model",
            where=name,
            expected=f"a tensor of shape {self.shapes[name]}" if name in self.shapes else "no such tensor",
            got=found.get(name, "no such tensor"),
            fix="Build the model with the settings that the plan was made with, or make a new plan.",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON."""
        return {"format": FORMAT} | {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: object = "slice plan") -> SlicePlan:
        """Read a plan from the data of `to_json`.

        Raises:
            AdjoinedError: it is not a slice plan, or one of another version.
        """
        data = check_data(data, format=FORMAT, where=where)
        read: dict[str, Any] = {each.name: data[each.name] for each in fields(cls)}
        read |= {"alpha": float(data["alpha"]), "keep": tuple(data["keep"]), "unaligned": tuple(data["unaligned"])}
        read["tensors"] = {
            name: tuple(None if index is None else Index.from_json(index) for index in indices)
            for name, indices in data["tensors"].items()
        }
        read["shapes"] = {name: tuple(shape) for name, shape in data["shapes"].items()}
        read["groups"] = tuple(ChannelGroup.from_json(group) for group in data["groups"])
        read |= {name: _cost(data[name]) for name in ("base_cost", "cost")}
        return cls(**read)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON; the file appears whole or not at all.

        Raises:
            AdjoinedError: the file cannot be written.
        """
        write_json(as_path(path, "path"), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SlicePlan:
        """Read a plan that `save` wrote.

        Raises:
            AdjoinedError: the file is missing, not JSON, or not a slice plan.
        """
        return cls.from_json(read_json(as_path(path, "path"), "a slice plan", links=True), where=path)

    def __str__(self) -> str:
        """The groups as a plain-text table, and remedies for those at full width."""
        rows = [("channel group", "layers", "base", "small", "")]
        rows += [(g.name, str(len(g.modules)), str(g.width), str(g.kept), g.reason) for g in self.groups]
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{a:{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}  {e}".rstrip() for a, b, c, d, e in rows
        ]
        head = f"slice plan: alpha {self.alpha:g}, widths in multiples of {self.round_to}"
        reasons = dict.fromkeys(group.why for group in self.groups if group.why is not None)
        notes = [f"{reason}: {reason.remedy}" for reason in reasons if reason.remedy]
        notes += [f"not reordered, {reason}: {name}" for name, reason in self.unordered.items()]
        for part, of in self.unreached.items():
            channels = f"its channels are those of '{of}'" if of else "at full width"
            notes.append(f"did not run on the example input: '{part}' ({channels})")
        return "\n".join([f"{head}, channels ordered by {self.order}" if self.order else head, *lines, *notes])


def _replaces(value: object, old: object) -> bool:
    """Return whether a value from a file has the type of the integer, or integers, that it replaces in a module."""
    if isinstance(value, list):
        return isinstance(old, list | tuple) and len(value) == len(old)
    return type(value) is int and isinstance(old, int) and not isinstance(old, bool)


class DoesNotFit(AdjoinedError):
    """A module whose own code does not accept narrower tensors, such as a parametrization of a fixed size."""

    module: str
    cause: Exception


@contextmanager
def _naming(name: str, module: nn.Module) -> Iterator[None]:
    """Name the module whose code raises an error."""
    try:
        yield
    except Exception as error:  # whatever the module's own code raises
        found = DoesNotFit(
            f"this module does not accept narrower tensors: {type(error).__name__}: {error}",
            where=f"'{name}' ({type(module).__name__})",
            fix="Name it in `keep`, or make a new plan, which keeps it at full width.",
        )
        found.module, found.cause = name, error
        raise found from error


def _plain(value: Any) -> Any:
    """Return a part of a plan as plain data for JSON."""
    if isinstance(value, (Index, ChannelGroup, Reason)):
        return value.to_json()
    if isinstance(value, Cost):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else value


def _cost(data: Mapping[str, int] | None) -> Cost | None:
    return None if data is None else Cost(**{each.name: data[each.name] for each in fields(Cost)})
