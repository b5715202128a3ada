"""What to do when the small network does not run: correct a number that a module keeps, or keep channels wide.

Every correction is a trial. It is kept only if the small network then gets further than it did before, so a number
that merely looks like a width is never left changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, NamedTuple

from torch import nn

from adjoined.slicing.groups import Group, Grouping, Wanted
from adjoined.slicing.labels import OutOfStep, TooNarrow
from adjoined.slicing.modules import KEPT_IN_LINE, keeps_sizes
from adjoined.slicing.sizes import Count, Mismatch, Site, Size, count_left
from adjoined.slicing.trace import Trace

_NO_WIDTHS = {"training", "kernel_size", "stride", "padding", "dilation", "output_padding"}

FACTORS = range(2, 65)
"""A number handed to an operator may be a multiple of one that a module keeps, or a part of it, by this factor."""

PATIENCE = 4
"""So many times a module's own groups are widened; from then on those of its parent are, too."""

Place = tuple[int, int]
"""How far a run got: operators run, position of the size that is wrong."""


class Unaligned(Exception):
    """Channel identity has to be given up at these cuts; the model is traced anew."""

    def __init__(self, cuts: set[Site]) -> None:
        super().__init__(f"{len(cuts)} cuts")
        self.cuts = cuts


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
        error = self.error
        return str(error) if isinstance(error, OutOfStep) else f"{type(error).__name__}: {error} in '{self.module}'"


class _Saved(NamedTuple):
    attributes: dict[Attribute, Count]
    wanted: list[Wanted | None]


