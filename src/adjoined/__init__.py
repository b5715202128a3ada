"""Train any CNN and a small twin that shares its weights in one run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from adjoined.loss import adjoint_loss, adjoint_terms
    from adjoined.network import AdjoinedNetwork, adjoin
    from adjoined.objective import adjoint_objective, kl_weight
    from adjoined.runs import load
    from adjoined.slicing import SlicePlan, make_plan
    from adjoined.training.saving import save
    from adjoined.transfer import adjoin_pretrained

__version__ = "0.1.0"

__all__ = [
    "AdjoinedError",
    "AdjoinedNetwork",
    "SlicePlan",
    "adjoin",
    "adjoin_pretrained",
    "adjoint_loss",
    "adjoint_objective",
    "adjoint_terms",
    "kl_weight",
    "load",
    "make_plan",
    "save",
]

# Where the public names live. They are imported when first used, so that `adjoined --help` does without torch.
_HOMES = {
    "AdjoinedNetwork": "network",
    "SlicePlan": "slicing",
    "adjoin": "network",
    "adjoin_pretrained": "transfer",
    "adjoint_loss": "loss",
    "adjoint_objective": "objective",
    "adjoint_terms": "loss",
    "kl_weight": "objective",
    "load": "runs",
    "make_plan": "slicing",
    "save": "training.saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adjoined' has no attribute {name!r}")
    try:
        module = import_module(f"adjoined.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        raise AdjoinedError(
            f"the library {error.name} is not installed",
            where=f"adjoined.{name}",
            fix="Install it: pip install 'adjoined[train]'.",
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
