"""A Lightning callback that trains any LightningModule's model together with its small twin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from adjoined.errors import AdjoinedError
from adjoined.integrations.lightning_tap import Tap, replace_method, restore_methods
from adjoined.integrations.lightning_terms import SmallLoss, classification_terms, second_entry, share_done
from adjoined.integrations.own_parameters import FollowsBase, joined_as, load_own_state, own_state
from adjoined.names import small_names
from adjoined.network import ADJOINT_PLUS, AdjoinedNetwork, adjoin
from adjoined.slicing import tensor_leaves


class Adjoined(Callback):
    """Train the model of a LightningModule together with its small twin, without changes to the module.

    The callback makes the model adjoined before the optimizers are made, adds the small networks' terms to the loss
    that `training_step` returns, and logs both networks' metrics. `configure_optimizers` sees the original model; each
    of the small networks' own parameters then joins the group of the base's parameter of the same name. `self.model(x)`
    in the module still returns the base network's output. Checkpoints keep the module's own parameter names, so
    `load_from_checkpoint` works without adjoined; the callback's state holds the small networks' private tensors.
    While the trainer runs, `self.model` is a wrapper that passes attributes and items on to the model, so only
    `isinstance` sees a difference.

    After `fit`, `validate` and `test` also measure both networks, and a second `fit` of the same module continues with
    them. With `ckpt_path`, also in a new process, they and this callback get the networks of that checkpoint.

    Args:
        attribute: name of the attribute that holds the model, such as "model" or "net.backbone".
        example_input: an input of the model, such as float32 (1, 3, 224, 224); None: the module's
            `example_input_array`.
        small_loss: the small networks' terms, see `SmallLoss`. None: those of `adjoint+`, the sum of
            λ(t) · [CE(q, y) + KL(p ‖ q)] at temperature 4 without gradient to p, for batches (x, y) with class
            indices y.
        metrics: name -> metric over (output, target) of a validation or test batch. None: top-1 accuracy, if y holds
            class indices.
        target: returns the target of a batch. None: the second entry.
        **settings: as for `adjoin`: alpha, keep, round_to, widths, order, ... By default `private_head` is True and
            `small_gradient` 0.5, as in `adjoint+`.

    Attributes:
        net: the joint network, from the start of `fit`; afterwards `adjoined.save(callback.net, ...)` and
            `callback.net.measure_statistics(...)` take it.
        base: the trained base network, which is also the module's model again.
        smalls: the trained small networks, plain modules in eval mode.

    Raises:
        AdjoinedError: the module has no such attribute, no example input is known, the module uses manual
            optimization, the length of the training is unknown, a callback that averages weights comes before this
            one, or a checkpoint has only the base's weights.

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
        self.target = target or second_entry
        self.settings = {**ADJOINT_PLUS, **settings}
        self.net: AdjoinedNetwork | None = None
        self.base: nn.Module | None = None
        self.smalls: list[nn.Module] = []
        self._metrics = metrics
        self._running: dict[tuple[int, str], dict[str, Metric]] = {}
        self._tap: Tap | None = None
        self._follows: FollowsBase | None = None

    @property
    def small(self) -> nn.Module:
        """The (first) trained small network.

        Raises:
            AdjoinedError: `fit` has not finished.
        """
        if not self.smalls:
            raise AdjoinedError(
                "no small network yet",
                where="Adjoined.small",
                fix="Call trainer.fit first. If it trained in separate processes (ddp_spawn, ddp_notebook), call "
                "validate(module, ..., ckpt_path=...) of a Trainer with one device.",
            )
        return self.smalls[0]

    # ---- before and after --------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the joint network in the model's place, before the optimizers are made."""
        if stage == "fit":
            self._check(trainer, pl_module)
            self._wrap(pl_module, trainer)
        elif self.net is None:
            return
        owner, name = self._owner(pl_module)
        model = getattr(owner, name)
        known = self.net is not None and any(part is self.net.base for part in model.modules())
        if stage == "fit" and not known:
            self.net = adjoin(model, self._example(pl_module), **self.settings)
            if hasattr(model, "dynamo_ctx"):  # compiled by the user, with options known only here
                self.net._compiled_call_impl = model.dynamo_ctx(self.net._call_impl)
        if stage == "fit" or known:
            tap = self._insert(pl_module)
            self._follows = FollowsBase(tap.net)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the model back in its place, and keep the finished networks."""
        if self._tap is not None:
            net = self._tap.net
            self._remove(pl_module)
            self.base, self.smalls = net.base, [net.extract(which).eval() for which in range(len(net.plans))]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the model back in its place; interrupted training leaves both networks."""
        if isinstance(exception, KeyboardInterrupt):
            self.teardown(trainer, pl_module, "")
        self._remove(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a checkpoint held both networks."""
        assert self._tap is not None
        self._tap.check()

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise AdjoinedError if this trainer and module cannot train a small network."""
        if not module.automatic_optimization:
            raise AdjoinedError(
                "the module uses manual optimization, so nothing can be added to its loss",
                where=f"{type(module).__name__}.automatic_optimization",
                fix="Call adjoined.adjoin in the module, and add adjoined.adjoint_loss to its loss.",
            )
        for each in trainer.callbacks[: trainer.callbacks.index(self)]:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(each, (WeightAveraging, StochasticWeightAveraging)):
                raise AdjoinedError(
                    f"{type(each).__name__} comes first, and would average the base alone",
                    where="Trainer(callbacks=[...])",
                    fix="Put Adjoined before it.",
                )

    def _example(self, module: LightningModule) -> Any:
        example = module.example_input_array if self.example_input is None else self.example_input
        if example is None:
            raise AdjoinedError(
                "no example input is known",
                where="Adjoined(example_input=...)",
                fix="Pass one, such as torch.zeros(1, 3, 224, 224), or set the module's example_input_array.",
            )
        return example

    def _insert(self, module: LightningModule) -> Tap:
        assert self.net is not None
        owner, name = self._owner(module)
        self._tap = Tap(self.net, getattr(owner, name))
        setattr(owner, name, self._tap)
        return self._tap

    def _remove(self, module: LightningModule) -> None:
        if self._tap is not None:
            owner, name = self._owner(module)
            setattr(owner, name, self._tap.model)
            self._tap = None
        restore_methods(module)

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
                expected="the name of a torch.nn.Module that __init__ makes"
                + (f", such as {', '.join(map(repr, children))}" if children else ""),
                got=type(found).__name__,
            )
        return owner, name

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def _wrap(self, module: LightningModule, trainer: Trainer) -> None:
        """Have `training_step` add the small networks' terms to its loss, and `configure_optimizers` see the base.

        The optimizers, made for the base, then train the small networks' own parameters, too.
        """
        step, configure = module.training_step, module.configure_optimizers

        @functools.wraps(getattr(step, "__wrapped__", step))  # Lightning looks behind one wrapper for the arguments
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            assert self._tap is not None
            assert self._follows is not None
            self._follows.look(trainer.optimizers)
            self._tap.calls.clear()
            returned = step(batch, *args, **kwargs)
            if returned is None:  # Lightning then leaves the batch out
                return None
            tried = self not in trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
            extra = self._extra(batch, 1.0 if tried else share_done(trainer))  # a Tuner tries steps without callbacks
            module.log(f"{self._of(trainer)}small_loss", extra.detach(), prog_bar=True)
            if isinstance(returned, Mapping):
                return {**returned, "loss": returned["loss"] + extra}
            return returned + extra

        @functools.wraps(configure)
        def configure_optimizers() -> Any:
            follows = self._follows
            assert self._tap is not None
            assert follows is not None
            owner, name = self._owner(module)
            setattr(owner, name, self._tap.model)
            try:
                made = configure()
            finally:
                setattr(owner, name, self._tap)
            optimizers = [each for each in tree_leaves(made) if isinstance(each, Optimizer)]
            follows.look(optimizers)
            for each in optimizers:  # when a run resumes, BaseFinetuning restores groups without small networks
                each.register_load_state_dict_pre_hook(lambda *_: follows.look(optimizers))
            return made

        replace_method(module, "training_step", training_step)
        replace_method(module, "configure_optimizers", configure_optimizers)

    def _extra(self, batch: Any, progress: float) -> Tensor:
        assert self._tap is not None
        calls = [call for call in self._tap.take() if any(each.requires_grad for each in tensor_leaves(call))]
        if not calls:
            raise AdjoinedError(
                "the training step did not call the model with gradients, so the small network cannot learn",
                where=f"Adjoined({self.attribute!r})",
                fix=f"Call self.{self.attribute}(x) in training_step.",
            )
        terms = [self.small_loss(p, smalls, batch, progress) for p, *smalls in calls]
        return torch.stack(terms).mean()

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics."""
        self._running = {}
        if self._tap is not None:
            self._tap.check()
            self._tap.calls.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update every network's metrics."""
        if self._tap is None:
            return
        for call in self._tap.take():
            for name, output in zip(self._names(), call, strict=True):
                key = dataloader_idx, name
                if key not in self._running:
                    self._running[key] = self._new_metrics(output, self.target(batch), pl_module.device)
                for metric in self._running[key].values():
                    metric.update(output, self.target(batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log every network's metrics as `base/NAME` and `small/NAME`, summed over processes.

        With several loaders, each has its own, ending in `/dataloader_idx_1` and so on, as Lightning's do.
        """
        several = len({loader for loader, _ in self._running}) > 1
        for (loader, network), metrics in self._running.items():
            end = f"/dataloader_idx_{loader}" if several else ""
            for name, metric in metrics.items():
                key = f"{self._of(trainer)}{network}/{name}{end}"
                pl_module.log(key, metric.compute(), prog_bar=True, add_dataloader_idx=False)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """Keep no outputs."""
        if self._tap is not None:
            self._tap.calls.clear()

    def _of(self, trainer: Trainer) -> str:
        """Return what tells the metrics of several such callbacks apart."""
        several = sum(isinstance(each, Adjoined) for each in trainer.callbacks) > 1  # pyright: ignore[reportAttributeAccessIssue]
        return f"{self.attribute}/" if several else ""

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
        return {} if self.net is None else own_state(self.net)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save averages of the small networks where the checkpoint has the base's, and their weights beside them."""
        average = self._average(trainer)
        if average is not None:
            state = checkpoint["callbacks"][self.state_key]
            state |= {"smalls": dict(average.smalls.state_dict()), "current": state["smalls"]}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the result of `state_dict`; in a process that has not trained, join the model as it says.

        Raises:
            AdjoinedError: the checkpoint's small networks are sliced differently.
        """
        state = checkpoint["callbacks"].get(self.state_key)
        if not state:
            return
        tap = self._tap
        if tap is None:
            owner, name = self._owner(pl_module)
            self.net = joined_as(getattr(owner, name), state)
            tap = self._insert(pl_module)
        average, where = self._average(trainer), f"Adjoined({self.attribute!r})"
        load_own_state(tap.net, state, where)
        if average is not None and "current" in state:
            load_own_state(average, state, where)
            tap.net.smalls.load_state_dict(state["current"])
        tap.complete = True

    def _average(self, trainer: Trainer) -> AdjoinedNetwork | None:
        """Return the moving average of the joint network, if checkpoints hold it in place of the weights."""
        for each in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            average = each._average_model if isinstance(each, WeightAveraging) else None
            if average is not None:
                tap = average.module.get_submodule(self.attribute)
                return tap.net if isinstance(tap, Tap) else None
        return None