@dataclass
class Repairs:
    """The repairs of one trace, in the order in which they are tried: numbers, widths, channel identity, full width."""

    trace: Trace
    grouping: Grouping
    may_unalign: bool = True
    attributes: dict[Attribute, Count] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    _failure: Failure | None = None
    _trials: Iterator[str] | None = None
    _saved: _Saved | None = None
    _made: set[tuple[Attribute, int | None]] = field(default_factory=set)
    _widened: Counter[str] = field(default_factory=Counter)

    def values(self, is_kept: Callable[[int], bool]) -> dict[str, Any]:
        """Return the corrected attributes, "module.attribute" -> value in the small network."""
        values: dict[str, Any] = {}
        for (module, name, element), count in self.attributes.items():
            value = count.value(is_kept)
            if value is None:
                continue
            key = f"{module}.{name}" if module else name
            if element is None:
                values[key] = value
            else:
                values.setdefault(key, list(getattr(self._module(module), name)))[element] = value
        return values

    def repair(self, failure: Failure, is_kept: Callable[[int], bool]) -> None:
        """Change something, so that the next attempt gets further.

        Raises:
            Unaligned: to be traced anew with these cuts.
            OutOfStep: all channels are at full width already, and the model still does not run.
        """
        if self._saved is not None:  # the last attempt was a trial
            assert self._failure is not None
            if failure.place > self._failure.place:
                self.log.append(f"{self.log.pop()}: helped")
                self._trials = None
            else:
                self._restore(self._saved)
        else:
            self._trials = None
        if self._trials is None:
            self._failure, self._trials, self._made = failure, self._ways(failure, is_kept), set()
        self._saved = _Saved(dict(self.attributes), [group.wanted for group in self.grouping.groups])
        way = next(self._trials, None)
        if way is None:
            self._saved = self._trials = None
            assert self._failure is not None
            self._give_up(self._failure)
        else:
            self.log.append(way)

    def _restore(self, saved: _Saved) -> None:
        self.attributes = dict(saved.attributes)
        for group, wanted in zip(self.grouping.groups, saved.wanted, strict=True):
            group.wanted = wanted

    def _ways(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """Make one change after the other, each undone by the caller if it does not help; yield what was changed."""
        error = failure.error
        if isinstance(error, TooNarrow):
            if self._make_room(error):
                yield f"width raised after: {failure.message}"
            return
        for candidate in self._candidates(failure, is_kept):
            if self._correct(candidate, is_kept):
                yield f"{candidate.attribute.module}.{candidate.attribute.name} set right after: {failure.message}"
        if isinstance(error, Mismatch):
            for alike in (False, True):
                if self._set_width(error, alike):
                    yield f"width chosen after: {failure.message}"
            for name in self._raise_source(error, is_kept):
                yield f"width of {name} raised after: {failure.message}"
        else:
            for attribute, count in self._numbers_like_widths(failure, is_kept):
                self.attributes[attribute] = count
                yield f"{attribute.module}.{attribute.name} set right after: {failure.message}"

    # ---- numbers that modules keep -----------------------------------------------------------------------------------

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

    def _owners(self, module: str) -> Iterator[str]:
        """Return the modules whose numbers code of a module may use: itself, its children by their methods, parents."""
        yield module
        yield from (f"{module}.{name}".removeprefix(".") for name, _ in self._module(module).named_children())
        yield from list(_and_parents(module))[1:]

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
                corrected = self.attributes.get(attribute)
                yield attribute, (corrected and corrected.value(is_kept)) or value

    def _correct(self, candidate: Candidate, is_kept: Callable[[int], bool]) -> bool:
        """Correct one number, and the same one in every module of the same class: they run the same code."""
        for owner, size in self._alike(candidate):
            count = self._count(candidate, owner, size)
            if count is not None and count.value(is_kept) is not None:
                self.attributes[owner] = count
        changed = self.attributes.get(candidate.attribute)
        made = (candidate.attribute, changed.value(is_kept) if changed else None)
        if changed is None or made in self._made:
            return False
        self._made.add(made)
        return True

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
        """Return what another number counts, as labels, 0 for each that is never dropped; None if it is no plain sum."""
        count = None if attribute is None else self.attributes.get(attribute)
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

    def _numbers_like_widths(
        self, failure: Failure, is_kept: Callable[[int], bool]
    ) -> Iterator[tuple[Attribute, Count]]:
        """Return the numbers of a module, or of its parents, that equal the width of a group concerned or of all."""
        groups = {id(g): g for g in map(self.grouping.of, failure.labels)}
        if not groups:
            groups = {id(g): g for g in self._groups_in(failure.module)}
        narrowed = [g for g in groups.values() if g.kept < len(g.roots)]
        seen = Counter(self.grouping.roots[label] for label in failure.labels)
        times = {name: max(seen[root] for root in group.roots) for name, group in groups.items()}
        every = tuple(root for name, g in groups.items() for root in g.roots for _ in range(times[name]))
        for owner in self._owners(failure.module):
            for attribute, value in self._numbers_of(owner, is_kept):
                for group in narrowed:
                    if group.width == value and attribute not in self.attributes:
                        yield attribute, Count(tuple(group.roots), times=group.bundle)
                if len(groups) > 1 and narrowed and len(every) == value and attribute not in self.attributes:
                    yield attribute, Count(every)

    # ---- widths ------------------------------------------------------------------------------------------------------

    def _set_width(self, error: Mismatch, alike: bool) -> bool:
        """Give the groups that a size counts as many channels as the code asks for, each of them the same number.

        With `alike`, those that the same views fold get as many: the code computes with one width for all of them.
        """
        if len(error.size.counted) != 1 or error.asked < 1:
            return False
        roots = Counter(self.grouping.roots[label] for label in error.size.counted[0])
        groups = {id(g): g for g in (self.grouping.of_root.get(root) for root in roots) if g is not None}
        repeated = sum(roots.values()) // max(1, len(roots))
        channels, rest = divmod(error.asked, max(1, len(groups) * repeated))
        if alike:
            folds = {fold for group in groups.values() for fold in group.folds}
            sizes = {len(group.roots) for group in groups.values()}
            groups |= {id(g): g for g in self.grouping.groups if g.folds & folds and len(g.roots) in sizes}
        if not groups or rest or any(g.reason or not 0 < channels <= len(g.roots) for g in groups.values()):
            return False
        for group in groups.values():
            group.wanted = Wanted(channels, str(error))
        return True

    def _raise_source(self, error: Mismatch, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """Where code asks for too few channels, it took their number from another tensor: give one there more."""
        missing = error.left - error.asked
        around = error.site.module.rpartition(".")[0]
        tried: set[int] = set()
        for name, vectors in self.trace.labels.items():
            for vector in vectors if missing > 0 and (not around or name.startswith(f"{around}.")) else ():
                if vector is None or vector.numel() != error.size.value:
                    continue
                labels = vector.tolist()
                if count_left(labels, is_kept) != error.asked:
                    continue
                for group in {id(g): g for g in map(self.grouping.of, labels)}.values():
                    more = missing // group.bundle
                    if id(group) not in tried and not group.reason and 0 < more <= len(group.roots) - group.kept:
                        tried.add(id(group))
                        group.wanted = Wanted(group.kept + more, str(error))
                        yield name

    def _make_room(self, error: TooNarrow) -> bool:
        """Give the one group behind an unaligned cut as many channels as arrive there."""
        groups = {id(g): g for g in map(self.grouping.of, error.expected)}
        if len(groups) != 1:
            return False
        (group,) = groups.values()
        if group.reason or not group.kept * group.bundle < error.arriving <= group.width:
            return False
        group.wanted = Wanted(-(-error.arriving // group.bundle), str(error))
        return True

    # ---- what is left: channel identity, full width ------------------------------------------------------------------

    def _give_up(self, failure: Failure) -> None:
        pieces = (piece for label in failure.labels for piece in self.grouping.pieces[self.grouping.roots[label]])
        cuts = {piece[0] for piece in pieces} - self.trace.unaligned
        if cuts and self.may_unalign:
            raise Unaligned(self._and_alike(cuts))
        if not self._widen(failure.labels, failure.module, failure.message):
            raise OutOfStep(failure.message)
        self.log.append(f"kept wide after: {failure.message}")

    def _and_alike(self, cuts: set[Site]) -> set[Site]:
        """Return the cuts and the same ones in modules of the same class, which run the same code."""
        kinds = {name: type(module) for name, module in self.trace.model.named_modules()}
        known = {piece[0] for pieces in self.grouping.pieces.values() for piece in pieces}
        alike = {(kinds[cut.module], cut._replace(module="")) for cut in cuts}
        return {cut for cut in known if (kinds[cut.module], cut._replace(module="")) in alike}

    def _widen(self, labels: tuple[int, ...], module: str, why: str) -> bool:
        """Keep the groups concerned at full width; without any, those of the module, of its parents, of the model."""
        self._widened[module] += 1
        groups = {id(g): g for g in map(self.grouping.of, labels) if not g.reason}
        for level, name in enumerate(_and_parents(module)):
            if groups and self._widened[module] <= PATIENCE * (level + 1):
                break
            groups |= {id(g): g for g in self._groups_in(name) if not g.reason}
        for group in groups.values():
            group.reason = why
        return bool(groups)

    def _groups_in(self, module: str) -> Iterator[Group]:
        """Return the groups of the tensors of a module and of the modules in it."""
        for tensor, vectors in self.trace.labels.items():
            if not module or tensor.startswith(f"{module}."):
                for vector in vectors:
                    if vector is not None:
                        yield from map(self.grouping.of, vector.tolist())


def _and_parents(module: str) -> Iterator[str]:
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
