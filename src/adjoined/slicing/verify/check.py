"""Check a slice plan: compare the small network with the masked base."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from adjoined.errors import AdjoinedError, first_line
from adjoined.slicing.flow.operators import understood
from adjoined.slicing.model.code import reads_mode
from adjoined.slicing.model.inputs import Inputs, tensor_leaves
from adjoined.slicing.model.modules import duplicate, named_tensors, to_float64
from adjoined.slicing.model.original import Original
from adjoined.slicing.model.wrapped import unwrap
from adjoined.slicing.plan.plan import SlicePlan, check_is_plan
from adjoined.slicing.verify.kept import Kept
from adjoined.slicing.verify.liven import liven, random_inputs, relative_error, repeatable
from adjoined.slicing.verify.masked import MaskedBase, narrow
from adjoined.slicing.verify.numbers import Numbers
from adjoined.warn import warn

TOLERANCE = 1e-8
"""Largest relative error of a correct small network, in float64; a wrong channel gives far more."""

SAMPLES = 2
"""How many samples of a batch are enough: a norm or a squeeze may treat a single one differently."""

FIX = "Make a new plan; if it is new, please report the model: this is a bug in adjoined."

MASKED, STRICT = "masked base", "strict second run"
OWN_NUMBERS = "masked base with the small network's own numbers"


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        error: relative error of the worst output: largest difference / largest value; if the masked base does not reach
            the outputs, that of the worst module before them; None if it reaches nothing.
        how: "masked base"; "masked base with the small network's own numbers" if they agree only when the masked base
            takes the factors that the small network's code computes, such as 1/√d; or "strict second run" if the masked
            base does not reach the outputs. Every plan has passed that run: all shapes fit, and no two separate channel
            groups meet.
        where: the first module that the masked base does not reach, and why; "" if it reaches the outputs.
        compared: False if nothing could be compared; `where` is the reason then.
    """

    error: float | None
    how: str
    where: str = ""
    compared: bool = True

    def warn(self) -> None:
        """Warn if nothing could be compared."""
        if not self.compared:
            text = f"the small network was not compared with the masked base: {self.where}"
            warn(f"{text} (check=False turns the comparison off)")

    def __str__(self) -> str:
        """One line."""
        if self.how != STRICT:
            return f"agrees with the {self.how}, in float64"
        if not self.compared:
            return f"checked by the {self.how} only: {self.where}"
        line = f"checked by the {self.how} from {self.where}"
        return line if self.error is None else f"{line}; agrees with the masked base up to there, in float64"


class Differs(AdjoinedError):
    """A small network does not compute what the masked base does; `module` is the first one that differs."""

    module = ""


def check_plan(model: nn.Module, example_input: Any, plan: SlicePlan) -> Checked:
    """Compare the small network of a plan with the masked base, in float64, on random input.

    They are compared in eval mode, and in train mode, too, if the model's code reads it. If a call leaves something in
    the model for the next one, such as a hidden state or statistics, the next one is compared as well, in eval mode.

    A copy of the model gets weights and statistics that let every channel matter. The masked base is this copy at full
    width with all dropped channels at zero and statistics across channels taken over the kept ones.

    Args:
        model: the base network, wrapped or not; it is neither run nor changed.
        example_input: as for `make_plan`. Random numbers replace its floating-point values; indices stay. Two samples
            of a batch are used if the model runs on them.
        plan: the slice plan of the small network.

    Returns:
        The error, at most 1e-8, and how far the comparison reaches: not beyond channel shuffles that do not align, and
        nowhere if the model does not run in float64 or is on the meta device.

    Raises:
        AdjoinedError: `plan` is not a slice plan of this model, the networks differ (the error names the first module
            that does), the small network does not run, or copies of the model still run it.

    Example:
        >>> from adjoined.slicing import make_plan
        >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(1, 32), nn.Conv2d(32, 10, 1))
        >>> example = torch.zeros(1, 3, 8, 8)
        >>> check_plan(net, example, make_plan(net, example, alpha=4)).error < 1e-12
        True
    """
    check_is_plan(plan)
    return Checker(model, example_input).check(plan)


