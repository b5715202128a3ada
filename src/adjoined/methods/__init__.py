"""Training methods: one short file per method or family of methods.

A new method is a class that fills in `Method`, its name in `adjoined.method_settings.METHODS`, and a line in `METHODS`.
"""

from __future__ import annotations

from adjoined.methods.adjoint import Adjoint, AdjointPlus
from adjoined.methods.base import BuiltNetwork, Method, Stage, Step, TrainedNetwork
from adjoined.methods.distillation import Distillation
from adjoined.methods.dropout import Dropout
from adjoined.methods.filter_pruning import FilterPruning
from adjoined.methods.mutual import Mutual
from adjoined.methods.replay import Replay
from adjoined.methods.scratch import Scratch, ScratchCompute
from adjoined.methods.slimmable import Slimmable, SlimmableDistill
from adjoined.methods.standard import Standard
from adjoined.methods.transfer import Transfer
from adjoined.methods.weights import WeightPruning

METHODS: dict[str, type[Method]] = {
    "adjoint": Adjoint,
    "adjoint+": AdjointPlus,
    "replay": Replay,
    "transfer": Transfer,
    "standard": Standard,
    "scratch": Scratch,
    "scratch-compute": ScratchCompute,
    "dropout": Dropout,
    "distillation": Distillation,
    "mutual": Mutual,
    "slimmable": Slimmable,
    "slimmable-distill": SlimmableDistill,
    "filter-pruning": FilterPruning,
    "weight-pruning": WeightPruning,
}
"""Name in `--method` -> class."""

__all__ = ["METHODS", "BuiltNetwork", "Method", "Stage", "Step", "TrainedNetwork"]
