"""Slicing: which channels belong to the small network. docs/slicing.md shows one network in all passes."""

from adjoined.slicing.flow.cost import cost_by_module, last_linear, measure_cost
from adjoined.slicing.make_plan import Slicer, make_plan, reorder, warn_if_whole
from adjoined.slicing.model.code import mentions
from adjoined.slicing.model.cost import Cost
from adjoined.slicing.model.inputs import Inputs, isolated, tensor_leaves
from adjoined.slicing.model.misuse import check_trainable
from adjoined.slicing.model.modules import (
    WithoutHistory,
    and_parents,
    duplicate,
    evaluating,
    full_name,
    matching_modules,
    named_tensors,
    own_classes,
    private_names,
)
from adjoined.slicing.model.unregistered import unregistered_weights
from adjoined.slicing.model.wrapped import unwrap
from adjoined.slicing.order.importance import check_order
from adjoined.slicing.plan.index import Index, add_at, take
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.budget import Limit, read_budget
from adjoined.slicing.solve.find_alpha import Latency
from adjoined.slicing.solve.request import Request, check_widths
from adjoined.slicing.solve.width_choices import WidthChoice
from adjoined.slicing.solve.widths import AlphaTooLarge
from adjoined.slicing.verify.check import Checked, check_plan

__all__ = [
    "AlphaTooLarge",
    "Checked",
    "Cost",
    "Index",
    "Inputs",
    "Kind",
    "Latency",
    "Limit",
    "Reason",
    "Request",
    "SlicePlan",
    "Slicer",
    "WidthChoice",
    "WithoutHistory",
    "add_at",
    "and_parents",
    "check_order",
    "check_plan",
    "check_trainable",
    "check_widths",
    "cost_by_module",
    "duplicate",
    "evaluating",
    "full_name",
    "isolated",
    "last_linear",
    "make_plan",
    "matching_modules",
    "measure_cost",
    "mentions",
    "named_tensors",
    "own_classes",
    "private_names",
    "read_budget",
    "reorder",
    "take",
    "tensor_leaves",
    "unregistered_weights",
    "unwrap",
    "warn_if_whole",
]
