"""Dimensions that are not channels keep their size: places of a kernel, time steps, kernels of a bank, experts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import LABEL, Ties, sets_of
from adjoined.slicing.plan.reasons import Kind, Reason

NOT_CHANNELS = Reason(Kind.NOT_CHANNELS, "not a channel dimension")


def _used_as_channels(ties: Ties, findings: Findings) -> set[int]:
    """Return the roots of all labels that some operator used as channels."""
    used = {ties.find(label) for label in findings.channels}
    return used | {ties.find(label) for labels in findings.fresh.values() for label in labels.tolist()}


def any_beside_channels(
    ties: Ties, findings: Findings, labels: dict[str, list[Tensor | None]], layers: set[str]
) -> bool:
    """Return whether a layer's weight has labels that no operator used as channels so far."""
    used = _used_as_channels(ties, findings)
    vectors = (vector for name in layers for vector in labels.get(name, ()) if vector is not None)
    return any(ties.find(label) not in used for vector in vectors for label in vector.tolist())


def pin_places(ties: Ties, findings: Findings, labels: dict[str, list[Tensor | None]], layers: set[str]) -> None:
    """Pin to full width what counts places, kernels or matrices, not channels; `layers` names the weights of layers."""
    _pin_unused(ties, findings)
    _pin_padded(ties, findings, labels, layers)
    _pin_banks(ties, findings, labels, layers)
    _pin_experts(ties, findings, labels, layers)


def _pin_unused(ties: Ties, findings: Findings) -> None:
    """Pin what no operator uses as channels: kernel and other positions, time steps, rows of tables."""
    used = _used_as_channels(ties, findings)
    for root, members in sets_of(ties.roots()):
        if root not in used:
            ties.pin(torch.tensor(members, dtype=LABEL, device="cpu"), NOT_CHANNELS)


def _pin_padded(ties: Ties, findings: Findings, labels: dict[str, list[Tensor | None]], layers: set[str]) -> None:
    """Pin what is padded and belongs to no layer, such as relative positions, which code folds by fixed numbers."""
    if findings.padded:
        vectors = (vector for name in layers for vector in labels.get(name, ()) if vector is not None)
        of_layers = {ties.find(label) for vector in vectors for label in vector.tolist()}
        for label, why in findings.padded.items():
            if ties.find(label) not in of_layers:
                ties.pin(torch.tensor([label], device="cpu"), why)


def _pin_banks(ties: Ties, findings: Findings, labels: dict[str, list[Tensor | None]], layers: set[str]) -> None:
    """Pin the number of kernels in a bank (experts, basis functions) to full width.

    A tensor is made of kernels if its labels appear in a computed kernel along its positions, or along its output and
    input channels at once; its other dimensions count the kernels. Weights of `layers` are not banks: they read
    channels.
    """
    roots = torch.frombuffer(ties.roots(), dtype=torch.int64)
    for kernel in findings.kernels:
        dims: dict[int, set[int]] = {}
        for dim, slot in kernel:
            for root in roots[slot.long()].unique().tolist():
                dims.setdefault(root, set()).add(dim)
        for name, vectors in labels.items():
            if name in layers:
                continue
            inside = [
                set() if v is None else set().union(*(dims.get(root, set()) for root in roots[v.long()].tolist()))
                for v in vectors
            ]
            if max(set().union(*inside), default=0) > 1 or len(set().union(*inside)) > 1:
                for vector, found in zip(vectors, inside, strict=True):
                    if vector is not None and not found:
                        ties.pin(vector, Reason(Kind.PLACES, "counts the kernels in a bank"))


def _pin_experts(ties: Ties, findings: Findings, labels: dict[str, list[Tensor | None]], layers: set[str]) -> None:
    """Pin the number of matrices in a stack (experts, basis functions) to full width.

    The tensor has three labelled dimensions or more. One product sums over the channels that its matrices read; another
    operator sums over the matrices, and leaves the channels that they write. A softmax that weights the matrices shows
    which sum is which; without one, the first dimension counts the matrices. In an attention whose weights have a
    dimension for heads, the second sum is over features inside heads, which are a batch of products, or over both at
    once.
    """
    roots = torch.frombuffer(ties.roots(), dtype=torch.int64)

    def sets(slot: Tensor) -> set[int]:
        return set(roots[slot.long()].unique().tolist()) - {0}

    sums = [(sets(each.over), set().union(*map(sets, each.left)), each.product) for each in findings.sums]
    shares = sets(torch.tensor(sorted(findings.shares), dtype=LABEL, device="cpu"))
    for name, vectors in labels.items():
        known = {dim: vector for dim, vector in enumerate(vectors) if vector is not None}
        dims = {dim: sets(vector) for dim, vector in known.items()}
        if name in layers or len(dims) < 3:
            continue
        counting = [dim for dim in dims if _counts_matrices(dim, dims, sums)]
        shared = [dim for dim in counting if dims[dim] & shares]
        for dim in shared or [dim for dim in counting if dim == 0]:
            ties.pin(known[dim], Reason(Kind.PLACES, "counts the matrices of a stack"))


def _counts_matrices(dim: int, dims: dict[int, set[int]], sums: Iterable[tuple[set[int], set[int], bool]]) -> bool:
    """Return whether a dimension of a tensor is summed over, and another dimension by another product."""
    own, others = dims[dim], set().union(*(each for other, each in dims.items() if other != dim))
    among = [(over, product) for over, left, product in sums if left & others]
    return any(over & own for over, _ in among) and any(
        product and over & others and not over & own for over, product in among
    )