class Checker:
    """Checks plans of one model, whose random weights are made once; see `check_plan`."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._model, self._inputs = unwrap(model), Inputs.of(example_input)
        self._bases: dict[bool, _Base | str] = {}
        self._reads_mode = reads_mode(self._model)

    def check(self, plan: SlicePlan) -> Checked:
        """Return the result for one plan, or raise AdjoinedError."""
        plan.check_fits(self._model)
        try:
            checked = self._in_mode(plan, train=False)
            if self._reads_mode:
                self._in_mode(plan, train=True)
        except torch.OutOfMemoryError as error:
            return _nothing_compared(first_line(error))
        return checked

    def _in_mode(self, plan: SlicePlan, *, train: bool) -> Checked:
        few = self._base(few=True) if self._inputs.batch_size > SAMPLES else None
        if isinstance(few, _Base):
            with contextlib.suppress(Differs):  # the model may need the whole batch
                return _Pair(few, plan, train).compare()
        base = self._base(few=False)
        if not isinstance(base, _Base):
            return _nothing_compared(base)
        pair = _Pair(base, plan, train)
        try:
            return pair.compare()
        except Differs:
            if pair.repeats():
                raise
        return _nothing_compared("two runs of the base network differ, too")

    def _base(self, *, few: bool) -> _Base | str:
        """Return the base network on a few samples or on all, or why it has nothing to compare."""
        if few not in self._bases:
            self._bases[few] = _random_base(self._model, self._inputs.first(SAMPLES) if few else self._inputs)
        return self._bases[few]


@dataclass
class _Steps:
    """The outputs of all modules in the order in which they finish, and how many precede each module's start."""

    outputs: list[tuple[str, list[Tensor | None]]] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Base:
    """A copy of the base network with random weights, and random input, both in float64."""

    model: nn.Module
    inputs: Inputs
    original: Original
    """The user's model, which neither network may run."""

    def inputs_for(self, train: bool) -> Inputs:
        """Return the input; in train mode at least two samples, since norms need more than one value per channel.

        They differ, since norms make zeros of equal ones.
        """

        def with_opposite(tensor: Tensor) -> Tensor:
            other = -tensor if tensor.is_floating_point() or tensor.is_complex() else tensor
            return torch.cat([tensor, other]) if tensor.ndim else tensor

        return self.inputs.map(with_opposite) if train and self.inputs.batch_size == 1 else self.inputs


