"""The joint network: a base network and small networks on shared weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adjoined.errors import AdjoinedError
from adjoined.masking import KernelMasks
from adjoined.sharing import Indices, share
from adjoined.slicing import SlicePlan, check_plan, make_plan, reorder
from adjoined.slicing.model.cost import last_layer
from adjoined.slicing.model.inputs import apart
from adjoined.slicing.model.modules import check_model, hand_on_kept, matching_modules, private_names
from adjoined.slicing.order.importance import check_order
from adjoined.statistics import measure_statistics

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing", "memory_efficient", "use_checkpoint", "with_cp")
"""Switches of model libraries for activation checkpointing. It runs modules again during the backward pass, when a
small network's slices are no longer bound; and a small network has few activations to save."""


class _Shared(NamedTuple):
    """One shared weight: where it lives, what the small networks have of it, and how its gradient may be treated."""

    places: tuple[tuple[str, str], ...]
    """(module name, parameter name) of every place where it is used: more than one for tied weights."""
    slices: tuple[Indices, ...]
    fresh_gradient: bool

    def weight_in(self, base: nn.Module) -> Tensor:
        """Return the weight itself."""
        module, name = self.places[0]
        weight = base.get_submodule(module)._parameters[name]
        assert weight is not None
        return weight


class AdjoinedNetwork(nn.Module):
    """A base network and one or several small networks on shared weights, called together.

    Small networks have their own normalisation layers and buffers, and the layers that are named private; every other
    tensor of theirs is a slice of the base's, made anew in each call, so an optimizer, an average or a checkpoint sees
    each shared weight once.

    Args:
        base: the base network; it is used, not copied, and holds the shared weights.
        plans: a slice plan for every small network.
        private_norms: small networks have scale and shift of their own in every norm; if not, they are shared slices
            too, as an ablation. Running statistics are private in any case.
        private: names or patterns (as for file names) of further modules whose weights small networks have for
            themselves; they begin as slices.
        masking_factor: share of each kernel's positions at which small networks have zeros, as an ablation.

    Attributes:
        base: the base network.
        plans: the slice plans; `plan` is the first.
        smalls: the small networks' modules, which hold their private tensors only; get a usable one from `extract`.

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
        private_norms: bool = True,
        private: Collection[str] = (),
        masking_factor: float = 0.0,
    ) -> None:
        super().__init__()
        if not plans:
            raise AdjoinedError("a joint network needs at least one slice plan", where="plans")
        self.base = base
        self.plans = tuple(plans)
        for plan in self.plans:
            if not isinstance(plan, SlicePlan):
                raise AdjoinedError(
                    "not a slice plan",
                    where="plan",
                    expected="a SlicePlan",
                    got=type(plan).__name__,
                    fix="Read a saved one with SlicePlan.load(path).",
                )
            plan.check_fits(base)
        own = private_names(base, matching_modules(base, private, setting="private"), norms=private_norms)
        self._shared = _shared_weights(base, self.plans, own)
        self.masks = KernelMasks(base, masking_factor)
        self.smalls = nn.ModuleList(self._skeleton(number, plan) for number, plan in enumerate(self.plans))
        self.training = base.training

    @property
    def plan(self) -> SlicePlan:
        """The slice plan of the (first) small network."""
        return self.plans[0]

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """How timm numbers layers by depth: as the base does, each small network's tensors with those of the same name.

        `timm.optim.param_groups_layer_decay` and `timm.optim.create_optimizer_v2` look for it.

        Raises:
            AttributeError: the base, not a model of timm, has none.
        """
        matcher: Callable[..., Any] = self.base.group_matcher  # pyright: ignore[reportAssignmentType]

        def of_all(coarse: bool = False) -> dict[str, Any]:
            return {layer: _at_any_network(pattern) for layer, pattern in matcher(coarse=coarse).items()}

        return of_all

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run all networks on the same input.

        What a forward changes in place reaches no other network: small networks get copies. The base gets the tensors
        themselves, so the caller sees what it does to them, as with the base alone; lists and dicts are never changed.

        Args:
            *args, **kwargs: what the model takes, such as a float tensor (N, C, H, W).

        Returns:
            The base network's output, then every small network's: `p, q`, or `p, q1, q2, ...`. Each is what the model
            returns, such as logits (N, classes).
        """
        handed = [self._hand_out(shared, fresh_gradient=shared.fresh_gradient) for shared in self._shared]
        # The base gets the caller's own tensors, as if it were called alone; copies are made before it can change them.
        given = [tree_map(lambda leaf: leaf, (args, kwargs)), *(apart((args, kwargs)) for _ in self.smalls)]
        outputs = []
        for number, module in enumerate((self.base, *self.smalls)):
            outputs.append(self._run(module, [tensors[number] for tensors in handed], *given[number]))
        return tuple(outputs)

    def small(self, *args: Any, which: int = 0, **kwargs: Any) -> Any:
        """Run one small network alone, on slices of the weights as they are now.

        Args:
            *args, **kwargs: what the model takes.
            which: number of the small network, from 0.
        """
        slices = [self._hand_out(shared, fresh_gradient=False)[which + 1] for shared in self._shared]
        return self._run(self.smalls[which], slices, args, kwargs)

    def extract(self, which: int = 0) -> nn.Module:
        """Return a small network as a plain module: physically narrow, with tensors of its own, nothing of adjoined.

        Args:
            which: number of the small network, from 0.

        Returns:
            A module of the model's own classes, on this network's device; its parts are in the mode (train or eval) in
        which the small network's are.
        """
        module = self.plans[which].apply(self.base)
        own = self.smalls[which].state_dict()
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name in own:
                    tensor.copy_(own[name])
            for shared in self._shared:
                if (mask := self._mask(shared)) is not None:
                    shared.weight_in(module).mul_(mask)
        hand_on_kept(self.smalls[which], module)
        for name, part in self.smalls[which].named_modules():
            module.get_submodule(name).training = part.training
        return module

    def measure_statistics(self, batches: Iterable[Any]) -> int:
        """Measure the running statistics of every small network's batch norms anew, on weights as they are now.

        In training they follow as moving averages, behind weights that the base network moves, too. After it, and
        before `extract`, this gives each small network the statistics of the network that it has become: means over
        all batches, with everything but batch norms in eval mode. The base network's own are left alone.

        Args:
            batches: training images, about 1,000 or more; such as a data loader. Each batch is a tensor (N, C, H, W), a
                tuple or list that begins with it, as loaders return, or a dict of keyword arguments.

        Returns:
            How many images were used; 0 where no small network has running statistics.

        Raises:
            AdjoinedError: there is no batch, or one of a single value per channel. The statistics are as before then.

        Example:
            >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 5, 6))
            >>> net = adjoin(model, torch.zeros(1, 3, 8, 8), alpha=4)
            >>> net.measure_statistics(torch.randn(8, 3, 8, 8) for _ in range(2))
            16
        """
        runs = [partial(self.small, which=which) for which in range(len(self.smalls))]
        return measure_statistics(list(self.smalls), runs, batches)

    def extra_repr(self) -> str:
        """Show the factors of the small networks."""
        return "alpha=" + ", ".join(f"{plan.alpha:g}" for plan in self.plans)

    # ---- shared weights ----------------------------------------------------------------------------------------------

    def _hand_out(self, shared: _Shared, *, fresh_gradient: bool) -> tuple[Tensor, ...]:
        """Return a weight for the base network, and what every small network has of it."""
        weight, *slices = share(shared.weight_in(self.base), shared.slices, fresh_gradient=fresh_gradient)
        mask = self._mask(shared)
        return (weight, *(slices if mask is None else (each * mask for each in slices)))

    def _mask(self, shared: _Shared) -> Tensor | None:
        where, name = shared.places[0]
        return self.masks.of(f"{where}.{name}")

    def _run(self, module: nn.Module, weights: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module with the shared weights bound to their places."""
        bound = {
            f"{where}.{name}" if where else name: weight
            for shared, weight in zip(self._shared, weights, strict=True)
            for where, name in shared.places
        }
        return torch.func.functional_call(module, bound, args, kwargs, tie_weights=False)

    def _skeleton(self, number: int, plan: SlicePlan) -> nn.Module:
        """Return the small module without the weights that it shares."""
        small = plan.apply(self.base)
        borrowed: list[str] = []
        for name, module in self.base.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in borrowed)
            if isinstance(module, torch.jit.ScriptModule) and not inside:
                borrowed.append(name)
                parent, _, attribute = name.rpartition(".")
                setattr(small.get_submodule(parent), attribute, _Borrowed(module))
        lenders: dict[str, _Lender] = {}
        for shared in self._shared:
            for where, name in shared.places:
                small.get_submodule(where)._parameters[name] = None
                lenders.setdefault(where, _Lender(self, number)).places.append((name, shared))
        for where, lender in lenders.items():
            small.get_submodule(where).register_forward_pre_hook(lender.lend)
            small.get_submodule(where).register_forward_hook(lender.take_back, always_call=True)
        for name, followed in plan.unreached.items() if plan.tensors else ():
            if not followed and name not in plan.shapes:
                small.get_submodule(name).register_forward_pre_hook(_Refusal(name))
        for module in small.modules():
            for switch in CHECKPOINTING:
                if vars(module).get(switch) is True:
                    setattr(module, switch, False)
        return small


class _Refusal:
    """Refuses to run a part of a small network that was not followed: its channels are those of the base."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, _args: object) -> None:
        raise AdjoinedError(
            "the small network cannot run this part: the example input did not reach it, so its channels are unknown",
            where=f"'{self.name}' ({type(module).__name__})",
            fix="Call adjoin with an example input, or with options, that reach all parts in use.",
        )


class _Lender:
    """Lends a module of a small network its slices where nobody has bound them.

    Activation checkpointing runs modules again in the backward pass, when the call that bound them is over.
    """

    def __init__(self, net: AdjoinedNetwork, number: int) -> None:
        self.net, self.number = net, number
        self.places: list[tuple[str, _Shared]] = []
        self.lent: list[str] = []

    def lend(self, module: nn.Module, _args: object) -> None:
        """Bind what is missing before the module runs."""
        for name, shared in self.places:
            if module._parameters[name] is None:
                handed = self.net._hand_out(shared, fresh_gradient=False)
                module._parameters[name] = handed[self.number + 1]  # pyright: ignore[reportArgumentType]
                self.lent.append(name)

    def take_back(self, module: nn.Module, _args: object, _out: object) -> None:
        """Unbind it again."""
        while self.lent:
            module._parameters[self.lent.pop()] = None


class _Borrowed(nn.Module):
    """A module of the base network that small networks call as it is: TorchScript's, which cannot be made narrow.

    It is not registered, so its tensors belong to the base alone.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._module[0](*args, **kwargs)


def adjoin(
    model: nn.Module,
    example_input: Any,
    *,
    alpha: float | Iterable[float] = 4.0,
    keep: Iterable[str] = (),
    round_to: int = 8,
    compress: float | None = None,
    widths: Mapping[str, str] | None = None,
    order: str | None = None,
    plan: SlicePlan | Sequence[SlicePlan] | None = None,
    check: bool = False,
    private_norms: bool = True,
    private_head: bool = False,
    masking_factor: float = 0.0,
) -> AdjoinedNetwork:
    """Join a model with a small twin (or a family of them) on shared weights.

    Args:
        model: the base network: any module with convolutions. It is used, not copied.
        example_input: what the model is called with: a tensor such as float32 (1, 3, 224, 224), a tuple of positional
            arguments, or a dict of keyword arguments. Values do not matter, shapes do.
        alpha: every layer of the small network keeps about 1/alpha of its channels, so inner convolutions have about
            1/alpha² of the parameters; at least 1, fractions allowed. Several values make a family: `net(x)` then
            returns p, q1, q2, ...
        keep: names or patterns (as for file names) of modules whose tensors stay at full width: ("conv1", "layer1").
        round_to: widths are rounded up to multiples of this many channels; 1 for exact counts.
        compress: choose alpha so that the small network has this many times fewer parameters, without the last linear
            layer on either side; instead of `alpha`.
        widths: names or patterns of modules -> width of the channels that these modules write, in place of 1/alpha: a
            share such as {"layer3.*": "1/2"}, or a number such as {"layer4": "96 channels"}. `round_to` holds for them;
            `compress` leaves them alone.
        order: reorder the model's channels first, in place and without changing its function, so that the small network
            starts from the most important ones: "l1", "l2" (norm of the filters that write a channel) or "bn" (scale of
            its batch norms); `adjoined.slicing.reorder` tells more. For pretrained weights; before an optimizer's first
            step. Not when going on with weights that were adjoined before: those are in their order already.
        plan: use this slice plan (or one for each small network) instead of making one; the settings above are unused,
            but for `order`.
        check: compare every small network with the base network, its dropped channels at zero, in float64 on random
            input (see `adjoined.slicing.check_plan`). It takes about as long as running both.
        private_norms: small networks have scale and shift of their own in every norm; False is an ablation.
        private_head: small networks have weights of their own in the layer that comes last, too: the last linear one to
            run, or the last convolution where there is none. They begin as slices. It costs a small network nothing at
            inference; in training it is one narrow layer more.
        masking_factor: share of each kernel's positions at which all filters of the small networks are zero, the same
            random ones within a layer, in [0, 1): the authors' code has this; an ablation, nothing is faster by it.

    Returns:
        An `AdjoinedNetwork`, in the mode (train or eval) of the model, on its device.

    Raises:
        AdjoinedError: bad settings, an unknown name in `keep`, a plan of another model, a model that does not run, or a
            small network that fails the check.

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
    check_model(model)
    if order is not None:
        check_order(order)
    if plan is not None:
        plans: Any = plan if isinstance(plan, (list, tuple)) else (plan,)
    else:
        alphas = list(alpha) if isinstance(alpha, Iterable) and compress is None else [alpha]
        plans = [
            make_plan(model, example_input, alpha=each, keep=keep, round_to=round_to, compress=compress, widths=widths)  # pyright: ignore[reportArgumentType]
            for each in alphas
        ]
    if order is not None:
        plans = reorder(model, example_input, plans, order)
    head = (last_layer(model, example_input),) if private_head else ()
    net = AdjoinedNetwork(model, plans, private_norms=private_norms, private=head, masking_factor=masking_factor)
    if check:
        for each in net.plans:
            check_plan(model, example_input, each)
    return net


def _at_any_network(pattern: Any) -> Any:
    """Return a pattern of names in a model as one of names in a joint network; timm writes (pattern, suffix) as well.

    Example:
        >>> re.match(_at_any_network(r"^blocks\\.(\\d+)"), "smalls.0.blocks.7.bn.weight").groups()
        ('7',)
    """
    if isinstance(pattern, (list, tuple)):
        return [(_at_any_network(each), suffix) for each, suffix in pattern]
    if pattern is None:
        return None
    unanchored = re.sub(r"(?<!\[)\^", "", pattern)
    return rf"(?:base|smalls\.\d+)\.(?:{unanchored})"


def _shared_weights(base: nn.Module, plans: Sequence[SlicePlan], private: set[str]) -> list[_Shared]:
    """Return every weight that the networks share, tied weights once."""
    places: dict[int, list[tuple[str, str]]] = {}
    for where, module in base.named_modules():
        for name, parameter in () if isinstance(module, torch.jit.ScriptModule) else module._parameters.items():
            full = f"{where}.{name}" if where else name
            if parameter is not None and full not in private:
                places.setdefault(id(parameter), []).append((where, name))
    shared = []
    for of_one in places.values():
        where, name = of_one[0]
        full = f"{where}.{name}" if where else name
        shared.append(_Shared(tuple(of_one), tuple(plan.indices(full) for plan in plans), full in plans[0].products))
    return shared
