"""Parts that the example input does not reach: which channels they use, as far as its structure shows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import Ties
from adjoined.slicing.model.modules import is_inside, is_norm, named_tensors

Labels = dict[str, list[Tensor | None]]
Channels = tuple[int, ...]
"""The root of each label along one dimension."""


def follow_unreached(model: nn.Module, labels: Labels, ties: Ties, findings: Findings) -> dict[str, str]:
    """Tie the channels of parts that did not run to those of parts that did.

    A part follows a sibling module of its class that ran, with tensors of the same sizes: one of several norms, a
    second head, another branch; an entry of a ParameterDict or ParameterList follows another entry. Otherwise a single
    layer, or the first layer of a sequence, reads the only channel group of the model that has its width. If several
    answers are possible, a part follows none.

    Returns:
        Each part, a module or a parameter of a module that ran -> the part whose channels it follows, or "".
    """
    known = _Known(model, labels, ties, findings)
    followed = {part: known.follow(part) for part in known.modules()}
    return followed | {part: known.follow_entry(part) for part in known.parameters()}


def parts_that_ran(model: nn.Module, findings: Findings) -> set[str]:
    """Return the modules that ran, or in which one did or a tensor was read."""
    ran = {*findings.ran, *(name.rpartition(".")[0] for name in findings.readers)}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # hooks do not see what runs in it
            ran |= {f"{name}.{inner}".rstrip(".") for inner, _ in module.named_modules()}
    return {name.rsplit(".", n)[0] for name in ran for n in range(name.count(".") + 1)} | {""}


class _Known:
    """The parts that ran, and their channels."""

    def __init__(self, model: nn.Module, labels: Labels, ties: Ties, findings: Findings) -> None:
        self.model, self.labels, self.ties, self.findings = model, labels, ties, findings
        self.tensors = named_tensors(model)
        self.ran = parts_that_ran(model, findings)
        self.members = torch.bincount(torch.frombuffer(ties.roots(), dtype=torch.int64))

    def modules(self) -> Iterator[str]:
        """Yield the outermost modules with channels that did not run."""
        for name, module in self.model.named_modules():
            if name not in self.ran and name.rpartition(".")[0] in self.ran and any(self._labelled(name)):
                learned = any(True for _ in module.parameters())
                if learned or any(is_norm(inner) for inner in module.modules()):
                    yield name

    def parameters(self) -> Iterator[str]:
        """Yield the parameters with channels that no operator read, of modules that ran."""
        for name, _ in self.model.named_parameters():
            owner = name.rpartition(".")[0]
            if (
                owner in self.ran
                and name not in self.findings.readers
                and any(each is not None for each in self.labels[name])
            ):
                yield name

    def follow(self, part: str) -> str:
        """Tie a part to the module that it follows and return that module's name; "" for none."""
        return self._as_sibling(part) or self._by_width(part)

    def follow_entry(self, parameter: str) -> str:
        """Tie an entry of a ParameterDict or ParameterList to others that were read; return the first one's name."""
        holder, _, own = parameter.rpartition(".")
        if not isinstance(self.model.get_submodule(holder), (nn.ParameterDict, nn.ParameterList)):
            return ""
        beside = [f"{holder}.{name}" for name, _ in self.model.get_submodule(holder).named_parameters() if name != own]
        read = [other for other in beside if other in self.findings.readers]
        alike = [other for other in read if self.tensors[other].shape == self.tensors[parameter].shape]
        if len({self._channels(other) for other in alike}) != 1:
            return ""
        for mine, its in zip(self.labels[parameter], self.labels[alike[0]], strict=True):
            self._tie(mine, its)
        return alike[0]

    # ---- a module of the same class ran beside it --------------------------------------------------------------------

    def _as_sibling(self, part: str) -> str:
        parent, _, own = part.rpartition(".")
        kind = type(self.model.get_submodule(part))
        beside = [
            f"{parent}.{name}".removeprefix(".")
            for name, module in self.model.get_submodule(parent).named_children()
            if name != own and type(module) is kind and f"{parent}.{name}".removeprefix(".") in self.ran
        ]
        alike = [other for other in beside if self._same_sizes(part, other)]
        found = {tuple(self._channels(tensor) for tensor in self._labelled(other)) for other in alike}
        if len(found) != 1:
            return ""
        other = alike[0]
        for tensor in self._labelled(part):
            for d, vector in enumerate(self.labels[tensor]):
                self._tie(vector, self.labels[other + tensor.removeprefix(part)][d])
        for inner, _ in self.model.get_submodule(part).named_modules():
            mine, its = (f"{each}.{inner}".rstrip(".") for each in (part, other))
            if its in self.findings.conv_groups:
                self.findings.conv_groups[mine] = self.findings.conv_groups[its]
            for names in (self.findings.whole_by_choice, self.findings.sliced_inside):
                names |= {mine} if its in names else set()
        return other

    def _same_sizes(self, part: str, other: str) -> bool:
        """Return whether two modules have the same tensors, of equal sizes wherever they are labelled."""

        def sizes(name: str) -> dict[str, list[int]]:
            prefix = len(name)
            return {t[prefix:]: [0 if v is None else len(v) for v in self.labels[t]] for t in self._labelled(name)}

        return sizes(part) == sizes(other)

    def _channels(self, tensor: str) -> tuple[Channels, ...]:
        return tuple(() if v is None else self._roots(v) for v in self.labels[tensor])

    def _roots(self, vector: Tensor) -> Channels:
        return tuple(map(self.ties.find, vector.tolist()))

    # ---- only one group has the width of its input -------------------------------------------------------------------

    def _by_width(self, part: str) -> str:
        layer = self._first_layer(part)
        if layer is None:
            return ""
        name, dim = layer
        reads = self.labels[name][dim]
        if reads is None:
            return ""
        found: dict[Channels, str] = {}
        for tensor, vectors in self.labels.items():
            owner = tensor.rpartition(".")[0]
            for vector in vectors[:2] if owner in self.ran else ():
                if vector is not None and len(vector) == len(reads) and self._is_group(vector):
                    found.setdefault(self._roots(vector), owner)
        if len(found) != 1:
            return ""
        self.ties.tie(reads, torch.tensor(*found, dtype=reads.dtype, device="cpu"), part)
        return next(iter(found.values()))

    def _first_layer(self, part: str) -> tuple[str, int] | None:
        """Return the weight that reads a part's input, and its input dimension; None if no plain layer does."""
        module, name = self.model.get_submodule(part), part
        while isinstance(module, nn.Sequential) and len(module):
            name, module = f"{name}.0", module[0]
        plain = isinstance(module, nn.Linear) or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1)
        if not plain or f"{name}.weight" not in self.labels:
            return None
        return f"{name}.weight", int(not getattr(module, "transposed", False))

    def _labelled(self, module: str) -> list[str]:
        """Return the tensors of a module that have channels."""
        return [t for t, each in self.labels.items() if is_inside(t, module) and any(v is not None for v in each)]

    def _is_group(self, vector: Tensor) -> bool:
        """Return whether every label is tied to another; a label that meets nothing is not a channel."""
        return all(int(self.members[self.ties.find(label)]) > 1 for label in vector.tolist())

    def _tie(self, mine: Tensor | None, its: Tensor | None) -> None:
        if mine is not None and its is not None and self._is_group(its):
            self.ties.tie(mine, its, "")