@dataclass
class _Pair:
    """One comparison of a base network and a small one."""

    base: _Base
    plan: SlicePlan
    train: bool
    calls_again: bool | None = None
    """Whether a call leaves something in the model, so that the next one is compared, too; None before the first."""

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether each call that is compared is in train mode."""
        return (self.train, False) if self.calls_again else (self.train,)

    def compare(self) -> Checked:
        """Compare the outputs, and every module where they differ."""
        try:
            flow, expected = self._run_masked()
        except (AdjoinedError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the model's own code raises on zeros
            return _nothing_compared(f"the base does not run with its dropped channels at zero: {first_line(error)}")
        if self.train and any(bool(each.isnan().any()) for each in expected):  # such as the variance of one sample
            return _nothing_compared("the outputs are not finite in train mode")
        got = self._run_small()
        error = relative_error(got, expected)
        if error <= TOLERANCE:
            return Checked(error, MASKED)
        numbers, network = Numbers(), self.plan.cut(self.base.model)
        for train in self.modes:
            numbers.run(network, self.base.inputs_for(self.train), train=train)
        small, masked = _Steps(), _Steps()
        try:
            with_numbers, expected = self._run_masked(masked, numbers)
            if with_numbers.not_factors:
                numbers.leave_out(with_numbers.not_factors)
                masked = _Steps()
                expected = self._run_masked(masked, numbers)[1]
            error = min(error, relative_error(got, expected))
        except torch.OutOfMemoryError:
            raise
        except Exception as raised:  # whatever the model's own code raises on other numbers
            raise _differs("", error) from raised
        if error <= TOLERANCE:
            return Checked(error, OWN_NUMBERS)
        unknown = flow.not_computed | {m: name for m, name in self.plan.crossing.items() if not understood(name)}
        limits = {module: f"{name} computes across channels" for module, name in unknown.items()}
        limits |= dict.fromkeys(self.plan.unaligned, "channel identity is given up there")
        self._run_small(small)
        return self._judge(error, small, masked, limits)

    def _judge(self, error: float, small: _Steps, masked: _Steps, limits: dict[str, str]) -> Checked:
        """Compare module by module up to the first limit, beyond which the networks may differ."""
        limit = min(limits, key=lambda name: small.starts.get(name, 0), default=None)
        if limit is not None and not self.plan.in_order:  # modules' outputs have their channels in other orders
            return Checked(None, STRICT, f"{_named(limit)}: {limits[limit]}")
        reach = len(small.outputs) if limit is None else small.starts.get(limit, 0)
        worst = None
        for (name, got), (other, expected) in zip(small.outputs[:reach], masked.outputs[:reach], strict=True):
            pairs = [(a, b) for a, b in zip(got, expected, strict=False) if a is not None and b is not None]
            difference = max((relative_error([a], [b]) for a, b in pairs if a.shape == b.shape), default=0.0)
            if name != other or difference > TOLERANCE:
                raise _differs(name, difference)
            worst = max(worst or 0.0, difference)
        if limit is None:
            raise _differs("", error)
        return Checked(worst, STRICT, f"{_named(limit)}: {limits[limit]}")

    def repeats(self) -> bool:
        """Return whether two runs of the base agree; torch's own chance is taken out of them, but no other."""
        return relative_error(*(self._outputs_of(duplicate(self.base.model)) for _ in range(2))) <= TOLERANCE

    def _outputs_of(self, network: nn.Module) -> list[Tensor]:
        """Return the outputs of all calls; the network must be new, since a call may leave something in it."""
        found: list[Tensor] = []
        with repeatable(), torch.no_grad():
            for train in self.modes:
                outputs = tensor_leaves(self.base.inputs_for(self.train).run(network.train(train)))
                found += [tensor.clone() for tensor in outputs]  # the next call may write into what was kept
        return found

    def _run_small(self, steps: _Steps | None = None) -> list[Tensor]:
        small = self.plan.cut(self.base.model)
        try:
            with _watching(small, steps, lambda tensor: tensor):
                return self._outputs_of(small)
        except (AdjoinedError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the model's own code raises on these widths
            raise Differs(
                f"the small network of this plan does not run: {type(error).__name__}: {first_line(error)}",
                where=type(self.base.model).__name__,
                fix=FIX,
            ) from error

    def _run_masked(
        self, steps: _Steps | None = None, numbers: Numbers | None = None
    ) -> tuple[MaskedBase, list[Tensor]]:
        base = duplicate(self.base.model)
        flow = MaskedBase(base, self.plan, numbers)
        flow.original = self.base.original

        def kept(tensor: Tensor) -> Tensor | None:
            blocks = flow.blocks(tensor)
            return None if blocks is None else narrow(tensor, blocks)

        def call(train: bool) -> list[Tensor]:
            outputs = tensor_leaves(flow.run(base, self.base.inputs_for(self.train), train=train))
            parts = ((out, kept(out)) for out in outputs)  # a plan may narrow outputs, too
            return [out.clone() if part is None else part for out, part in parts]

        with _watching(base, steps, kept):
            before = Kept(base)
            outputs = call(self.train)
            if self.calls_again is None:
                self.calls_again = before.changed()
            if self.calls_again:
                outputs += call(train=False)
        return flow, outputs


def _random_base(model: nn.Module, inputs: Inputs) -> _Base | str:
    """Return the base network on random input, or why its outputs show nothing."""
    tensors = (*named_tensors(model).values(), *tensor_leaves((inputs.args, inputs.kwargs)))
    if any(tensor.is_meta for tensor in tensors):
        return "tensors on the meta device have no values"
    try:
        for lively in (True, False):  # random weights may give infinite numbers where the model's own do not
            with torch.no_grad():  # in which the parameters of a copied ScriptModule are leaves
                base = duplicate(model)
            if any(tensor.device.type == "mps" for tensor in tensors):  # it has no float64
                base, inputs = base.cpu(), inputs.map(Tensor.cpu)
            base = base._apply(to_float64).eval()
            before, generator = Original(base), torch.Generator().manual_seed(0)
            random = random_inputs(inputs, generator)
            with repeatable(), torch.no_grad():
                outputs = tensor_leaves(liven(base, random, generator) if lively else random.run(base))
            before.undo()
            if not any(bool(t.isnan().any()) or (t.numel() and bool(t.isinf().all())) for t in outputs):
                return _Base(base, random, Original(model))
    except AdjoinedError:
        raise
    except Exception as error:  # whatever the model's own code raises, and the device
        return f"the model does not run in float64 on random numbers: {first_line(error)}"
    return "the outputs of the base network are not finite on random numbers"


@contextlib.contextmanager
def _watching(model: nn.Module, steps: _Steps | None, part: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Record the outputs of all modules, or the part that `part` returns of each."""
    hooks = []

    def start(name: str) -> None:
        assert steps is not None
        steps.starts.setdefault(name, len(steps.outputs))

    def end(name: str, out: Any) -> None:
        assert steps is not None
        with _disable_current_modes():  # not part of the run
            found = [part(leaf) for leaf in tensor_leaves(out)]
            steps.outputs.append((name, [None if each is None else each.clone() for each in found]))

    for name, module in model.named_modules() if steps is not None else ():
        if not isinstance(module, torch.jit.ScriptModule):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: start(name)))
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: end(name, out)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _nothing_compared(why: str) -> Checked:
    return Checked(None, STRICT, why, compared=False)


def _differs(name: str, error: float) -> Differs:
    found = Differs(
        "the small network does not compute what the base network does with its dropped channels set to zero",
        where=_named(name),
        expected=f"a relative error of at most {TOLERANCE:g} in float64",
        got=f"{error:.1e}, in the first module that differs",
        fix=FIX,
    )
    found.module = name
    return found


def _named(module: str) -> str:
    return f"'{module}'" if module else "the model's own forward"
