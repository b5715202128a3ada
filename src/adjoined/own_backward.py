"""Refuses models whose own backward pass needs weights that a small network has during a call only."""

from __future__ import annotations

from typing import Any

from adjoined.errors import AdjoinedError
from adjoined.slicing import lists_parameters, tensor_leaves


def refuse_listing(output: Any) -> None:
    """Raise AdjoinedError if the model's own autograd functions list parameters in the backward pass.

    By then, the slices have been unbound, and only private parameters would be listed.
    """
    left, seen = [leaf.grad_fn for leaf in tensor_leaves(output)], set[Any]()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [each for each, _ in node.next_functions]
            own = getattr(type(node), "_forward_cls", None)
            if own is not None and lists_parameters(own.backward):
                raise AdjoinedError(
                    "the backward pass lists the parameters of layers, where a small network has slices no longer",
                    where=f"{own.__name__}.backward",
                    expected="the weights that its forward was given, kept in ctx",
                    fix='Change it, or share no weights: adjoin(..., private=("*",)).',
                )
