"""Weights and an input with which every channel of a network matters, so that a comparison finds differences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adjoined.slicing.model.chance import same_chance
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import is_norm, named_tensors

_IN_FLOAT64 = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64)
_IN_FLOAT64 |= {torch.complex64: torch.complex128}


def random_inputs(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Return the inputs with normal random numbers in float64 or complex128; indices and masks stay."""

    def draw(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        drawn = torch.complex128 if tensor.is_complex() else torch.float64
        return torch.randn(tensor.shape, dtype=drawn, generator=generator, device="cpu").to(tensor.device)

    return inputs.map(draw)


def liven(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> Any:
    """Change a model's weights and statistics in place, so that every channel affects the outputs, and return these.

    Initial weights hide mistakes: shifts of 0 and scales of 1 look right wherever they are sliced, residual branches
    that start at 0 or 1e-6 suppress what happens in them, and without measured BatchNorm statistics the signal of a
    deep network vanishes. So constant tensors get random values. Then one run in eval mode measures the statistics,
    scales each weight so that its product has unit variance (Mishkin and Matas, "All you need is a good init", arXiv
    1511.06422), and shifts each bias so that the mean of every channel is positive and no ReLU silences it.
    """
    norms = [f"{name}." if name else "" for name, module in model.named_modules() if is_norm(module)]
    seen: set[int] = set()
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            own = isinstance(tensor, nn.Parameter) or name.rpartition(".")[0] + "." in norms
            if not own or id(tensor) in seen or not tensor.is_floating_point() or not tensor.numel():
                continue
            seen.add(id(tensor))
            value = tensor.flatten()[0]
            if bool((tensor == value).all()):
                tensor.copy_(_instead_of(tensor, bool(value != 0) or "var" in name, generator))
        with _Calibrate(model, generator):
            return inputs.run(model)


def _instead_of(tensor: Tensor, scale: bool, generator: torch.Generator) -> Tensor:
    """Return random numbers for a constant tensor: around 1 for a scale, around 0 for a shift or a weight."""
    shape = tensor.shape
    if scale:
        return torch.rand(shape, dtype=torch.float64, generator=generator, device="cpu") + 0.5
    spread = 0.3 if sum(size > 1 for size in shape) < 2 else shape[0] ** 0.5 / tensor.numel() ** 0.5
    return torch.randn(shape, dtype=torch.float64, generator=generator, device="cpu") * spread


class _Calibrate(TorchDispatchMode):
    """Measures BatchNorm statistics, scales weights and shifts biases during a run, just before they are used."""

    def __init__(self, model: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator
        self._fresh = {p.untyped_storage().data_ptr(): p for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        bound = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        if "batch_norm" in name and bound.get("running_var") is not None and not bound.get("training"):
            _measure(bound["input"], bound["running_mean"], bound["running_var"])
        elif name in ("convolution", "addmm", "mm"):
            product, bias = self._scaled(name, func, args)
            if name == "convolution":  # which takes long
                return product if bias is None else product.add_(bias.view(-1, *[1] * (product.ndim - 2)))
        return func(*args, **kwargs)

    def _scaled(self, name: str, func: Any, args: Any) -> tuple[Tensor, Tensor | None]:
        """Scale a weight when it is first used, then shift the bias; return the product alone, and the bias."""
        convolution = name == "convolution"
        bias, factors = (args[2], args[:2]) if convolution else (args[0] if name == "addmm" else None, args[-2:])
        product = func(*factors, None, *args[3:]) if convolution else factors[0] @ factors[1]
        weight = next((found for each in factors if (found := self._take(each)) is not None), None)
        size = float(product.abs().square().mean().sqrt())
        if weight is not None and 0 < size < float("inf"):
            weight.div_(size)
            product.div_(size)
        own = self._take(bias)
        if own is not None and own.shape == product.shape[1:2]:  # an attention adds one bias in thirds
            mean = product.mean([d for d in range(product.ndim) if d != 1])
            own.copy_(
                torch.rand(own.shape, dtype=own.dtype, generator=self._generator, device="cpu").to(own.device) - mean
            )
        return product, bias

    def _take(self, tensor: Tensor | None) -> nn.Parameter | None:
        """Return the parameter that a tensor is, or is a view of, the first time it is seen; otherwise None."""
        if tensor is None:
            return None
        address = tensor.untyped_storage().data_ptr()
        found = self._fresh.pop(address, None)
        # A forward may have moved the parameter (`weight.data = ...`), so its old memory may hold something else now.
        return found if found is not None and found.untyped_storage().data_ptr() == address else None


def _measure(x: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the statistics of an input (N, C, ...); averaging with the variance over all channels avoids zeros."""
    dims = [d for d in range(x.ndim) if d != 1]
    mean.copy_(x.mean(dims))
    of_each = x.var(dims, correction=0)
    var.copy_((of_each + x.var(correction=0)) / 2)
    if not bool((var > 0).all()):
        var.fill_(1)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Make runs within the block independent of chance, and in float64; the random state is restored."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with same_chance(range(torch.cuda.device_count())), _Repeatable():
            _seed()
            yield
    finally:
        torch.set_default_dtype(default)


def _seed() -> None:
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # `torch.manual_seed` would take a millisecond where it is not
        torch.cuda.manual_seed_all(0)


class _Repeatable(TorchDispatchMode):
    """Gives code float64 if it asks for a narrower floating-point type, and takes chance out of operators.

    It skips dropout, and replaces draws by a mean or one number, since draws for fewer or other channels would differ.
    What a generator of the model's own draws is left as it is: its seed may fix it.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.split("::")[1], kwargs or {}
        if kwargs.get("dtype") in _IN_FLOAT64:
            kwargs = kwargs | {"dtype": _IN_FLOAT64[kwargs["dtype"]]}
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if name.startswith("rrelu_with_noise"):
            return func(*args[:4], **kwargs | {"training": False})  # the mean slope
        out = func(*args, **kwargs)
        drawn = torch.Tag.nondeterministic_seeded in func.tags or name in _UNTAGGED
        if drawn and kwargs.get("generator") is None:
            mean = _mean(name, args)
            if mean is not None:
                out.copy_(mean)
            elif name.rstrip("_") in _DRAWN:
                out.fill_(0.5 if out.is_floating_point() else 1)
            _seed()  # for later draws, such as permutations, after as many or fewer numbers
        return out


_UNTAGGED = {"binomial"}
"""Operators that torch does not mark as random."""

_DRAWN = {
    "rand", "randn", "rand_like", "randn_like", "normal", "uniform", "bernoulli", "exponential", "log_normal", "cauchy",
    "geometric", "random", "randint_like",
}  # fmt: skip


def _mean(name: str, args: Sequence[Any]) -> Any:
    """Return what the elements of a draw are on average, or one standard deviation above; None if no tensor decides."""
    if name in ("poisson", "_standard_gamma"):
        return args[0]
    if name == "binomial":
        return args[0] * args[1]
    if name == "normal" and any(isinstance(each, Tensor) for each in args[:2]):
        return args[0] + (args[1] if len(args) > 1 else 1)
    chance = args[-1] if args and name.rstrip("_") == "bernoulli" else None
    return chance if isinstance(chance, Tensor) and len(args) > name.endswith("_") else None


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest error of any output, relative to its largest value; infinite if shapes or integers differ.

    Infinite values count where they differ.

    Example:
        >>> relative_error([torch.tensor([1.0, 4.5])], [torch.tensor([1.0, 4.0])])
        0.125
        >>> relative_error([torch.ones(1), torch.tensor([float("nan")])], [torch.ones(1), torch.ones(1)])
        inf
    """
    if [t.shape for t in got] != [t.shape for t in expected]:
        return float("inf")
    return max(map(_error, got, expected), default=0.0)


def _error(got: Tensor, expected: Tensor) -> float:
    if not (expected.is_floating_point() or expected.is_complex()) or not expected.numel():
        return float("inf") if bool((got != expected).any()) else 0.0
    dtype = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.detach().cpu().to(dtype), expected.detach().cpu().to(dtype)  # some devices have no float64
    difference = float(torch.where(got == expected, 0, (got - expected).abs()).max())
    size = float(torch.where(expected.isinf(), 0, expected.abs()).max())
    return float("inf") if difference != difference else difference / size if size else difference
