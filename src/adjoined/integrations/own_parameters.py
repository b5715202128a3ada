"""What small networks have besides slices of the base, in the optimizers and checkpoints of other people's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from adjoined.errors import AdjoinedError
from adjoined.network import AdjoinedNetwork
from adjoined.slicing import SlicePlan, unwrap


def train_with_base(net: AdjoinedNetwork, optimizers: Iterable[Optimizer]) -> None:
    """Add the small networks' own parameters to the optimizers of the base, each to the group of the base's namesake.

    So they get its learning rate, weight decay and schedule. Parameters that an optimizer has already, and those whose
    namesake is in none, are left alone.

    Args:
        net: the joint network.
        optimizers: those of the base, before their first step.
    """
    groups = {id(each): group for one in optimizers for group in one.param_groups for each in group["params"]}
    of_base = dict(net.base.named_parameters(remove_duplicate=False))
    for name, parameter in net.smalls.named_parameters():
        group = groups.get(id(of_base[name.split(".", 1)[1]]))
        if group is not None and id(parameter) not in groups:
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(f"smalls.{name}")


class FollowsBase:
    """Freezes and unfreezes the small networks' own parameters with the base's of the same names, at any time.

    A fine-tuning callback may unfreeze parts of the base after some epochs, and only then give them to an optimizer.
    """

    def __init__(self, net: AdjoinedNetwork) -> None:
        self.net = net
        self._trained: set[str] | None = None
        self._held = -1

    def look(self, optimizers: Sequence[Optimizer]) -> None:
        """Follow what has changed in the base and in its optimizers."""
        trained = {name for name, parameter in self.net.base.named_parameters() if parameter.requires_grad}
        if trained != self._trained:
            for small in self.net.smalls:
                for name, parameter in small.named_parameters():
                    parameter.requires_grad_(name in trained)
                for norm in small.modules():
                    if isinstance(norm, _NormBase) and norm.running_mean is not None:
                        norm.track_running_stats = True  # also where those of a frozen base stay
            self._trained = trained
        if self._held != _held(optimizers):
            train_with_base(self.net, optimizers)
            self._held = _held(optimizers)


def _held(optimizers: Iterable[Optimizer]) -> int:
    return sum(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)


def own_state(net: AdjoinedNetwork) -> dict[str, Any]:
    """Return the slice plans and the small networks' own tensors, as plain values and tensors."""
    return {"plans": [plan.to_json() for plan in net.plans], "smalls": dict(net.smalls.state_dict())}


def load_own_state(net: AdjoinedNetwork, state: Mapping[str, Any], where: str) -> None:
    """Load the result of `own_state` into a joint network whose base has its weights already.

    Raises:
        AdjoinedError: the small networks are sliced differently.
    """
    saved = [SlicePlan.from_json(plan) for plan in state["plans"]]
    if [plan.tensors for plan in saved] != [plan.tensors for plan in net.plans]:
        raise AdjoinedError(
            "the checkpoint's small networks do not match these settings",
            where=where,
            expected=", ".join(f"alpha {plan.alpha:g}" for plan in saved),
            got=", ".join(f"alpha {plan.alpha:g}" for plan in net.plans),
            fix="Use the settings of the training run that saved it.",
        )
    net.smalls.load_state_dict(state["smalls"])


def joined_as(model: nn.Module, state: Mapping[str, Any]) -> AdjoinedNetwork:
    """Return the joint network of a base with its weights (used, not copied) and the result of `own_state`."""
    own = {name.split(".", 1)[1] for name in state["smalls"]}
    base = unwrap(model)
    layers = {name.rpartition(".")[0] for name, _ in base.named_parameters(remove_duplicate=False) if name in own}
    plans = [SlicePlan.from_json(plan) for plan in state["plans"]]
    net = AdjoinedNetwork(base, plans, private=sorted(layers))
    net.smalls.load_state_dict(state["smalls"])
    return net
