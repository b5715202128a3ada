"""A Lightning callback that trains any LightningModule's model together with its small twin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_terms, sum_cross_entropy
from adjoined.names import small_names
from adjoined.network import ADJOINT_PLUS, AdjoinedNetwork, adjoin
from adjoined.objective import kl_weight
from adjoined.slicing import SlicePlan

Outputs = tuple[Any, ...]
"""The outputs of one call of the joint network: the base's, then every small network's."""
SmallLoss = Callable[[Any, Sequence[Any], Any, float], Tensor]
"""(p, small outputs, batch, progress) -> the small networks' terms of the loss, a scalar."""


class Adjoined(Callback):
    """Train the model of a LightningModule together with its small twin, without changes to the module.

    The callback joins the model before the optimizers are made, adds the small networks' terms to the loss that
    `training_step` returns, and logs both networks' metrics. `self.model(x)` in the module still returns the base
    network's output. Checkpoints keep the module's own parameter names, so `load_from_checkpoint` works without
    adjoined; the callback's state holds the small networks' private tensors. During `fit`, `self.model` is a wrapper
    that passes attributes and items on to the model, so only `isinstance` sees a difference.

    Args:
        attribute: name of the attribute that holds the model, such as "model" or "net.backbone".
        example_input: an input of the model, such as float32 (1, 3, 224, 224); None: the module's
            `example_input_array`.
        small_loss: the small networks' terms, see `SmallLoss`. None: those of `adjoint+`, the sum of
            λ(t) · [CE(q, y) + KL(p ‖ q)] at temperature 4 without gradient to p, for batches (x, y) with class
            indices y.
        metrics: name -> metric over (output, target) of a validation batch. None: top-1 accuracy, if y holds class
            indices.
        target: returns the target of a batch. None: the second entry.
        **settings: as for `adjoin`: alpha, keep, round_to, widths, order, ... By default `private_head` is True and
            `small_gradient` 0.5, as in `adjoint+`.

    Attributes:
        net: the joint network while `fit` runs; None before.
        base: the trained base network after `fit`, which is also the module's model again.
        smalls: the trained small networks, plain modules, after `fit`.

    Raises:
        AdjoinedError: the module has no such attribute, no example input is known, the module uses manual
            optimization, or the length of the training is unknown.

    Example:
        >>> callback = Adjoined("model", alpha=4)  # Trainer(callbacks=[callback])
        >>> callback.settings["alpha"], callback.settings["private_head"]
        (4, True)
    """

    def __init__(
        self,
        attribute: str = "model",
        *,
        example_input: Any = None,
        small_loss: SmallLoss | None = None,
        metrics: Mapping[str, Metric] | None = None,
        target: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        self.attribute, self.example_input = attribute, example_input
        self.small_loss = small_loss or classification_terms
        self.target = target or _second
        self.settings = {**ADJOINT_PLUS, **settings}
        self.net: AdjoinedNetwork | None = None
        self.base: nn.Module | None = None
        self.smalls: list[nn.Module] = []
        self._metrics = metrics
        self._running: dict[str, dict[str, Metric]] = {}
        self._tap: _Tap | None = None
        self._saved: dict[str, Any] | None = None

    @property
    def small(self) -> nn.Module:
        """The (first) trained small network.

        Raises:
            AdjoinedError: `fit` has not finished.
        """
        if not self.smalls:
            raise AdjoinedError("no small network yet", where="Adjoined.small", fix="Call trainer.fit first.")
        return self.smalls[0]

    # ---- before and after --------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the joint network in the model's place, before the optimizers are made."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise AdjoinedError(
                "the module uses manual optimization, so nothing can be added to its loss",
                where=f"{type(pl_module).__name__}.automatic_optimization",
                fix="Call adjoined.adjoin in the module, and add adjoined.adjoint_loss to its loss.",
            )
        owner, name = self._owner(pl_module)
        model = getattr(owner, name)
        if isinstance(model, _Tap):  # after an error in `fit`, Lightning tears nothing down
            model = model.net.base
            pl_module.__dict__.pop("training_step", None)
        example = pl_module.example_input_array if self.example_input is None else self.example_input
        if example is None:
            raise AdjoinedError(
                "no example input is known",
                where="Adjoined(example_input=...)",
                fix="Pass one, such as torch.zeros(1, 3, 224, 224), or set the module's example_input_array.",
            )
        self.net = adjoin(model, example, **self.settings)
        self._tap = _Tap(self.net)
        setattr(owner, name, self._tap)
        self._wrap(pl_module, trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the base network back in its place, and keep the finished networks."""
        if self.net is None or self._tap is None:
            return
        owner, name = self._owner(pl_module)
        setattr(owner, name, self.net.base)
        pl_module.__dict__.pop("training_step", None)
        self.base = self.net.base
        self.smalls = [self.net.extract(which).eval() for which in range(len(self.net.plans))]
        self._tap = self.net = None

    def _owner(self, module: LightningModule) -> tuple[nn.Module, str]:
        """Return the module that holds the attribute, and the attribute's name in it."""
        path, _, name = self.attribute.rpartition(".")
        owner: nn.Module = module
        found: object = None
        with suppress(AttributeError):
            owner = module.get_submodule(path)
            found = getattr(owner, name)
        if not isinstance(found, nn.Module):
            children = [each for each, _ in module.named_children()]
            raise AdjoinedError(
                "the LightningModule has no such model",
                where=f"Adjoined({self.attribute!r})",
                expected=f"the name of a torch.nn.Module, such as {', '.join(map(repr, children)) or 'none here'}",
                got=type(found).__name__,
            )
        return owner, name

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def _wrap(self, module: LightningModule, trainer: Trainer) -> None:
        """Have `training_step` return its loss and the small networks' terms."""
        step = module.training_step

        @functools.wraps(step)
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            assert self._tap is not None
            self._tap.calls.clear()
            returned = step(batch, *args, **kwargs)
            if returned is None:  # Lightning then leaves the batch out
                return None
            extra = self._extra(batch, _progress(trainer))
            module.log("small_loss", extra.detach(), prog_bar=True)
            if isinstance(returned, Mapping):
                return {**returned, "loss": returned["loss"] + extra}
            return returned + extra

        module.training_step = training_step  # pyright: ignore[reportAttributeAccessIssue]

    def _extra(self, batch: Any, progress: float) -> Tensor:
        assert self._tap is not None
        calls = self._tap.take()
        if not calls:
            raise AdjoinedError(
                "the training step did not call the model, so the small network has nothing to learn from",
                where=f"Adjoined({self.attribute!r})",
                fix=f"Call self.{self.attribute}(x) in training_step.",
            )
        terms = [self.small_loss(p, smalls, batch, progress) for p, *smalls in calls]
        return torch.stack(terms).mean()

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics."""
        self._running = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Update every network's metrics."""
        if self._tap is None:
            return
        for call in self._tap.take():
            for name, output in zip(self._names(), call, strict=True):
                if name not in self._running:
                    self._running[name] = self._new_metrics(output, self.target(batch), pl_module.device)
                for metric in self._running[name].values():
                    metric.update(output, self.target(batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log every network's metrics as `base/NAME` and `small/NAME`, summed over processes."""
        for network, metrics in self._running.items():
            for name, metric in metrics.items():
                pl_module.log(f"{network}/{name}", metric.compute(), prog_bar=True)

    def _names(self) -> tuple[str, ...]:
        assert self.net is not None
        return ("base", *small_names(len(self.net.plans)))

    def _new_metrics(self, output: Any, target: Any, device: torch.device) -> dict[str, Metric]:
        metrics = self._metrics
        if metrics is None:
            classes = isinstance(output, Tensor) and isinstance(target, Tensor) and not target.is_floating_point()
            metrics = {"accuracy": MulticlassAccuracy(output.shape[1], average="micro")} if classes else {}
        return {name: metric.clone().to(device) for name, metric in metrics.items()}

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """One callback for each attribute."""
        return self._generate_state_key(attribute=self.attribute)

    def state_dict(self) -> dict[str, Any]:
        """Return the plans and the small networks' private tensors, as plain values and tensors."""
        if self.net is None:
            return {}
        return {"plans": [plan.to_json() for plan in self.net.plans], "smalls": dict(self.net.smalls.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of `state_dict`.

        Raises:
            AdjoinedError: the checkpoint's small networks are sliced differently.
        """
        if self.net is None or not state_dict:
            return
        saved = [SlicePlan.from_json(plan) for plan in state_dict["plans"]]
        if [plan.tensors for plan in saved] != [plan.tensors for plan in self.net.plans]:
            raise AdjoinedError(
                "the checkpoint's small networks do not match these settings",
                where=f"Adjoined({self.attribute!r})",
                expected=", ".join(f"alpha {plan.alpha:g}" for plan in saved),
                got=", ".join(f"alpha {plan.alpha:g}" for plan in self.net.plans),
                fix="Resume with the same callback settings as that run.",
            )
        self.net.smalls.load_state_dict(state_dict["smalls"])


class _Tap(nn.Module):
    """The joint network in the place of the model: returns the base's output and keeps the small ones' aside.

    Its state dict is the base network's, under the names that the model had.
    """

    def __init__(self, net: AdjoinedNetwork) -> None:
        super().__init__()
        self.net = net
        self.calls: list[Outputs] = []
        self._register_state_dict_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self.register_load_state_dict_post_hook(_forgive_smalls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.net(*args, **kwargs)
        self.calls.append(outputs)
        return outputs[0]

    def take(self) -> list[Outputs]:
        """Return the outputs of all calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the module's own code reads of its model
            net: Any = super().__getattr__("net")
            return getattr(net.base, name)

    def __getitem__(self, index: Any) -> Any:
        return self.net.base[index]  # pyright: ignore[reportIndexIssue]

    def __len__(self) -> int:
        return len(self.net.base)  # pyright: ignore[reportArgumentType]


_BASE, _SMALLS = "net.base.", "net.smalls."


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, _meta: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        value, rest = state.pop(name), name.removeprefix(prefix)
        if not rest.startswith(_SMALLS):
            state[prefix + rest.removeprefix(_BASE)] = value


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}{_BASE}{name.removeprefix(prefix)}"] = state.pop(name)


def _forgive_smalls(module: nn.Module, incompatible: Any) -> None:
    """Leave the small networks to the callback's own state."""
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if _SMALLS not in name]


def classification_terms(p: Tensor, smalls: Sequence[Tensor], batch: Any, progress: float) -> Tensor:
    """Return the sum of λ(t) · [CE(q, y) + KL(p ‖ q)] over the small networks, at temperature 4, without gradient to p.

    Args:
        p: logits of the base network, float (N, C).
        smalls: logits of every small network, each as `p`.
        batch: (x, y, ...) with class indices y, int64 (N,), or probabilities, float (N, C).
        progress: t, the share of the training done, in [0, 1].
    """
    y = _second(batch)
    if not isinstance(p, Tensor) or not isinstance(y, Tensor):
        raise AdjoinedError(
            "the small network needs a loss of its own for these outputs and targets",
            where="Adjoined(small_loss=...)",
            expected="logits, and class indices or probabilities as the batch's second entry",
            got=f"{type(p).__name__} and {type(y).__name__}",
            fix="Pass small_loss, a function of (p, small outputs, batch, progress).",
        )
    kl = adjoint_terms(p.detach(), smalls, y, detach=True, temperature=4.0).kl
    return kl_weight(progress) * (sum_cross_entropy(smalls, y) + kl)


def _second(batch: Any) -> Any:
    if isinstance(batch, Iterable) and not isinstance(batch, (Tensor, Mapping)):
        entries = list(batch)
        if len(entries) > 1:
            return entries[1]
    raise AdjoinedError(
        "the batch has no second entry to use as the target",
        where="Adjoined(target=..., small_loss=...)",
        expected="batches (x, y)",
        got=type(batch).__name__,
        fix="Pass target and small_loss, functions that read your batches.",
    )


def _progress(trainer: Trainer) -> float:
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise AdjoinedError(
            "the length of the training is unknown, so λ(t) is undefined",
            where="Trainer(max_epochs=..., max_steps=...)",
            fix="Set one of them.",
        )
    return min(trainer.global_step / steps, 1.0)
