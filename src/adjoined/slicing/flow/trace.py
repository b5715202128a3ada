"""The first run: label all tensors of a model, run it, and find which channels are tied."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError, DoesNotRunError
from adjoined.slicing.flow.completion import complete
from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import Ties, along
from adjoined.slicing.flow.not_channels import any_beside_channels
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.state import GroupChoice
from adjoined.slicing.model.chance import same_chance
from adjoined.slicing.model.code import reads_mode
from adjoined.slicing.model.cost import Cost, cost_of_run
from adjoined.slicing.model.inputs import Inputs, tensor_leaves
from adjoined.slicing.model.misuse import check_arguments, check_made, check_output, does_not_run
from adjoined.slicing.model.modules import duplicate, in_place_of, kernel_names, linear_names, named_tensors
from adjoined.slicing.model.original import Original, tensors_kept
from adjoined.slicing.model.state_outside import refuse_state_outside, shared_objects


@dataclass
class Trace:
    """The results of the first run.

    Attributes:
        model: a copy of the model, on the device of the trace; never trained.
        inputs: the example input on that device.
        train_inputs: the same for train mode; None if a run in train mode would add nothing.
        labels: tensor name -> labels of its indices for every dimension (None if the size is 1).
        ties: the sets of tied labels.
        findings: everything else that the run recorded.
        output_shapes: shapes of all tensors that the model returns, eval mode first.
        sizes_by_value: whether sizes may depend on values, such as the number of objects that a detector finds.
        path: the innermost modules in the order in which they ran in eval mode.
        unaligned: cuts after which channel identity was given up.
        shapes: tensor name -> its shape before the run.
        unreached: parts that did not run -> the module whose channels they follow, or "".
        finished: all modules in the order in which they finished in eval mode.
        cost: parameters, and multiply-adds for one sample in eval mode.
    """

    model: nn.Module
    inputs: Inputs
    train_inputs: Inputs | None
    labels: dict[str, list[Tensor | None]]
    ties: Ties
    findings: Findings
    output_shapes: list[torch.Size]
    sizes_by_value: bool
    path: tuple[str, ...]
    unaligned: frozenset[Site]
    unreached: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    finished: tuple[str, ...]
    cost: Cost


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    slices_inside: GroupChoice,
    unaligned: Iterable[Site] = (),
) -> Trace:
    """Run a copy of the model under the label flow, on the meta device if possible.

    It runs in eval mode first, then in train mode if its code reads the mode, if some parameters were not used
    (auxiliary heads), or if a layer's weight was read by something other than the layer (layers that are fused for
    inference).

    Raises:
        AdjoinedError: the model does not run on the example input.
    """
    check_arguments(model, inputs)
    original, unaligned = Original(model), frozenset(unaligned)
    # Where values decide the graph, or something does not support the meta device, the model runs on its own device.
    # `suppress` drops the exception first; it would keep the tensors of the first attempt alive.
    traced = None
    try:
        with suppress(Exception):
            on_meta = inputs.map(lambda t: t.to("meta"))
            traced = _trace(_copied(model, "meta"), on_meta, slices_inside, unaligned, original)
        missed = traced is not None and traced.train_inputs is None and reads_mode(model)
        if traced is None or (missed and _trains(_copied(model, None), inputs)):
            original.undo()
            traced = _trace(_copied(model, None), inputs, slices_inside, unaligned, original)
    except DoesNotRunError:
        original.check_unchanged(original.undo())  # perhaps the copy wrote into the original what it then missed
        raise
    finally:
        changed = original.undo()
    original.check_unchanged(changed)
    shared = shared_objects(model, traced.model)
    if (traced.findings.left_outside or shared) and not any(t.is_meta for t in named_tensors(model).values()):
        refuse_state_outside(partial(_call, inputs=inputs), partial(_copied, model, None), shared)
    return traced


def _call(model: nn.Module, train: bool, seed: int, inputs: Inputs) -> list[Tensor]:
    """Run a model on random numbers in place of floating-point inputs, with at least two samples in train mode."""
    drawn = torch.Generator().manual_seed(seed)

    def vary(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=drawn).to(tensor) if tensor.is_floating_point() else tensor.clone()

    given = (inputs.doubled() if train and inputs.batch_size == 1 else inputs).map(vary)
    with same_chance(), torch.no_grad():
        return tensor_leaves(model.train(train)(*given.args, **given.kwargs))


def _copied(model: nn.Module, device: str | None) -> nn.Module:
    """Return a copy for the trace, since a run changes norm statistics and other state."""
    if device is None:
        try:
            return duplicate(model)
        except Exception as error:  # whatever the model's own code raises
            raise AdjoinedError(
                f"the model cannot be copied: {type(error).__name__}: {error}",
                where=type(model).__name__,
                expected="a model that copy.deepcopy copies",
                fix="Move open files, locks, generators and the like out of its attributes.",
            ) from error
    # The memo saves copying the weights first, and keeps tied ones tied: `to` alone would make two of them.
    memo: dict[int, Any] = {id(t): in_place_of(t, t.detach().to(device)) for t in named_tensors(model).values()}
    return duplicate(model, memo).to(device)


def _trace(
    model: nn.Module,
    inputs: Inputs,
    slices_inside: GroupChoice,
    unaligned: frozenset[Site],
    original: Original,
) -> Trace:
    ties, findings = Ties(), Findings()
    flow = LabelFlow(ties, findings, unaligned=unaligned, slices_inside=slices_inside, original=original)
    tensors = named_tensors(model)
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    labels = label_tensors(flow, tensors, ties, kernels=kernel_names(model))
    before = Original(model)
    original.watch(model)
    values = {name: tensor.detach().clone() for name, tensor in tensors.items() if not tensor.is_meta}
    try:
        with same_chance():
            returned = flow.run(model, inputs)
    except AdjoinedError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise does_not_run(model, error, flow.module, flow.called_with) from error
    check_made(model, sizes)
    check_output(model, returned)
    outputs = tensor_leaves(returned)
    train_inputs = None
    unused = [name for name, _ in model.named_parameters() if name not in findings.readers]
    layers = kernel_names(model) | linear_names(model)
    if reads_mode(model) or unused or any_beside_channels(ties, findings, labels, layers):
        train_inputs, more = _run_in_train_mode(flow, model, inputs)
        outputs += more
    kept = tensors_kept(model)
    before.undo()  # small networks are made from the model before it ran
    for name, tensor in tensors.items():  # observers of quantisation-aware training resize buffers
        if tensor.shape != sizes[name]:
            tensor.resize_(sizes[name])
        if name in values and not torch.equal(tensor, values[name]):
            tensor.data.copy_(values[name])
    unreached = complete(flow, model, outputs, kept, labels, layers)
    return Trace(
        model=model,
        inputs=inputs,
        train_inputs=train_inputs,
        labels=labels,
        ties=ties,
        findings=findings,
        output_shapes=[out.shape for out in outputs],
        sizes_by_value=flow.values.decide,
        path=tuple(flow.path),
        unaligned=unaligned,
        unreached=unreached,
        shapes=sizes,
        finished=tuple(flow.finished),
        cost=cost_of_run(model, flow.finished, flow.flops.total() // 2 // inputs.batch_size),
    )


def label_tensors(
    flow: LabelFlow, tensors: dict[str, Tensor], ties: Ties, *, kernels: set[str]
) -> dict[str, list[Tensor | None]]:
    """Give every index of every dimension of every tensor a unique label; shared tensors share their labels.

    The kernel positions of convolution weights (`kernels` has their names) get none: they are never dropped.
    """
    known: dict[int, list[Tensor | None]] = {}
    labels: dict[str, list[Tensor | None]] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in known:
            channels = 2 if name in kernels else tensor.ndim
            known[id(tensor)] = [
                ties.new(name, d, n) if n > 1 and d < channels else None for d, n in enumerate(tensor.shape)
            ]
            vectors = enumerate(known[id(tensor)])
            flow.carry(tensor, [along(vector, d, tensor.ndim) for d, vector in vectors if vector is not None])
            flow.name(tensor, name)
        labels[name] = known[id(tensor)]
    return labels


def _run_in_train_mode(flow: LabelFlow, model: nn.Module, inputs: Inputs) -> tuple[Inputs | None, list[Tensor]]:
    """Run in train mode, on doubled inputs if norms need more than one sample; None if it does not run."""
    with same_chance():
        for attempt in inputs.for_training():
            try:
                return attempt, tensor_leaves(flow.run(model, attempt, train=True))
            except AdjoinedError:
                raise
            except Exception:  # whatever the model's own code raises
                continue
    return None, []


def _trains(model: nn.Module, inputs: Inputs) -> bool:
    """Return whether a model, which may change in the run, runs in train mode."""
    with same_chance(), torch.no_grad():
        for attempt in inputs.for_training():
            with suppress(Exception):  # whatever the model's own code raises
                attempt.run(model.train())
                return True
    return False
