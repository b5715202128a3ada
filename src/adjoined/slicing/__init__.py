"""Slicing: which channels belong to the small network, and the small network itself."""

from adjoined.slicing.check import Checked, check_plan
from adjoined.slicing.cost import Cost, cost_by_module, measure_cost
from adjoined.slicing.order import reorder
from adjoined.slicing.plan import ChannelGroup, SlicePlan
from adjoined.slicing.solve import make_plan

__all__ = [
    "ChannelGroup",
    "Checked",
    "Cost",
    "SlicePlan",
    "check_plan",
    "cost_by_module",
    "make_plan",
    "measure_cost",
    "reorder",
]
