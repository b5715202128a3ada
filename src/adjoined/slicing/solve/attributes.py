"""The attributes in which modules store numbers of channels (`num_heads`, `config.width`), and corrections of them.

Copied into the small network, they still hold the base's values. A size that an operator gets does not show which
attribute it came from, so all possible attributes are proposed, the likeliest first; `repair.py` tries them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

from torch import nn

from adjoined.slicing.flow.sizes import Formula, Mismatch, Site, Size
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.modules import MANAGED_SIZES, and_parents, has_managed_sizes
from adjoined.slicing.model.stored import read, replaced, settings_in, stored_in
from adjoined.slicing.plan.reasons import Kind
from adjoined.slicing.solve.groups import Grouping
from adjoined.slicing.solve.trial import Failure

_NOT_CHANNELS = {"training", "kernel_size", "stride", "padding", "dilation", "output_padding"}
"""Attributes of layers that never count channels."""

FACTORS = range(2, 65)
"""A size may be an attribute's value multiplied, or divided, by one of these."""


class Attribute(NamedTuple):
    """An integer that a module stores, itself or in its settings ("config.width"), or an element of a list of them."""

    module: str
    name: str
    element: int | None


class Candidate(NamedTuple):
    """An attribute that a size may come from: (attribute + added - taken) * by = size * times."""

    attribute: Attribute
    site: Site
    position: int
    times: int = 1
    by: int = 1
    added: Attribute | None = None
    taken: Attribute | None = None


