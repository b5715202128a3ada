"""Slicing: which channels of a model belong to its small network.

A map in the order of the steps; docs/slicing.md takes one network through them.

    make_plan.py            the public functions; a `Slicer` shares the trace of its model among them
    model/                  what is known before a run: modules, inputs, whether copies are independent
    flow/trace.py           1. every index of every parameter and buffer gets a label, and the model runs once
    flow/labels.py             labels, and the sets of labels that are tied: kept or dropped together
    flow/run.py                each operator calls its rule; the rules are in flow/rules/, a file for each family
    flow/course.py             whether the code runs the same operators for fewer channels
    flow/state.py              what a rule can do: read labels, tie them, pin them to full width, pass them on
    flow/slots.py              the part of the state that holds the labels of each tensor of the run
    flow/completion.py         what no operator shows: outputs, parts that did not run, what counts something else
    solve/groups.py         2. tied labels are one channel; channels in the same dimensions are one group
    solve/widths.py            how many of its channels each group keeps
    solve/draft.py          3. the plan that follows: the indices of each tensor
    solve/trial.py          4. the small network runs by the same rules, which now compare instead of tying
    solve/repair.py         5. where it stops: correct an attribute, choose another width, or keep channels wide
    solve/solve.py          the loop over these steps
    plan/                   the plan as data, which cuts the small network out of the model
    verify/                 the small network against the base with its dropped channels at zero
    order/                  important channels first, without changing what the base computes

A *label* is a number for one index of one dimension of one tensor. A *slot* is a tensor of labels, which says to which
channel each element of an activation belongs; along dimensions in which the labels do not change, its size is 1.
"""

from adjoined.slicing.flow.cost import cost_by_module, last_linear, measure_cost
from adjoined.slicing.make_plan import Slicer, explaining, make_plan, reorder, select, warn_if_whole
from adjoined.slicing.model.code import assigned_names, lists_parameters, mentions
from adjoined.slicing.model.cost import Cost
from adjoined.slicing.model.elsewhere import Elsewhere
from adjoined.slicing.model.inputs import Inputs, isolated, tensor_leaves
from adjoined.slicing.model.meta import result_on_meta
from adjoined.slicing.model.misuse import check_arguments, check_trainable
from adjoined.slicing.model.modules import (
    WithoutHistory,
    and_parents,
    as_patterns,
    duplicate,
    evaluating,
    full_name,
    matching_modules,
    named_tensors,
    own_classes,
    private_names,
)
from adjoined.slicing.model.outside import Recorded, is_recorded
from adjoined.slicing.model.unregistered import unregistered_weights
from adjoined.slicing.model.wrapped import unwrap, without_wrappers
from adjoined.slicing.order.importance import check_order
from adjoined.slicing.plan.index import Index, add_at, take
from adjoined.slicing.plan.plan import SlicePlan, check_is_plan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.budget import Limit, read_budget
from adjoined.slicing.solve.find_alpha import Latency
from adjoined.slicing.solve.request import Request, check_widths, refuse_beside_plan
from adjoined.slicing.solve.width_choices import WidthChoice
from adjoined.slicing.solve.widths import AlphaTooLarge
from adjoined.slicing.verify.check import Checked, check_plan

__all__ = [
    "AlphaTooLarge",
    "Checked",
    "Cost",
    "Elsewhere",
    "Index",
    "Inputs",
    "Kind",
    "Latency",
    "Limit",
    "Reason",
    "Recorded",
    "Request",
    "SlicePlan",
    "Slicer",
    "WidthChoice",
    "WithoutHistory",
    "add_at",
    "and_parents",
    "as_patterns",
    "assigned_names",
    "check_arguments",
    "check_is_plan",
    "check_order",
    "check_plan",
    "check_trainable",
    "check_widths",
    "cost_by_module",
    "duplicate",
    "evaluating",
    "explaining",
    "full_name",
    "is_recorded",
    "isolated",
    "last_linear",
    "lists_parameters",
    "make_plan",
    "matching_modules",
    "measure_cost",
    "mentions",
    "named_tensors",
    "own_classes",
    "private_names",
    "read_budget",
    "refuse_beside_plan",
    "reorder",
    "result_on_meta",
    "select",
    "take",
    "tensor_leaves",
    "unregistered_weights",
    "unwrap",
    "warn_if_whole",
    "without_wrappers",
]
