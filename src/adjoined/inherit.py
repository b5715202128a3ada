"""Initialise a small network from a trained base: weights that reproduce the base's activations with fewer channels.

A slice of trained weights loses the contribution of the dropped channels. Here each layer of the small network, in the
order of execution, gets the weights that best approximate the base's outputs, given the outputs of the layers before
it: linear least squares, in closed form.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from adjoined.errors import AdjoinedError
from adjoined.network import AdjoinedNetwork
from adjoined.slicing import Index, Inputs, SlicePlan, evaluating, explaining, named_tensors

POSITIONS = 64
"""Positions of each image at which a convolution's outputs are compared."""
ROWS_PER_INPUT = 2
"""Rows needed for each input of a layer: with fewer, a fit would memorise the images, so the layer stays a slice."""
RIDGE = 0.1
"""Weight of staying near the slice, as a fraction of the inputs' mean square."""


@torch.no_grad()
def inherit(base: nn.Module, small: nn.Module, plan: SlicePlan, images: Any) -> int:
    """Fit the small network's weights to the base's activations on some images, and measure its batch norms on them.

    Two-dimensional convolutions and linear layers are fitted, with their biases; other weights stay slices, and so do
    layers with too few outputs on these images for their number of inputs, such as heads. Layers that run several times
    are fitted at their first run.

    Args:
        base: the trained base network; it is not changed.
        small: a slice of it, as `plan.apply(base)` or `AdjoinedNetwork.extract` return; it is changed in place.
        plan: how it was sliced.
        images: one batch of images as the base takes them, such as float32 (256, 3, 128, 128). Both networks run on it
            once, in eval mode.

    Returns:
        Number of fitted layers.

    Raises:
        AdjoinedError: the base does not run on the images, or not to finite activations, or a batch norm gets one value
            per channel, which has no variance.

    Source: the reconstruction of He et al., "Channel pruning for accelerating very deep neural networks",
    arXiv 1707.06168, for all layers and kernels.

    Example:
        >>> from adjoined.slicing import make_plan
        >>> base = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1))
        >>> images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> plan = make_plan(base, images, alpha=2)
        >>> small = plan.apply(base)
        >>> inherit(base, small, plan, images)
        2
        >>> bool(torch.allclose(small(images), base(images), atol=0.1))  # 3 inputs need no more than 8 channels
        True
    """
    inputs = Inputs.of(images)
    norms = [module for module in small.modules() if isinstance(module, _BatchNorm)]
    hooks = []
    with evaluating(base, small):
        with explaining(base, inputs), _Record(base, plan) as recorded:
            inputs.run(base)
        _check_finite(recorded.targets)
        try:
            with _Fit(small, recorded.targets) as fitted:
                hooks += [norm.register_forward_pre_hook(_measure) for norm in norms if norm.running_var is not None]
                inputs.run(small)
        finally:
            for hook in hooks:
                hook.remove()
    return fitted.count


def inherit_all(net: AdjoinedNetwork, images: Any, plans: Sequence[SlicePlan] | None = None) -> None:
    """Let every small network of a joint network inherit from its base, as `inherit` does.

    Args:
        net: a joint network whose small networks have their own weights: `adjoin(..., private=("*",))`. Their weights
            and statistics are changed in place; optimizers stay valid.
        images: one batch of images, as for `inherit`.
        plans: plans of the same widths whose channels are inherited, as `select` returns them; those of `net` if None.

    Raises:
        AdjoinedError: a small network shares weights with the base, which fitting would change; or as for `inherit`.

    Example:
        >>> from adjoined import adjoin
        >>> model, images = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)), torch.randn(32, 3, 8, 8)
        >>> net = adjoin(model, images, alpha=2, private=("*",))
        >>> inherit_all(net, images)
        >>> p, q = net(images)
        >>> bool(torch.allclose(p, q, atol=0.1))
        True
    """
    for skeleton, plan in zip(net.smalls, plans or net.plans, strict=True):
        small = plan.apply(net.base)
        own = skeleton.state_dict().keys()
        shared = [name for name, _ in small.named_parameters() if name not in own]
        if shared:
            raise AdjoinedError(
                "the small network shares weights with the base",
                where=shared[0],
                expected="a small network with its own weights",
                fix="Use adjoin(..., private=('*',)).",
            )
        inherit(net.base, small, plan, images)
        found = small.state_dict()
        skeleton.load_state_dict({name: found[name] for name in own})


def _check_finite(targets: Mapping[str, _Target]) -> None:
    """Raise AdjoinedError if outputs of the base are not finite; the fit would spread NaN to all later layers."""
    for name, target in targets.items():
        if not bool(target.values.isfinite().all()):
            raise AdjoinedError(
                "the base network's activations are not finite on these images",
                where=name,
                expected="no NaN and no infinity",
                fix="Check the images and the base's weights.",
            )


class _Target(NamedTuple):
    """The outputs that a layer of the small network is fitted to."""

    values: Tensor
    """(rows, outputs kept)."""
    positions: Tensor | None
    """Their positions in each image, (N, positions) of the flattened outputs; None for linear layers."""

    def fits(self, weight: Tensor) -> bool:
        """Return whether these are the outputs of a layer with this weight, and enough of them."""
        return self.values.shape[1] == len(weight) and len(self.values) >= ROWS_PER_INPUT * weight[0].numel()


class _Layers(TorchFunctionMode, ABC):
    """See every convolution and linear layer run, by the name of its weight."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in reversed(named_tensors(network).items())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _call(func, args, kwargs or {})
        name = None if call is None else self._names.get(id(call.weight))
        if call is None or name is None:
            return func(*args, **(kwargs or {}))
        return self.layer(name, call, lambda: func(*args, **(kwargs or {})))

    @abstractmethod
    def layer(self, name: str, call: _Call, run: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer, which `run` computes."""


