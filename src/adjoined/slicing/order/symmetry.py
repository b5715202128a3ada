"""Whether reordering channels is a symmetry of a network: a copy runs before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.inputs import Inputs, tensor_leaves
from adjoined.slicing.model.modules import duplicate, named_tensors, to_float64
from adjoined.slicing.model.original import Original, tensors_kept
from adjoined.slicing.verify.liven import liven, relative_error, repeatable

Gathers = Mapping[str, Sequence[Tensor | None]]
"""Tensor name -> for every dimension the index that each position is filled from (int64 vector), or None."""

FLOAT64_TOLERANCE, OTHER_TOLERANCE = 1e-9, 1e-3
"""Largest difference of outputs, as a fraction of the largest output; wrong channels differ by far more."""


def permute(tensors: Mapping[str, Tensor], gathers: Gathers) -> None:
    """Reorder tensors and their gradients in place, each tensor once whatever its names."""
    done: set[int] = set()
    with torch.no_grad():
        for name, indices in gathers.items():
            tensor = tensors[name]
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            for each in (tensor, tensor.grad if tensor.is_leaf else None):
                for dim, index in enumerate(indices):
                    if index is not None and each is not None:
                        each.copy_(each.index_select(dim, index.to(each.device)))


def inverse(gathers: Gathers) -> Gathers:
    """Return the reordering that undoes another."""
    return {name: [None if i is None else torch.argsort(i) for i in each] for name, each in gathers.items()}


class Probe:
    """A copy of a model in float64, with random weights, that shows whether a reordering changes the outputs.

    The model's own weights may hide a mistake until they are trained: a norm that starts at scale 0 silences its
    branch, and statistics of 0 and 1 are the same in any order. A symmetry for random weights is one for all weights.

    Attributes:
        model: the copy, in eval mode; it has the model's weights until `start`.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._original, self._inputs = model, inputs
        self.model = duplicate(model)._apply(to_float64).eval()
        self._runs: list[tuple[Inputs, bool]] = []
        self._expected: list[Tensor] = []
        self._tolerance = FLOAT64_TOLERANCE

    def start(self, train_inputs: Inputs | None) -> None:
        """Draw weights and run in eval mode, and in train mode on as many samples as `train_inputs` has, if given.

        Raises:
            AdjoinedError: the model does not run, or its outputs are not finite.
        """
        failure: object = "its outputs are not finite"
        for double, change in ((True, True), (True, False), (False, True), (False, False)):
            self.model = duplicate(self._original).eval()
            inputs = _varied(self._inputs)
            if double:
                self.model, inputs = self.model._apply(to_float64), inputs.map(to_float64)
            self._tolerance = FLOAT64_TOLERANCE if double else OTHER_TOLERANCE
            self._runs = [(inputs, False)]
            if train_inputs is not None:
                more = train_inputs.batch_size > inputs.batch_size
                self._runs.append((inputs.doubled() if more else inputs, True))
            try:
                if change:
                    with repeatable():
                        liven(self.model, inputs, torch.Generator().manual_seed(0))
                self._expected = self._run()
            except Exception as error:  # whatever the model's own code raises, such as on float64
                failure = f"{type(error).__name__}: {error}"
                continue
            if all(bool(out.isfinite().all()) for out in self._expected):
                return
        raise AdjoinedError(
            f"reordering cannot be checked, since a copy of the model does not run: {failure}",
            where=type(self._original).__name__,
            fix="Leave out `order`, or pass an example input and weights with which its outputs are finite.",
        )

    def same(self, gathers: Gathers) -> bool:
        """Return whether the outputs stay the same when the copy is reordered."""
        tensors = named_tensors(self.model)
        permute(tensors, gathers)
        try:
            found = self._run()
        except Exception:  # the model's own code, again
            return False
        finally:
            permute(tensors, inverse(gathers))
        if relative_error(found, self._expected) > self._tolerance:
            return False
        pairs = zip(found, self._expected, strict=True)
        return all(bool(before.any()) or not bool(out.any()) for out, before in pairs)  # zeros stay zeros

    def _run(self) -> list[Tensor]:
        outputs: list[Tensor] = []
        state = [(tensor, tensor.clone()) for tensor in (*self.model.buffers(), *_kept(self.model))]
        for inputs, train in self._runs:
            attributes = Original(self.model)
            with repeatable(), torch.no_grad():
                outputs += [out.clone() for out in tensor_leaves(inputs.run(self.model.train(train)))]
                outputs += map(_sorted, _kept(self.model))
            attributes.undo()
        with torch.no_grad():  # the run in train mode moved statistics
            for tensor, before in state:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
        self.model.eval()
        return outputs


def _kept(model: nn.Module) -> list[Tensor]:
    return [each for each in tensors_kept(model) if each.layout == torch.strided and not each.is_quantized]


def _sorted(kept: Tensor) -> Tensor:
    """Return the finite values of a tensor that a forward has stored, in an order that does not depend on channels."""
    kept = torch.view_as_real(kept) if kept.is_complex() else kept
    return kept[kept.isfinite()].sort().values


def _varied(inputs: Inputs) -> Inputs:
    """Return the inputs with random numbers in place of floating-point tensors that are constant."""
    generator = torch.Generator().manual_seed(0)

    def vary(tensor: Tensor) -> Tensor:
        constant = tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
        return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor) if constant else tensor

    return inputs.map(vary)
