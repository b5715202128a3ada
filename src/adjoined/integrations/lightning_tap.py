"""What stands in a LightningModule for its model and its methods while a trainer runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.network import AdjoinedNetwork

Outputs = tuple[Any, ...]
"""The outputs of one call of the joint network: the base's, then every small network's."""


class Tap(nn.Module):
    """The joint network in the model's place: returns the base's output and keeps the small networks'.

    Its state dict is the model's, under the names that the model had.

    Args:
        net: the joint network.
        model: what stood in this place: the base network, or a wrapper of it, such as a compiled one.

    Attributes:
        net: the joint network.
        calls: the outputs of all calls since they were last taken.
        complete: whether a checkpoint with the base's weights also had the small networks' own.
    """

    def __init__(self, net: AdjoinedNetwork, model: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._model = (model,)  # a tuple keeps torch from registering it as a part
        self.calls: list[Outputs] = []
        self.loaded = self.complete = False
        where = next(name for name, part in model.named_modules() if part is net.base)
        self._inside = f"{where}." if where else ""
        self._register_state_dict_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self.register_load_state_dict_post_hook(_forgive_smalls)

    @property
    def model(self) -> nn.Module:
        """What stood in this place."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the base's output."""
        outputs = self.net(*args, **kwargs)
        self.calls.append(outputs)
        return outputs[0]

    def take(self) -> list[Outputs]:
        """Return the outputs of all calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def check(self) -> None:
        """Raise AdjoinedError if weights were loaded into the base, and none into its small networks."""
        if self.loaded and not self.complete:
            raise AdjoinedError(
                "weights were loaded into the base after it was joined, but not into its small networks",
                where="Adjoined",
                fix="Load them before calling the trainer, or use a checkpoint that was saved with this callback, "
                "and with save_weights_only=False.",
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the module's own code reads of its model
            net: Any = super().__getattr__("net")
            return getattr(net.base, name)

    def __getitem__(self, index: Any) -> Any:
        return self.net.base[index]  # pyright: ignore[reportIndexIssue]

    def __len__(self) -> int:
        return len(self.net.base)  # pyright: ignore[reportArgumentType]


_BASE, _SMALLS = "net.base.", "net.smalls."


def _without_prefix(module: Tap, state: dict[str, Any], prefix: str, _meta: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        value, rest = state.pop(name), name.removeprefix(prefix)
        if not rest.startswith(_SMALLS):
            state[f"{prefix}{module._inside}{rest.removeprefix(_BASE)}"] = value


def _with_prefix(module: Tap, state: dict[str, Any], prefix: str, *_: object) -> None:
    module.loaded = True
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}{_BASE}{name.removeprefix(prefix).removeprefix(module._inside)}"] = state.pop(name)


def _forgive_smalls(module: Tap, incompatible: Any) -> None:
    """Leave the small networks to the callback's own state."""
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if _SMALLS not in name]


def replace_method(module: LightningModule, name: str, wrapper: Callable[..., Any]) -> None:
    """Put a function in the place of a method of the module, until `restore_methods`."""
    vars(wrapper)["replaces"] = vars(module).get(name)
    setattr(module, name, wrapper)


def restore_methods(module: LightningModule) -> None:
    """Give a module its methods back: those of its class, or what the user has put in their place."""
    for name in ("training_step", "configure_optimizers"):
        method = vars(module).pop(name, None)
        while hasattr(method, "replaces"):
            method = method.replaces
        if method is not None:
            setattr(module, name, method)
