"""The joint network: a base network and small networks on shared weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from torch.utils._pytree import tree_map

from adjoined.errors import AdjoinedError, check_range, is_number, usage
from adjoined.names import at_any_network
from adjoined.other_tools import not_recorded, refuse_other_state, refuse_sharded, refuse_symbols
from adjoined.sharing import SharedWeights
from adjoined.skeleton import (
    Runner,
    bound_copies,
    check_same_parts,
    extracted,
    make_skeleton,
)
from adjoined.slicing import (
    Latency,
    Recorded,
    Request,
    SlicePlan,
    Slicer,
    WithoutHistory,
    as_patterns,
    check_is_plan,
    check_order,
    check_plan,
    check_trainable,
    full_name,
    isolated,
    matching_modules,
    private_names,
    refuse_beside_plan,
    unwrap,
    warn_if_whole,
)
from adjoined.statistics import measure_statistics
from adjoined.untrained import versions, warn_if_untrained

ADJOINT_PLUS = {"private_head": True, "small_gradient": 0.5}
"""The settings of `adjoin` for the method `adjoint+`, which keep the base as accurate as when trained alone."""


class AdjoinedNetwork(nn.Module):
    """A base network and one or more small networks that share its weights, called together.

    Each small network has its own normalisation layers, buffers and private layers. All its other tensors are slices of
    the base's, taken afresh in each call, so an optimizer, an average or a checkpoint sees each shared weight once.
    Each network also has its own settings, such as dropout rates: change them in a loop over `net.modules()`.

    Args:
        base: the base network; it is used, not copied, and holds the shared weights.
        plans: a slice plan for every small network.
        private: names or patterns (as for file names) of further modules whose weights are private to each small
            network; they begin as slices.
        small_gradient: factor on the small networks' gradients of the shared weights, in [0, 1].

    Private weights start frozen where the base's are. Later, `net.requires_grad_(True)` unfreezes all networks,
    and `net.base.requires_grad_(True)` the shared weights only.

    Attributes:
        base: the base network.
        plans: the slice plans; `plan` is the first.
        smalls: the small networks' modules, which hold private tensors only; `extract` returns a usable network.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10))
        >>> net = adjoin(model, torch.zeros(1, 3, 8, 8), alpha=4)
        >>> p, q = net(torch.zeros(5, 3, 8, 8))
        >>> tuple(p.shape), tuple(q.shape), sum(t.numel() for t in net.extract().parameters())
        ((5, 10), (5, 10), 3130)
    """

    def __init__(
        self,
        base: nn.Module,
        plans: Sequence[SlicePlan],
        *,
        private: Collection[str] = (),
        small_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        if not plans:
            raise AdjoinedError("a joint network needs at least one slice plan", where="plans")
        self.base = base = unwrap(base)
        self.plans = tuple(plans)
        for plan in self.plans:
            check_is_plan(plan)
            plan.check_fits(base)
        own = private_names(base, matching_modules(base, private, setting="private"))
        check_range(is_number(small_gradient, 0, 1), "small_gradient", "a number from 0 to 1", small_gradient)
        self._weights = SharedWeights(base, self.plans, own, gradient=small_gradient)
        self.smalls = nn.ModuleList(
            make_skeleton(self._weights, number, plan) for number, plan in enumerate(self.plans)
        )
        self._runners, self._recorded = [Runner(module, self._weights) for module in self.smalls], Recorded(base)
        self._sliced = {
            full_name(f"smalls.{number}", where)
            for number, module in enumerate(self.smalls)
            for where in self._weights.layers_of_slices(module)
        }
        self.training = base.training
        self._joined = versions(self)

    @property
    def plan(self) -> SlicePlan:
        """The slice plan of the (first) small network."""
        return self.plans[0]

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """The depth of each layer, for timm: the base's, also for the small networks' tensors of the same names.

        `timm.optim.param_groups_layer_decay` and `timm.optim.create_optimizer_v2` use it.

        Raises:
            AttributeError: the base is not a timm model, and has no `group_matcher`.
        """
        matcher: Callable[..., Any] = self.base.group_matcher  # pyright: ignore[reportAssignmentType]

        def of_all(coarse: bool = False) -> dict[str, Any]:
            return {layer: at_any_network(pattern) for layer, pattern in matcher(coarse=coarse).items()}

        return of_all

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run all networks on the same input.

        Small networks get copies of the input, so in-place changes by one network do not reach another. The base gets
        the caller's own tensors, as if it were called alone, in copies of lists and dicts.

        Args:
            args, kwargs: the model's arguments, such as a float tensor (N, C, H, W).

        Returns:
            The base network's output, then each small network's: `p, q`, or `p, q1, q2, ...`. Each is what the model
            returns, such as logits (N, classes).
        """
        refuse_symbols(args)
        # Copied first: the base may change its input in place.
        own = [isolated((args, kwargs)) for _ in self.smalls]
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))
        with self._recorded.watched():
            output, slices, common = self._weights.around(self.base, *args, **kwargs)
        outputs = [output]
        with self._recorded.kept():
            for number, runner in enumerate(self._runners):
                outputs.append(runner.run([each[number] for each in slices], *own[number], common=common))
        return tuple(outputs)

    def small(self, *args: Any, which: int = 0, **kwargs: Any) -> Any:
        """Run one small network alone, on slices of the weights as they are now.

        Args:
            args, kwargs: the model's arguments, such as a float tensor (N, C, H, W).
            which: number of the small network, from 0.

        Returns:
            What the model returns, such as logits (N, classes).
        """
        self._check_which(which)
        return self._runners[which].run([each[which] for each in self._weights.slices()], args, kwargs)

    @torch.inference_mode(False)
    def extract(self, which: int = 0) -> nn.Module:
        """Return a small network as a plain, physically narrow module with its own tensors, independent of adjoined.

        Args:
            which: number of the small network, from 0.

        Returns:
            A module of the model's own classes, on this network's device, with the small network's mode (train or
            eval), settings and hooks.

        Raises:
            AdjoinedError: the small network does not exist, the weights are sharded over processes, or the base has
                other parts than when it was joined.
        """
        self._check_which(which)
        own = self.smalls[which].state_dict()  # it shards again what was gathered
        for name, tensor in (*self.named_parameters(), *own.items()):
            refuse_sharded(tensor, name)
        warn_if_untrained(self, self._joined, f"smalls.{which}.")
        return extracted(self.smalls[which], self._weights, which)

    def _check_which(self, which: object) -> None:
        count = len(self.smalls)
        if not isinstance(which, int) or not -count <= which < count:
            expected = f"the number of a small network, from 0 to {count - 1}"
            raise AdjoinedError("no such small network", where="which", expected=expected, got=repr(which))

    def measure_statistics(self, batches: Iterable[Any]) -> int:
        """Measure the running statistics of every small network's batch norms with the current weights.

        During training, they are moving averages that lag behind the weights. Call this after training and before
        `extract`: it replaces them with means over all batches, with everything but batch norms in eval mode. The base
        network's statistics do not change.

        Args:
            batches: training images, about 1,000 or more, such as a data loader. Each batch is a tensor (N, C, H, W), a
                tuple or list that begins with it, as loaders return, or a dict of keyword arguments.

        Returns:
            The number of images used; 0 if no small network has running statistics.

        Raises:
            AdjoinedError: `batches` is empty, a batch has only one value per channel, or the results are not finite.
                The networks then keep their old statistics.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 5, 6))
            >>> net = adjoin(model, torch.zeros(1, 3, 8, 8), alpha=4)
            >>> net.measure_statistics(torch.randn(8, 3, 8, 8) for _ in range(2))
            16
        """
        runs = [partial(self.small, which=which) for which in range(len(self.smalls))]
        return measure_statistics(list(self.smalls), runs, batches)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[tuple[str, nn.Module], None, None]:
        """Yield the modules of all networks, without layers of small networks that hold nothing but slices.

        The weights of these layers are None between calls. A loop that initialises, counts or groups weights meets
        every shared weight in the base, and every private one in its small network.
        """
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            if name.removeprefix(f"{prefix}.") not in self._sliced:
                yield name, module

    def train(self, mode: bool = True) -> Self:
        """Put all networks in train or eval mode, as torch does.

        Raises:
            AdjoinedError: parts of the base were replaced, added or removed, and not in the small networks.
        """
        for small in self.smalls:
            check_same_parts(small, self._weights.base, self.base)
        if mode != self.training:
            self._weights.look_again()
        return super().train(mode)

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Apply a function, such as one that initialises weights, to every module of all networks, as torch does.

        During the call, small networks hold copies of their slices; changes to these copies are lost.

        Args:
            fn: gets one module at a time.
        """
        self.base.apply(fn)
        for number, small in enumerate(self.smalls):
            with bound_copies(small, self._weights, number):
                small.apply(fn)
        fn(self.smalls)
        fn(self)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load a state as torch does, but refuse another kind of module's, even if the state may be incomplete."""
        refuse_other_state([name for name in state_dict if name.startswith(prefix)], prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which calls this."""
        raise not_recorded("torch.jit.script")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or store, without slices kept for a backward pass and without compiled code."""
        for runner in self._runners:
            runner.forget()
        return super().__getstate__()

    def __deepcopy__(self, memo: dict[int, Any]) -> AdjoinedNetwork:
        """Return a copy; activations that a forward has stored in attributes are copied without their history."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        with WithoutHistory():
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def extra_repr(self) -> str:
        """Show the alphas, and how many private weights are frozen where the base's are trained."""
        trained = {name for name, parameter in self.base.named_parameters() if parameter.requires_grad}
        private = [pair for small in self.smalls for pair in small.named_parameters()]
        frozen = sum(name in trained and not parameter.requires_grad for name, parameter in private)
        alphas = "alpha=" + ", ".join(f"{plan.alpha:g}" for plan in self.plans)
        return f"{alphas}, {frozen} private weights frozen, the base's are not" if frozen else alphas


@usage("adjoin(model, example_input, alpha=4), with an input of the model such as one batch of images")
@torch.inference_mode(False)  # tensors made in inference mode cannot be trained
def adjoin(
    model: nn.Module,
    example_input: Any,
    *,
    alpha: float | Iterable[float] | None = None,
    keep: Iterable[str] = (),
    round_to: int = 8,
    compress: float | None = None,
    widths: Mapping[str, str] | None = None,
    budget: str | Iterable[str] | None = None,
    latency: Latency | None = None,
    order: str | None = None,
    plan: SlicePlan | Sequence[SlicePlan] | None = None,
    check: bool = True,
    private_head: bool = False,
    private: str | Iterable[str] = (),
    small_gradient: float = 1.0,
) -> AdjoinedNetwork:
    """Join a model with a small network (or a family of them) that shares its weights.

    Args:
        model: the base network: any module with convolutions. It is used, not copied. `nn.DataParallel`,
            `torch.compile` and averages of weights are unwrapped.
        example_input: an input of the model: a tensor such as float32 (1, 3, 224, 224), a tuple of positional
            arguments, or a dict of keyword arguments. Only its shapes matter, not its values.
        alpha: every layer of the small network keeps about 1/alpha of its channels, so inner convolutions have about
            1/alpha² of the parameters; at least 1, fractions allowed; 4 by default. Several values make a family:
            `net(x)` then returns p, q1, q2, ...
        keep: names or patterns (as for file names) of modules whose tensors stay at full width: ("conv1", "layer1").
        round_to: widths are rounded up to multiples of this many channels; 1 for exact counts.
        compress: choose alpha so that the small network has this many times fewer parameters, without the last linear
            layer on either side; instead of `alpha`.
        widths: names or patterns of modules -> width of the channels that these modules write, instead of 1/alpha: a
            fraction such as {"layer3.*": "1/2"}, or a number such as {"layer4": "96 channels"}. `round_to` applies to
            them; `compress` and `budget` do not change them.
        budget: choose alpha so that the small network is the largest that costs no more: "1 MB" (float32 weights),
            "50 MMACs" (for one sample of the example input's size), "300 k parameters", "3 ms"; several strings, or
            several in one, separated by commas; instead of `alpha`.
        latency: measures "3 ms": a function that takes the small network as a plain module and returns milliseconds,
            on the device where it will run.
        order: reorder the model's channels first, in place and without changing its function, so that the small network
            starts from the most important ones: "l1", "l2" (norm of the filters that write a channel), "bn" (scale of
            its batch norms) or "taylor" (the change of the loss without it, to first order; call `backward()` first).
            Use it with pretrained weights, before the optimizer's first step; a joint network's are already in order.
        plan: this slice plan, or one for each small network, instead of the settings from `alpha` to `latency`.
        check: compare every small network with the masked base, in float64 on random input (see
            `adjoined.slicing.check_plan`), and keep channels at full width where they differ. With it, `adjoin` takes
            two to three times as long.
        private_head: give small networks their own last layer: the last linear layer to run, or the last convolution if
            there is none. It starts as a slice. Inference costs the same; training has one more narrow layer.
        private: names or patterns (as for file names) of further modules whose weights are private to each small
            network; they start as slices. With ("*",) nothing is shared after the start: the base trains as it would
            alone, and each small network adds its own parameters.
        small_gradient: factor on the small networks' gradients of the shared weights, in [0, 1]: below 1 the base
            dominates them. Private weights get their full gradients.

    Returns:
        An `AdjoinedNetwork`, in the mode (train or eval) of the model, on its device.

    Raises:
        AdjoinedError: bad settings, an unknown name in `keep`, a plan of another model, a model that does not run or
            whose copies are not independent of it, or a given plan whose small network fails the check.

    Source: Nath, Kushagra, Yang, "Better together: ResNet-50 accuracy with 13x fewer parameters and at 3x speed",
    arXiv 2006.05624. The paper masks a full-width network; here the small network is physically small from the start.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 6), nn.Flatten())
        >>> net = adjoin(model, torch.zeros(1, 3, 8, 8), alpha=(2, 4))
        >>> [tuple(logits.shape) for logits in net(torch.zeros(7, 3, 8, 8))]
        [(7, 10), (7, 10), (7, 10)]
        >>> [group.kept for group in net.plans[1].groups][:1]
        [16]
    """
    model = unwrap(model)
    check_trainable(model)
    slicer = Slicer(model, example_input)
    if order is not None:
        check_order(order)
    settings: Any = {"alpha": alpha, "keep": keep, "round_to": round_to, "widths": widths}
    settings |= {"compress": compress, "budget": budget}
    if plan is not None:
        refuse_beside_plan(settings, latency=latency)
        plans: Any = plan if isinstance(plan, (list, tuple)) else (plan,)
        slicer.check_copies()
    else:
        request = Request(**settings)
        plans = slicer.plans(request, latency=latency, check=check)
        warn_if_whole(plans[0], request)
    if order is not None:
        plans = slicer.reorder(plans, order)
    own = (*as_patterns(private, "private"), *((slicer.last_layer(),) if private_head else ()))
    net = AdjoinedNetwork(model, plans, private=own, small_gradient=small_gradient)
    for each in net.plans if plan is not None and check else ():
        check_plan(model, example_input, each).warn()
    return net