class _Record(_Layers):
    """Record the outputs of the base's layers at some positions."""

    def __init__(self, network: nn.Module, plan: SlicePlan) -> None:
        super().__init__(network)
        self._plan = plan
        self._generator = torch.Generator().manual_seed(0)
        self.targets: dict[str, _Target] = {}

    def layer(self, name: str, call: _Call, run: Callable[[], Tensor]) -> Tensor:
        out = run()
        if name not in self.targets:
            kept, positions = self._plan.indices(name)[0], None
            channels = 1 if call.convolution else out.ndim - 1
            values = _kept(out, kept, channels)
            if call.convolution:
                count = out.shape[2] * out.shape[3]
                chosen = [torch.randperm(count, generator=self._generator)[:POSITIONS] for _ in range(len(out))]
                positions = torch.stack(chosen).to(out.device)
                values = _at(values.flatten(2), positions)
            self.targets[name] = _Target(values.reshape(-1, values.shape[-1]), positions)
        return out


class _Fit(_Layers):
    """Fit every layer of the small network before it runs."""

    def __init__(self, network: nn.Module, targets: dict[str, _Target]) -> None:
        super().__init__(network)
        self._targets = targets
        self.count = 0

    def layer(self, name: str, call: _Call, run: Callable[[], Tensor]) -> Tensor:
        target = self._targets.pop(name, None)
        if target is not None and target.fits(call.weight):
            rows = _patches(call, target.positions) if target.positions is not None else call.input
            _solve(rows.reshape(-1, rows.shape[-1]), target.values, call)
            self.count += 1
        return run()


def _measure(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Measure a batch norm on its input.

    A fitted layer explains a part of the base's outputs, so they vary less; the norm makes up for it. With a scale that
    leaves them as they are, the signal fades from layer to layer: at alpha 4 that cost 13 to 20 points after training.
    """
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    z = args[0].transpose(0, 1).flatten(1).float()
    if z.shape[1] < 2:
        raise AdjoinedError(
            "a batch norm gets one value per channel, which has no variance",
            where="images",
            expected="two images or more",
            got=f"an input {tuple(args[0].shape)} of the batch norm",
        )
    norm.running_mean.copy_(z.mean(1))
    norm.running_var.copy_(z.var(1))


class _Call(NamedTuple):
    """The arguments of a convolution or a linear layer."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    convolution: bool = False


_LINEAR = inspect.signature(lambda input, weight, bias=None: None)
_CONVOLUTION = inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None)


def _call(func: Any, args: Any, kwargs: Any) -> _Call | None:
    if func is F.linear:
        return _Call(**_LINEAR.bind(*args, **kwargs).arguments)
    if func is F.conv2d:
        call = _Call(**_CONVOLUTION.bind(*args, **kwargs).arguments, convolution=True)
        return call if call.input.ndim == 4 else None
    return None


def _kept(tensor: Tensor, kept: Index | None, dim: int) -> Tensor:
    return tensor if kept is None else tensor.index_select(dim, kept.tensor(tensor.device))


def _at(values: Tensor, positions: Tensor) -> Tensor:
    """Return values (N, C, positions) at positions (N, k), as (N, k, C)."""
    return values.gather(2, positions[:, None].expand(-1, values.shape[1], -1)).transpose(1, 2)


def _patches(call: _Call, positions: Tensor) -> Tensor:
    """Return what a convolution reads for its outputs at some positions: (N, k, C · kernel height · kernel width)."""
    (height, width), stride, dilation = call.weight.shape[2:], _pair(call.stride), _pair(call.dilation)
    spare = [d * (k - 1) for d, k in zip(dilation, (height, width), strict=True)]
    if call.padding == "same":
        pads = [(each // 2, each - each // 2) for each in spare]
    else:
        pads = [(each, each) for each in ((0, 0) if call.padding == "valid" else _pair(call.padding))]
    x = F.pad(call.input, (*pads[1], *pads[0]))
    columns = (x.shape[3] - spare[1] - 1) // stride[1] + 1
    rows, cols = positions // columns * stride[0], positions % columns * stride[1]
    offsets = [(i * dilation[0], j * dilation[1]) for i in range(height) for j in range(width)]
    flat = x.flatten(2)
    read = [_at(flat, (rows + i) * x.shape[3] + cols + j) for i, j in offsets]
    return torch.stack(read, dim=-1).flatten(2)


def _pair(value: Any) -> tuple[int, int]:
    one, *other = value if isinstance(value, (tuple, list)) else (value,)
    return one, other[0] if other else one


def _solve(x: Tensor, y: Tensor, call: _Call) -> None:
    """Set weight and bias so that x @ weight comes nearest to y, group by group, and not far from what they are."""
    groups, weight = call.groups, call.weight
    x = x.unflatten(1, (groups, -1)).transpose(0, 1)  # (groups, rows, inputs)
    y = y.unflatten(1, (groups, -1)).transpose(0, 1)
    slices = weight.reshape(groups, y.shape[2], -1).transpose(1, 2).double()
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - mean_x, y - mean_y
    gram, both = (x.mT @ x).double(), (x.mT @ y).double()
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
    near = ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found = torch.linalg.solve(gram + near, both + ridge[:, None, None] * slices)
    if not found.isfinite().all():
        return
    weight.copy_(found.mT.reshape(weight.shape))
    if call.bias is not None:
        call.bias.copy_((mean_y - mean_x @ found.to(mean_x.dtype)).flatten())
