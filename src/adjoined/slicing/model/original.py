"""Checks that a copy of a model is independent: some copies still run, or change, the original model.

`copy.deepcopy` follows modules, bound methods and `functools.partial`, but not functions: a lambda, or a function
defined inside another one, still refers to the original model in a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.modules import full_name, named_tensors

ALONE = "a model whose copies are independent of it, since small networks are copies"
FIX = (
    "Make it a method of its class, or bind it: module.forward = types.MethodType(function, module); for a hook, "
    "functools.partial(module.method, ...)."
)


class Original:
    """The model whose copy is run: its tensors by identity, and the other attributes of its modules.

    Args:
        model: the user's model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(tensor): name for name, tensor in named_tensors(model).items()}
        self._kept = {
            name: {attribute: _Kept(held) for attribute, held in vars(module).items()}
            for name, module in model.named_modules()
        }

    def check_not_read(self, tensors: Iterable[Tensor], module: str) -> None:
        """Raise AdjoinedError if an operator of the copy gets a tensor of the original.

        Args:
            tensors: the operator's operands.
            module: name of the copy's module that runs; "" for the model itself.
        """
        name = next((name for tensor in tensors if (name := self._names.get(id(tensor)))), None)
        if name is not None:
            reader = repr(module) if module else "its own forward"
            raise AdjoinedError(
                f"a copy of the model still runs the original: {reader} reads {name!r} of the original model, "
                "because a function refers to it",
                where=type(self._model).__name__,
                expected=ALONE,
                fix=FIX,
            )

    def undo(self) -> list[str]:
        """Undo what a run changed or added in the modules' attributes; return the names of these attributes."""
        changed: list[str] = []
        for name, module in [each for each in self._model.named_modules() if each[0] in self._kept]:
            kept = self._kept[name]
            added = [attribute for attribute in vars(module) if attribute not in kept]
            for attribute in added:
                del vars(module)[attribute]
            undone = [attribute for attribute, each in kept.items() if each.undo(module, attribute)]
            changed += [full_name(name, attribute) for attribute in (*added, *undone)]
        return changed

    def check_unchanged(self, changed: Sequence[str]) -> None:
        """Raise AdjoinedError if running a copy has changed these attributes of the original."""
        if changed:
            raise AdjoinedError(
                f"a copy of the model writes into the original: '{changed[0]}' changes when the copy runs, "
                "because a hook or another function refers to it",
                where=type(self._model).__name__,
                expected=ALONE,
                fix=FIX,
            )


class _Kept:
    """An attribute of a module, and its contents."""

    def __init__(self, held: Any) -> None:
        self.held, self.inside = held, _inside(held)

    def undo(self, module: nn.Module, attribute: str) -> bool:
        """Restore the attribute; tell whether that was necessary."""
        held = vars(module).get(attribute)
        if held is self.held and _ids(_inside(held)) == _ids(self.inside):
            return False
        vars(module)[attribute] = self.held
        if isinstance(self.held, list):
            self.held[:] = self.inside.values()
        elif isinstance(self.held, dict):
            self.held.clear()
            self.held.update(self.inside)
        return True


def _inside(held: Any) -> dict[Any, Any]:
    """Return the elements of a list or a dict."""
    if isinstance(held, dict):
        return dict(held)
    return dict(enumerate(held)) if isinstance(held, list) else {}


def _ids(inside: dict[Any, Any]) -> dict[Any, int]:
    return {key: id(value) for key, value in inside.items()}
