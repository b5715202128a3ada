"""The second run: a small network runs with the labels that it keeps, and is compared with the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from adjoined.slicing.flow.labels import OutOfStep, along
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.flow.sizes import Mismatch
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.chance import same_chance
from adjoined.slicing.model.cost import cost_of_run
from adjoined.slicing.model.inputs import tensor_leaves
from adjoined.slicing.model.misuse import another_path
from adjoined.slicing.model.modules import named_tensors
from adjoined.slicing.plan.index import take
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason


def try_plan(plan: SlicePlan, small: nn.Module, traced: Trace, flow: LabelFlow) -> SlicePlan:
    """Run the small network of a plan, and return the plan with its cost.

    Raises:
        OutOfStep: two groups meet that are separate in the base, code asks for a size that the base has, or the
            outputs have other shapes. The model's own code may raise anything on narrow tensors.
    """
    outputs = _run(plan, small, traced, flow)
    shapes, expected = [out.shape for out in outputs], traced.output_shapes
    if traced.sizes_by_value or flow.values.decide:
        alike = [len(shape) for shape in shapes] == [len(shape) for shape in expected]
    else:
        alike = shapes == expected
    if not alike:
        raise OutOfStep(f"the outputs have the shapes {[tuple(s) for s in shapes]}")
    macs = flow.flops.total() // 2 // traced.inputs.batch_size
    return replace(plan, base_cost=traced.cost, cost=cost_of_run(small, traced.finished, macs))


def _run(plan: SlicePlan, small: nn.Module, traced: Trace, flow: LabelFlow) -> list[Tensor]:
    """Run the small network with the labels that it keeps, in every mode that was traced, and return its outputs."""
    tensors = named_tensors(small)
    each_once = {id(tensor): (name, tensor) for name, tensor in reversed(tensors.items())}
    for name, tensor in each_once.values():
        kept = enumerate(zip(traced.labels[name], plan.indices(name), strict=True))
        slots = [along(take(vector, (index,)), d, tensor.ndim) for d, (vector, index) in kept if vector is not None]
        flow.carry(tensor, slots)
    with same_chance():
        outputs = tensor_leaves(flow.run(small, traced.inputs))
        if traced.train_inputs is not None:
            outputs += tensor_leaves(flow.run(small, traced.train_inputs, train=True))
    return outputs


def check_path(flow: LabelFlow, traced: Trace) -> None:
    """Raise AdjoinedError if values sent the small network along another path than the base."""
    if flow.values.read_in is not None:
        for here, there in zip(flow.path, traced.path, strict=False):
            if here != there:
                raise another_path(traced.model, flow.values.read_in, [here, there])


Progress = tuple[int, int]
"""How far a run got: number of operators, position of the wrong size among the last one's arguments."""


@dataclass
class Failure:
    """A failed attempt to run the small network."""

    error: Exception
    module: str
    """The module that ran."""
    steps: int
    """Number of operators that had run, of those that the base network runs."""
    last: tuple[int, ...] = ()
    """Labels of the channels that the last operator returned."""

    @property
    def progress(self) -> Progress:
        """How far the run got; later is greater."""
        return self.steps, self.error.position if isinstance(self.error, Mismatch) else 0

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the channels concerned, as far as they are known."""
        return self.error.labels if isinstance(self.error, OutOfStep) else self.last

    @property
    def why(self) -> Reason:
        """Why the channels concerned stay at full width, if nothing helps."""
        if isinstance(self.error, OutOfStep):
            return self.error.why
        return Reason(Kind.DOES_NOT_RUN, f"{type(self.error).__name__}: {self.error} in '{self.module}'")
