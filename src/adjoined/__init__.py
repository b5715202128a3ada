"""Train any CNN and its small twin in one run, on shared weights."""

from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_loss, adjoint_terms, kl_weight
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.slicing import SlicePlan, make_plan

__version__ = "0.1.0"

__all__ = [
    "AdjoinedError",
    "AdjoinedNetwork",
    "SlicePlan",
    "adjoin",
    "adjoint_loss",
    "adjoint_terms",
    "kl_weight",
    "make_plan",
]
