"""What to do if the small network does not run: correct an attribute of a module, or keep channels wide.

Every correction is a trial. It is kept only if the small network then runs further than before, so an attribute that
merely looks like a width does not stay changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from adjoined.slicing.flow.labels import OtherCourse, OutOfStep, TooNarrow
from adjoined.slicing.flow.sizes import Formula, Mismatch, Site, count_left
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.modules import and_parents, is_inside
from adjoined.slicing.solve.attributes import Attribute, Corrections
from adjoined.slicing.solve.groups import Group, Grouping, RequiredWidth
from adjoined.slicing.solve.trial import Failure

PATIENCE = 4
"""How often a module's own groups are widened before those of its parent are widened, too."""


class Unaligned(Exception):
    """Channel identity has to be given up at these cuts; the model is traced again."""

    def __init__(self, cuts: set[Site]) -> None:
        super().__init__(f"{len(cuts)} cuts")
        self.cuts = cuts


class _Trial(NamedTuple):
    """A change being tried, the failure that it should overcome, and the state before it."""

    failure: Failure
    ways: Iterator[str]
    corrected: dict[Attribute, Formula]
    required: list[RequiredWidth | None]


@dataclass
class Repairs:
    """The repairs of one trace, tried in this order: attributes, widths, channel identity, full width."""

    trace: Trace
    grouping: Grouping
    may_unalign: bool = True
    log: list[str] = field(default_factory=list)
    corrections: Corrections = field(init=False)
    _trial: _Trial | None = None
    _widened: Counter[str] = field(default_factory=Counter)
    _required: list[RequiredWidth | None] = field(init=False)

    def __post_init__(self) -> None:
        """Start with all attributes as in the base network."""
        self.corrections = Corrections(self.trace, self.grouping)
        self._required = [group.required for group in self.grouping.groups]

    def repair(self, failure: Failure, is_kept: Callable[[int], bool]) -> None:
        """Change something, so that the next attempt gets further.

        Raises:
            Unaligned: the model has to be traced again, with these cuts.
            OutOfStep: all channels are at full width already, and the model still does not run.
        """
        trial, self._trial = self._trial, None
        if trial is not None and failure.progress <= trial.failure.progress:
            self.corrections.corrected = dict(trial.corrected)
            self._require(trial.required)  # then try the next way to overcome the same failure
            failure, ways = trial.failure, trial.ways
        else:
            if trial is not None:
                self.log.append(f"{self.log.pop()}: helped")
            ways = self._ways(failure, is_kept)
        before = (dict(self.corrections.corrected), [group.required for group in self.grouping.groups])
        way = next(ways, None)
        if way is None:
            self._give_up(failure)
        else:
            self._trial = _Trial(failure, ways, *before)
            self.log.append(way)

    def _require(self, widths: list[RequiredWidth | None]) -> None:
        for group, required in zip(self.grouping.groups, widths, strict=True):
            group.required = required

    def _ways(self, failure: Failure, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """Make one change after another and yield what was changed; the caller undoes what does not help."""
        error = failure.error
        if isinstance(error, TooNarrow):
            if self._make_room(error):
                yield f"width changed after: {failure.why}"
            return
        for attribute in self.corrections.propose(failure, is_kept):
            yield f"{attribute} corrected after: {failure.why}"
        if isinstance(error, Mismatch):
            for alike in (False, True):
                if self._set_width(error, alike):
                    yield f"width chosen after: {failure.why}"
            for name in self._raise_source(error, is_kept):
                yield f"width of {name} raised after: {failure.why}"

    # ---- widths ------------------------------------------------------------------------------------------------------

    def _set_width(self, error: Mismatch, alike: bool) -> bool:
        """Give all groups that a size counts the width that the code asks for.

        With `alike`, groups that the same views fold get that width, too: the code uses one width for all.
        """
        if len(error.size.counted) != 1 or error.asked < 1:
            return False
        roots = Counter(self.grouping.roots[label] for label in error.size.counted[0])
        groups = self.grouping.of_all(filter(None, roots))
        repeated = sum(roots.values()) // max(1, len(roots))
        channels, rest = divmod(error.asked, max(1, len(groups) * repeated))
        if alike:
            folds = {fold for group in groups for fold in group.folds}
            sizes = {len(group.roots) for group in groups}
            groups += [g for g in self.grouping.groups if g.folds & folds and len(g.roots) in sizes]
        if not groups or rest or any(g.why or not 0 < channels <= len(g.roots) for g in groups):
            return False
        for group in groups:
            group.required = RequiredWidth(channels, error.why)
        return True

    def _raise_source(self, error: Mismatch, is_kept: Callable[[int], bool]) -> Iterator[str]:
        """If code asks for too few channels, it took their number from another tensor: widen a group of that one.

        Code may multiply this number, such as by 3 for queries, keys and values.
        """
        around = error.site.module.rpartition(".")[0]
        tried: set[Group] = set()
        for name, vectors in self.trace.labels.items():
            for vector in vectors if error.left > error.asked and is_inside(name, around) else ():
                if vector is None or error.size.value % vector.numel():
                    continue
                times = error.size.value // vector.numel()
                labels = vector.tolist()
                if count_left(labels, is_kept) * times != error.asked or (error.left - error.asked) % times:
                    continue
                missing = (error.left - error.asked) // times
                for group in self.grouping.of_all(labels):
                    more = missing // group.bundle
                    if group not in tried and not group.why and 0 < more <= len(group.roots) - group.kept:
                        tried.add(group)
                        group.required = RequiredWidth(group.kept + more, error.why)
                        yield name

    def _make_room(self, error: TooNarrow) -> bool:
        """Share out the channels that arrive after an unaligned cut among the groups there; narrow a group only once.

        A split may cut these channels into several groups, which must be alike.
        """
        groups = self.grouping.of_all(error.expected)
        share, rest = divmod(error.arriving, max(1, len(groups)))
        if not groups or rest or len({(group.width, group.bundle, group.kept) for group in groups}) > 1:
            return False
        group = groups[0]
        if any(each.why for each in groups) or share > group.width:
            return False
        fewer = share < group.kept * group.bundle
        if fewer and (share % group.bundle or any(each.required for each in groups)):
            return False
        for each in groups:
            each.required = RequiredWidth(-(-share // group.bundle), error.why)
        return True

    # ---- what is left: channel identity, full width ------------------------------------------------------------------

    def _give_up(self, failure: Failure) -> None:
        pieces = (
            piece for label in failure.labels for piece in self.grouping.pieces.get(self.grouping.roots[label], ())
        )
        cuts = {piece[0] for piece in pieces} - self.trace.unaligned
        if cuts and self.may_unalign and not isinstance(failure.error, OtherCourse):  # which it would not change
            raise Unaligned(self._and_alike(cuts))
        if not self._widen(failure):
            raise OutOfStep(str(failure.why))
        self._require(self._required)  # widths were chosen for code that met other widths
        self.log.append(f"kept wide after: {failure.why}")

    def _and_alike(self, cuts: set[Site]) -> set[Site]:
        """Return the cuts, with those in other modules of the same classes, which run the same code."""
        kinds = {name: type(module) for name, module in self.trace.model.named_modules()}
        known = {piece[0] for pieces in self.grouping.pieces.values() for piece in pieces}
        alike = {(kinds[cut.module], cut._replace(module="")) for cut in cuts}
        return {cut for cut in known if (kinds[cut.module], cut._replace(module="")) in alike}

    def _widen(self, failure: Failure) -> bool:
        """Keep the groups concerned at full width.

        If there are none left, those of the last operator's results, which the code may have counted; then those of
        the module that are as wide, whose width it may have read; then all of the module, its parents, the model.
        """
        self._widened[failure.module] += 1
        concerned = self.grouping.of_all(failure.labels)
        groups = self._narrow(concerned) or self._narrow(self.grouping.of_all(failure.last))
        widths = {group.width for group in concerned}
        groups = groups or {g for g in self._narrow(self.grouping.inside(failure.module)) if g.width in widths}
        for level, name in enumerate(and_parents(failure.module)):
            if groups and self._widened[failure.module] <= PATIENCE * (level + 1):
                break
            groups |= self._narrow(self.grouping.inside(name))
        why, padded = failure.why, self.trace.findings.padded
        if not isinstance(failure.error, Mismatch):  # the number of channels after a padding shows at other operators
            why = next((padded[label] for label in failure.labels if label in padded), why)
        for group in groups:
            group.why = why
        return bool(groups)

    @staticmethod
    def _narrow(groups: Iterable[Group]) -> set[Group]:
        """Return the groups that may be narrowed."""
        return {group for group in groups if not group.why}
