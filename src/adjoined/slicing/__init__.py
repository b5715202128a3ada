"""Slicing: which channels belong to the small network, and the small network itself."""

from adjoined.slicing.make_plan import make_plan
from adjoined.slicing.model.cost import Cost, cost_by_module, measure_cost
from adjoined.slicing.order.reorder import reorder
from adjoined.slicing.plan.plan import ChannelGroup, SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.verify.check import Checked, check_plan

__all__ = [
    "ChannelGroup",
    "Checked",
    "Cost",
    "Kind",
    "Reason",
    "SlicePlan",
    "check_plan",
    "cost_by_module",
    "make_plan",
    "measure_cost",
    "reorder",
]