@dataclass
class Corrections:
    """The attributes of a model's modules that have been corrected, and proposals for further ones."""

    trace: Trace
    grouping: Grouping
    corrected: dict[Attribute, Formula] = field(default_factory=dict)

    def values(self, is_kept: Callable[[int], bool]) -> dict[str, Any]:
        """Return the corrected attributes, "module.attribute" -> value in the small network."""
        sizes = ((attribute, formula.value(is_kept)) for attribute, formula in self.corrected.items())
        return replaced(self.trace.model, ((attribute, value) for attribute, value in sizes if value is not None))

    def propose(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """Correct one attribute after another and yield its name; the caller undoes what does not help."""
        made: set[tuple[Attribute, int | None]] = set()
        before = dict(self.corrected)
        for candidate in self._candidates(failure, is_kept):
            self._correct(candidate, is_kept)
            formula = self.corrected.get(candidate.attribute)
            change = (candidate.attribute, formula and formula.value(is_kept))
            if formula is not None and change not in made:
                made.add(change)
                yield f"{candidate.attribute.module}.{candidate.attribute.name}"
            self.corrected = dict(before)  # even if the same change was made before and is not tried again
        together = list(self._agreeing(failure.module, is_kept))
        if len(together) > 1:  # a size computed from several attributes is right once they all are
            for candidate in together:
                self._correct(candidate, is_kept)
            yield ", ".join(f"{each.attribute.module}.{each.attribute.name}" for each in together)
        if not isinstance(failure.error, Mismatch):
            for attribute, formula in self._like_widths(failure, is_kept):
                self.corrected[attribute] = formula
                yield f"{attribute.module}.{attribute.name}"

    def _candidates(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[Candidate]:
        """Yield the attributes that may be wrong: first those that the wrong size may come from, then all others."""
        every = [each for owner in self._owners(failure.module) for each in self._attributes_of(owner, is_kept)]
        own = [each for each in every if "." not in each[0].name]
        stored = [*own, *(each for each in every if "." in each[0].name)]  # settings may hold a hundred numbers
        if isinstance(failure.error, Mismatch):
            yield from _explaining(failure.error, own, stored)
        for site, sizes in self.trace.findings.sizes.items():
            if site.module == failure.module:
                for position, size in enumerate(sizes):
                    if size.counted and size.left(is_kept) != size.value:
                        same = (attribute for attribute, value in stored if value == size.value)
                        yield from (Candidate(attribute, site, position) for attribute in same)

    def _agreeing(self, module: str, is_kept: Callable[[int], bool]) -> Iterator[Candidate]:
        """Yield the attributes that a module's operators get unchanged, if they all agree on what is left."""
        for attribute, value in self._attributes_of(module, is_kept):
            uses = [
                (Candidate(attribute, site, position), size.left(is_kept))
                for site, sizes in self.trace.findings.sizes.items()
                if site.module == module
                for position, size in enumerate(sizes)
                if size.counted and size.value == self._value(attribute)
            ]
            if len({left for _, left in uses}) == 1 and uses[0][1] != value:
                yield uses[0][0]

    def _owners(self, module: str) -> Iterator[str]:
        """Yield the modules whose attributes the code of a module may read: itself, its children, its parents."""
        yield module
        yield from (f"{module}.{name}".removeprefix(".") for name, _ in self._module(module).named_children())
        yield from list(and_parents(module))[1:]

    def _module(self, name: str) -> nn.Module:
        return self.trace.model.get_submodule(name)

    def _attributes_of(self, owner: str, is_kept: Callable[[int], bool]) -> Iterator[tuple[Attribute, int]]:
        """Yield the attributes of a module with their current values, without those that `set_sizes` maintains."""
        module = self._module(owner)
        managed = MANAGED_SIZES if has_managed_sizes(module) else ()
        for name, stored in (stored_in(module) | settings_in(module)).items():
            if name in managed or name in _NOT_CHANNELS:
                continue
            values: list[tuple[int | None, int]] = [(None, stored)] if _is_positive(stored) else []
            if isinstance(stored, (list, tuple)) and all(map(_is_positive, stored)):
                values = list(enumerate(stored))
            for element, value in values:
                attribute = Attribute(owner, name, element)
                corrected = self.corrected.get(attribute)
                yield attribute, (corrected and corrected.value(is_kept)) or value

    def _correct(self, candidate: Candidate, is_kept: Callable[[int], bool]) -> None:
        """Correct an attribute, and the same one in every module of the same class: they run the same code."""
        for attribute, size in self._alike(candidate):
            formula = self._formula(candidate, attribute, size)
            if formula is not None and formula.value(is_kept) is not None:
                self.corrected[attribute] = formula

    def _formula(self, candidate: Candidate, attribute: Attribute, size: Size) -> Formula | None:
        """Return the formula of an attribute; None if the candidate's equation does not hold in the base network."""
        added = candidate.added and candidate.added._replace(module=attribute.module)
        taken = candidate.taken and candidate.taken._replace(module=attribute.module)
        value = self._value(attribute) + self._value(added) - self._value(taken)
        if not size.counted or abs(size.value) * candidate.times != value * candidate.by:
            return None
        plus, minus = self._labels_of(taken), self._labels_of(added)
        if plus is None or minus is None:
            return None
        return Formula((*size.counted[0], *plus), minus, candidate.times, candidate.by)

    def _labels_of(self, attribute: Attribute | None) -> tuple[int, ...] | None:
        """Return the labels that an attribute counts, 0 for what is never dropped; None if it is not a simple sum."""
        formula = None if attribute is None else self.corrected.get(attribute)
        if formula is None:
            return (0,) * self._value(attribute)
        return formula.plus if formula == Formula(formula.plus) else None

    def _value(self, attribute: Attribute | None) -> int:
        """Return the base network's value; 0 if the module stores another kind of value, or a shorter list."""
        if attribute is None:
            return 0
        value: Any = read(self._module(attribute.module), attribute.name)
        if attribute.element is not None:
            listed = isinstance(value, (list, tuple)) and attribute.element < len(value)
            value = value[attribute.element] if listed else None
        return value if _is_positive(value) else 0

    def _alike(self, candidate: Candidate) -> Iterator[tuple[Attribute, Size]]:
        """Yield the candidate's attribute in every module of its class that passes it to the same operator."""
        attribute, site = candidate.attribute, candidate.site
        kind = type(self._module(attribute.module))
        for name, module in self.trace.model.named_modules():
            if type(module) is kind and read(module, attribute.name) is not None:
                runs = _moved(site.module, attribute.module, name)
                sizes = self.trace.findings.sizes.get(site._replace(module=runs), ())
                if len(sizes) > candidate.position:
                    yield attribute._replace(module=name), sizes[candidate.position]

    def _like_widths(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[tuple[Attribute, Formula]]:
        """Yield attributes of a module, or of its parents, that equal the width of a group concerned, or of all."""
        groups = self.grouping.of_all(failure.labels) or self.grouping.inside(failure.module)
        groups = [g for g in groups if g.why is None or g.why.kind is not Kind.NOT_CHANNELS]
        narrowed = [g for g in groups if g.kept < len(g.roots)]
        seen = Counter(self.grouping.roots[label] for label in failure.labels)
        times = {g: max(seen[root] for root in g.roots) for g in groups}
        every = tuple(root for g in groups for root in g.roots for _ in range(times[g]))
        for owner in self._owners(failure.module):
            for attribute, value in self._attributes_of(owner, is_kept):
                for group in narrowed:
                    if group.width == value and attribute not in self.corrected:
                        yield attribute, Formula(tuple(group.roots), times=group.bundle)
                if len(groups) > 1 and narrowed and len(every) == value and attribute not in self.corrected:
                    yield attribute, Formula(every)


def _explaining(
    error: Mismatch, own: Sequence[tuple[Attribute, int]], stored: Sequence[tuple[Attribute, int]]
) -> Iterator[Candidate]:
    """Yield attributes that a wrong size may come from: equal to it, a multiple or fraction of it, or part of a sum."""
    asked, site, position = error.asked, error.site, error.position
    yield from (Candidate(attribute, site, position) for attribute, value in stored if value == asked)
    for attribute, value in stored:
        if value > 1 and asked % value == 0 and asked // value in FACTORS:
            yield Candidate(attribute, site, position, by=asked // value)
        elif asked > 1 and value % asked == 0 and value // asked in FACTORS:
            yield Candidate(attribute, site, position, times=value // asked)
    for (attribute, value), (other, part) in permutations(own, 2):
        if attribute.module == other.module and value - part == asked:
            yield Candidate(attribute, site, position, taken=other)
        elif attribute.module == other.module and value + part == asked:
            yield Candidate(attribute, site, position, added=other)


def _moved(module: str, owner: str, other: str) -> str:
    """Return the module that is to `other` what `module` is to `owner`: the same, one below it, or its parent.

    Example:
        >>> _moved("a.attn.qkv", "a.attn", "b.attn"), _moved("a.attn", "a.attn.table", "b.attn.table")
        ('b.attn.qkv', 'b.attn')
    """
    if len(module) < len(owner):
        return other.rpartition(".")[0]
    return (other + module[len(owner) :]).removeprefix(".")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
