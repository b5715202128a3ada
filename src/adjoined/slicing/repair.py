"""What to do when the small network does not run: correct a number that a module keeps, or keep channels wide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from adjoined.slicing.flow import CutKey, Number
from adjoined.slicing.groups import Grouping
from adjoined.slicing.labels import OutOfStep, TooNarrow
from adjoined.slicing.modules import keeps_sizes
from adjoined.slicing.trace import Trace

_NO_WIDTHS = {"training", "kernel_size", "stride", "padding", "dilation"}


class Unaligned(Exception):
    """Channel identity has to be given up at these cuts; the model is traced anew."""

    def __init__(self, cuts: set[CutKey]) -> None:
        super().__init__(f"{len(cuts)} cuts")
        self.cuts = cuts


@dataclass
class Repairs:
    """The repairs of one trace, in the order in which they are tried: numbers, channel identity, width."""

    trace: Trace
    grouping: Grouping
    attributes: dict[tuple[str, str], Number] = field(default_factory=dict)
    """(module, attribute) -> the number of channels that it stands for."""
    log: list[str] = field(default_factory=list)
    _tried: set[str] = field(default_factory=set)
    _because_of: dict[tuple[str, str], str] = field(default_factory=dict)

    def values(self, kept: list[bool]) -> dict[str, Any]:
        """Return the corrected attributes, "module.attribute" -> value in the small network."""
        return {
            f"{module}.{name}" if module else name: _count(number.labels, kept)
            for (module, name), number in self.attributes.items()
        }

    def repair(self, error: Exception, module: str, kept: list[bool]) -> None:
        """Change something, so that the next attempt gets further.

        Raises:
            Unaligned: to be traced anew with these cuts.
            OutOfStep: all channels are at full width already, and the model still does not run.
        """
        message = str(error) if isinstance(error, OutOfStep) else f"{type(error).__name__}: {error} in '{module}'"
        labels = error.labels if isinstance(error, OutOfStep) else ()
        if self._correct_numbers(module, kept):
            self.log.append(f"corrected numbers after: {message}")
            return
        if isinstance(error, TooNarrow) and self._raise(error):
            self.log.append(f"raised a width after: {message}")
            return
        pieces = (piece for label in labels for piece in self.grouping.pieces[self.grouping.roots[label]])
        cuts = {piece[0] for piece in pieces} - self.trace.unaligned
        if cuts:
            raise Unaligned(cuts)
        for place in [place for place, cause in self._because_of.items() if cause == module]:
            del self.attributes[place], self._because_of[place]  # they did not help
        if not self._widen(labels, module, message):
            raise OutOfStep(message)
        self.log.append(f"kept wide after: {message}")

    # ---- numbers that modules keep -----------------------------------------------------------------------------------

    def _correct_numbers(self, failed: str, kept: list[bool]) -> bool:
        """Correct the attributes of the failed module, or of the nearest parent that has any; each module once."""
        for name in _and_parents(failed):
            module = self.trace.model.get_submodule(name)
            if name in self._tried or keeps_sizes(module):
                continue
            self._tried.add(name)
            found = [
                (attribute, number)
                for number in self.trace.findings.numbers.get(name, ())
                if _count(number.labels, kept) not in (number.value, 0)
                for attribute in _attributes_equal_to(module, number.value)
            ]
            for attribute, number in found:
                self._correct(name, attribute, number, failed)
            if found:
                return True
        return False

    def _correct(self, name: str, attribute: str, number: Number, cause: str) -> None:
        """Correct one attribute, and the same attribute in every module of the same class: they run the same code."""
        model = self.trace.model
        places = [(name, number)]
        for other, numbers in self.trace.findings.numbers.items():
            module = model.get_submodule(other)
            if type(module) is type(model.get_submodule(name)) and other != name:
                same_kind = [n for n in numbers if isinstance(n.value, tuple) == isinstance(number.value, tuple)]
                places += [(other, n) for n in same_kind if attribute in _attributes_equal_to(module, n.value)]
        for other, each in places:
            if (other, attribute) not in self.attributes:
                self.attributes[other, attribute] = each
                self._because_of[other, attribute] = cause

    # ---- width -------------------------------------------------------------------------------------------------------

    def _raise(self, error: TooNarrow) -> bool:
        """Give the one group behind an unaligned cut as many channels as arrive there."""
        groups = {id(g): g for g in (self.grouping.of(label) for label in error.expected)}
        if len(groups) != 1:
            return False
        (group,) = groups.values()
        if group.reason or not group.kept * group.bundle < error.arriving <= group.width:
            return False
        group.floor = -(-error.arriving // group.bundle)
        if group.floor >= len(group.roots):
            group.reason = str(error)
        return True

    def _widen(self, labels: tuple[int, ...], module: str, why: str) -> bool:
        """Keep the groups concerned at full width; without any, those of the module, of its parents, of the model."""
        groups = {id(g): g for g in (self.grouping.of(label) for label in labels) if not g.reason}
        for name in _and_parents(module):
            if groups:
                break
            inside = [
                vector
                for tensor, vectors in self.trace.labels.items()
                if not name or tensor.startswith(f"{name}.")
                for vector in vectors
                if vector is not None
            ]
            found = (self.grouping.of(label) for vector in inside for label in vector.tolist())
            groups = {id(g): g for g in found if not g.reason}
        for group in groups.values():
            group.reason = why
        return bool(groups)


def _and_parents(module: str) -> Iterator[str]:
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _attributes_equal_to(module: nn.Module, value: int | tuple[int, ...]) -> list[str]:
    """Return the attributes of a module that hold this number or these numbers."""
    found = []
    for name, held in vars(module).items():
        if name.startswith("_") or name in _NO_WIDTHS or isinstance(held, bool):
            continue
        if isinstance(value, tuple):
            if isinstance(held, (list, tuple)) and tuple(held) == value:
                found.append(name)
        elif isinstance(held, int) and held == value:
            found.append(name)
    return found


def _count(labels: Any, kept: list[bool]) -> Any:
    if isinstance(labels, Tensor):
        return sum(kept[label] for label in labels.tolist())
    if isinstance(labels, list):
        return [_count(each, kept) for each in labels]
    return labels
