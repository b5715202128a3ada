"""The numbers of channels that modules keep (`num_heads`, split sizes), and which of them an operator was told wrongly.

In the small network they still speak of the base. Nothing says which attribute a size came from, so all that may be
meant are proposed, the likeliest first; `repair.py` tries them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

from torch import nn

from adjoined.slicing.flow.labels import OutOfStep
from adjoined.slicing.flow.sizes import Count, Mismatch, Site, Size
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.modules import KEPT_IN_LINE, keeps_sizes
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.groups import Grouping

_NO_WIDTHS = {"training", "kernel_size", "stride", "padding", "dilation", "output_padding"}

FACTORS = range(2, 65)
"""A number handed to an operator may be a multiple of one that a module keeps, or a part of it, by this factor."""

Place = tuple[int, int]
"""How far a run got: operators run, position of the size that is wrong."""


class Attribute(NamedTuple):
    """A number that a module keeps, or an element of a list of numbers."""

    module: str
    name: str
    element: int | None


class Candidate(NamedTuple):
    """A number that a module may have handed to an operator: (number + added - taken) * by = size * times."""

    attribute: Attribute
    site: Site
    position: int
    times: int = 1
    by: int = 1
    added: Attribute | None = None
    taken: Attribute | None = None


@dataclass
class Failure:
    """One attempt to run the small network that did not succeed."""

    error: Exception
    module: str
    """The module that ran."""
    steps: int
    """Operators that had run, so how far it got."""
    last: tuple[int, ...] = ()
    """Channels that the last of them handled."""

    @property
    def place(self) -> Place:
        """How far the run got; later is greater."""
        return self.steps, self.error.position if isinstance(self.error, Mismatch) else 0

    @property
    def labels(self) -> tuple[int, ...]:
        """The channels concerned, as far as they are known."""
        return self.error.labels if isinstance(self.error, OutOfStep) else self.last

    @property
    def message(self) -> str:
        """What went wrong, and where."""
        return self.reason.text

    @property
    def reason(self) -> Reason:
        """Why the channels concerned stay at full width, if nothing helps."""
        if isinstance(self.error, OutOfStep):
            return self.error.reason
        return Reason(Kind.DOES_NOT_RUN, f"{type(self.error).__name__}: {self.error} in '{self.module}'")


@dataclass
class KeptNumbers:
    """The numbers that the modules of a model keep, as far as they have been corrected."""

    trace: Trace
    grouping: Grouping
    corrected: dict[Attribute, Count] = field(default_factory=dict)

    def values(self, is_kept: Callable[[int], bool]) -> dict[str, Any]:
        """Return the corrected attributes, "module.attribute" -> value in the small network."""
        values: dict[str, Any] = {}
        for (module, name, element), count in self.corrected.items():
            value = count.value(is_kept)
            if value is None:
                continue
            key = f"{module}.{name}" if module else name
            if element is None:
                values[key] = value
            else:
                values.setdefault(key, list(getattr(self._module(module), name)))[element] = value
        return values

    def corrections(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """Correct one number after the other, each undone by the caller if it does not help; yield which it was."""
        made: set[tuple[Attribute, int | None]] = set()
        before = dict(self.corrected)
        for candidate in self._candidates(failure, is_kept):
            self._correct(candidate, is_kept)
            count = self.corrected.get(candidate.attribute)
            change = (candidate.attribute, count and count.value(is_kept))
            if count is not None and change not in made:
                made.add(change)
                yield f"{candidate.attribute.module}.{candidate.attribute.name}"
            self.corrected = dict(before)  # whether it was tried or has been before
        together = list(self._agreeing(failure.module, is_kept))
        if len(together) > 1:  # a size computed from several numbers is right once all of them are
            for candidate in together:
                self._correct(candidate, is_kept)
            yield ", ".join(f"{each.attribute.module}.{each.attribute.name}" for each in together)
        if not isinstance(failure.error, Mismatch):
            for attribute, count in self._like_widths(failure, is_kept):
                self.corrected[attribute] = count
                yield f"{attribute.module}.{attribute.name}"

    def _candidates(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[Candidate]:
        """Return the numbers that may be wrong: those that the size asked for may come from, then all that count."""
        held = [each for owner in self._owners(failure.module) for each in self._numbers_of(owner, is_kept)]
        error = failure.error
        if isinstance(error, Mismatch):
            asked, site, position = error.asked, error.site, error.position
            yield from (Candidate(attribute, site, position) for attribute, value in held if value == asked)
            for attribute, value in held:
                if value > 1 and asked % value == 0 and asked // value in FACTORS:
                    yield Candidate(attribute, site, position, by=asked // value)
                elif asked > 1 and value % asked == 0 and value // asked in FACTORS:
                    yield Candidate(attribute, site, position, times=value // asked)
            for (attribute, value), (other, part) in permutations(held, 2):
                if attribute.module == other.module and value - part == asked:
                    yield Candidate(attribute, site, position, taken=other)
                elif attribute.module == other.module and value + part == asked:
                    yield Candidate(attribute, site, position, added=other)
        for site, sizes in self.trace.findings.sizes.items():
            if site.module == failure.module:
                for position, size in enumerate(sizes):
                    if size.counted and size.left(is_kept) != size.value:
                        same = (attribute for attribute, value in held if value == size.value)
                        yield from (Candidate(attribute, site, position) for attribute in same)

    def _agreeing(self, module: str, is_kept: Callable[[int], bool]) -> Iterator[Candidate]:
        """Return a module's numbers that its operators are told as they are, where all these agree on what is left."""
        for attribute, value in self._numbers_of(module, is_kept):
            told = [
                (Candidate(attribute, site, position), size.left(is_kept))
                for site, sizes in self.trace.findings.sizes.items()
                if site.module == module
                for position, size in enumerate(sizes)
                if size.counted and size.value == self._value(attribute)
            ]
            if len({left for _, left in told}) == 1 and told[0][1] != value:
                yield told[0][0]

    def _owners(self, module: str) -> Iterator[str]:
        """Return the modules whose numbers code of a module may use: itself, its children by their methods, parents."""
        yield module
        yield from (f"{module}.{name}".removeprefix(".") for name, _ in self._module(module).named_children())
        yield from list(and_parents(module))[1:]

    def _module(self, name: str) -> nn.Module:
        return self.trace.model.get_submodule(name)

    def _numbers_of(self, owner: str, is_kept: Callable[[int], bool]) -> Iterator[tuple[Attribute, int]]:
        """Return the numbers that a module keeps, as they are now, unless torch's own layers keep them in line."""
        module = self._module(owner)
        in_line = KEPT_IN_LINE if keeps_sizes(module) else ()
        for name, held in _held_by(module).items():
            if name in in_line:
                continue
            numbers: list[tuple[int | None, int]] = [(None, held)] if _is_number(held) else []
            if isinstance(held, (list, tuple)) and all(map(_is_number, held)):
                numbers = list(enumerate(held))
            for element, value in numbers:
                attribute = Attribute(owner, name, element)
                corrected = self.corrected.get(attribute)
                yield attribute, (corrected and corrected.value(is_kept)) or value

    def _correct(self, candidate: Candidate, is_kept: Callable[[int], bool]) -> None:
        """Correct one number, and the same one in every module of the same class: they run the same code."""
        for owner, size in self._alike(candidate):
            count = self._count(candidate, owner, size)
            if count is not None and count.value(is_kept) is not None:
                self.corrected[owner] = count

    def _count(self, candidate: Candidate, owner: Attribute, size: Size) -> Count | None:
        """Return what a number counts if it stands to a size of the base network as the candidate says."""
        added = candidate.added and candidate.added._replace(module=owner.module)
        taken = candidate.taken and candidate.taken._replace(module=owner.module)
        number = self._value(owner) + self._value(added) - self._value(taken)
        if not size.counted or abs(size.value) * candidate.times != number * candidate.by:
            return None
        plus, minus = self._labels_of(taken), self._labels_of(added)
        if plus is None or minus is None:
            return None
        return Count((*size.counted[0], *plus), minus, candidate.times, candidate.by)

    def _labels_of(self, attribute: Attribute | None) -> tuple[int, ...] | None:
        """Return what another number counts, 0 for each that is never dropped; None if that is no plain sum."""
        count = None if attribute is None else self.corrected.get(attribute)
        if count is None:
            return (0,) * self._value(attribute)
        return count.plus if count == Count(count.plus) else None

    def _value(self, attribute: Attribute | None) -> int:
        if attribute is None:
            return 0
        held: Any = getattr(self._module(attribute.module), attribute.name, 0)
        value = held if attribute.element is None else held[attribute.element]
        return value if _is_number(value) else 0

    def _alike(self, candidate: Candidate) -> Iterator[tuple[Attribute, Size]]:
        """Return the attribute, and its like in other modules of its class that hand it to the same operator."""
        attribute, site = candidate.attribute, candidate.site
        kind = type(self._module(attribute.module))
        for name, module in self.trace.model.named_modules():
            if type(module) is kind and hasattr(module, attribute.name):
                runs = _moved(site.module, attribute.module, name)
                sizes = self.trace.findings.sizes.get(site._replace(module=runs), ())
                if len(sizes) > candidate.position:
                    yield attribute._replace(module=name), sizes[candidate.position]

    def _like_widths(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[tuple[Attribute, Count]]:
        """Return the numbers of a module, or of its parents, that equal the width of a group concerned or of all."""
        groups = {id(g): g for g in map(self.grouping.of, failure.labels)}
        if not groups:
            groups = {id(g): g for g in self.grouping.inside(failure.module)}
        narrowed = [g for g in groups.values() if g.kept < len(g.roots)]
        seen = Counter(self.grouping.roots[label] for label in failure.labels)
        times = {name: max(seen[root] for root in group.roots) for name, group in groups.items()}
        every = tuple(root for name, g in groups.items() for root in g.roots for _ in range(times[name]))
        for owner in self._owners(failure.module):
            for attribute, value in self._numbers_of(owner, is_kept):
                for group in narrowed:
                    if group.width == value and attribute not in self.corrected:
                        yield attribute, Count(tuple(group.roots), times=group.bundle)
                if len(groups) > 1 and narrowed and len(every) == value and attribute not in self.corrected:
                    yield attribute, Count(every)


def and_parents(module: str) -> Iterator[str]:
    """Return a module and all modules that it is in, from the inside; the last is "", the model itself."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _moved(module: str, owner: str, other: str) -> str:
    """Return the module that stands to `other` as `module` stands to `owner`: the same, one below it, or its parent.

    Example:
        >>> _moved("a.attn.qkv", "a.attn", "b.attn"), _moved("a.attn", "a.attn.table", "b.attn.table")
        ('b.attn.qkv', 'b.attn')
    """
    if len(module) < len(owner):
        return other.rpartition(".")[0]
    return (other + module[len(owner) :]).removeprefix(".")


def _held_by(module: object) -> dict[str, Any]:
    """Return what may be a number of channels: attributes of a module, and those that its class body sets."""
    kinds = [kind for kind in reversed(type(module).__mro__) if not kind.__module__.startswith(("torch.", "builtins"))]
    held = {name: value for holder in (*kinds, module) for name, value in vars(holder).items()}
    return {name: value for name, value in held.items() if not name.startswith("_") and name not in _NO_WIDTHS}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
