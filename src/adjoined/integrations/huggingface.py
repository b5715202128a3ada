"""A Hugging Face trainer that trains a model together with its small twin."""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_model as save_weights
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainingArguments

from adjoined.distances import Distance, class_kl, gaussian_kl, label_kl
from adjoined.errors import AdjoinedError
from adjoined.integrations.own_parameters import train_with_base
from adjoined.names import small_names
from adjoined.network import ADJOINT_PLUS, AdjoinedNetwork, adjoin
from adjoined.objective import kl_weight
from adjoined.slicing import Inputs, SlicePlan, tensor_leaves


class AdjoinedTrainer(Trainer):
    """Train a model of transformers together with its small twin.

    The loss is that of `adjoint+`: the trainer's own loss of the base, and λ(t) · [its loss of the small network +
    KL(p ‖ q)] for every small one, with p detached. The KL is that of the config's `problem_type`: of classes or of
    independent labels at temperature 4, or of Gaussians for a regression. `evaluate` and `predict` measure every
    network: the base as `eval_...`, the small one as `eval_small_...`. Checkpoints hold the joint network and resume as
    usual; `save_model` saves each network as transformers does. An optimizer in `optimizers`, made for the base, also
    trains the small networks' own parameters.

    Args:
        model: the base network; it is used, not copied.
        args: the training arguments.
        adjoin_settings: as for `adjoin`: alpha, keep, order, ... By default `private_head` is True and
            `small_gradient` 0.5, as in `adjoint+`.
        example_input: an input of the model; None: {"pixel_values": float32 (1, C, 224, 224)}, with the image size and
            channels of the model's config if it has them.
        **options: as for `transformers.Trainer`.

    Raises:
        AdjoinedError: the model cannot be joined.

    Example:
        >>> trainer = AdjoinedTrainer(model, args, train_dataset=photos, adjoin_settings={"alpha": 4})  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.extract().save_pretrained("small")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        adjoin_settings: Mapping[str, Any] | None = None,
        example_input: Any = None,
        **options: Any,
    ) -> None:
        self._example = _example_of(model) if example_input is None else example_input
        self.net = adjoin(model, self._example, **{**ADJOINT_PLUS, **(adjoin_settings or {})})
        self._tap = _Tap(self.net)
        args.label_names = args.label_names or ["labels"]
        super().__init__(model=self._tap, args=args, **options)
        if isinstance(self.optimizer, Optimizer):  # the user's, made for the base
            train_with_base(self.net, [self.optimizer])
        self.model_accepts_loss_kwargs = False  # the joint loss is a mean over the batch

    @property
    def base(self) -> nn.Module:
        """The base network in its current state."""
        return self.net.base

    def extract(self, which: int = 0) -> nn.Module:
        """Return a small network as a plain model in eval mode; `save_pretrained` works where `narrow_config` does.

        Args:
            which: number of the small network, from 0.
        """
        small = self.net.extract(which).eval()
        config = narrow_config(small, self.net.plans[which], self._example)
        if config is not None:
            small.config = config
        return small

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the joint loss in training, and otherwise the loss of the network that is evaluated."""
        probe = _FirstOutput(model)
        loss, outputs = self._loss_of(probe, inputs, num_items_in_batch)
        if probe.smalls:
            own = torch.stack(
                [self._loss_of(_KnownOutput(small), inputs, num_items_in_batch)[0] for small in probe.smalls]
            ).sum()
            distance = _distance(self.net.base.config, _logits(outputs), inputs)
            kl = torch.stack([distance(_logits(outputs), _logits(small)) for small in probe.smalls]).sum()
            if self.compute_loss_func is not None:  # its losses are shares of those of all accumulated batches
                kl = kl / self.current_gradient_accumulation_steps
            loss = loss + kl_weight(min(self.state.global_step / self.state.max_steps, 1.0)) * (own + kl)
        return (loss, outputs) if return_outputs else loss

    def _loss_of(self, model: nn.Module, inputs: Mapping[str, Any], items: Tensor | int | None) -> tuple[Tensor, Any]:
        """Return the trainer's own loss, which may take entries out of the inputs, and the outputs."""
        returned: Any = super().compute_loss(model, dict(inputs), True, items)
        return returned

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Return the predictions and metrics of the base network, and the metrics of every small one with them."""
        options = (dataloader, description, prediction_loss_only, ignore_keys)
        output: Any = super().evaluation_loop(*options, metric_key_prefix)
        try:
            for which, name in enumerate(small_names(len(self.net.plans))):
                self._tap.which = which
                own: Any = super().evaluation_loop(*options, f"{metric_key_prefix}_{name}")
                output.metrics.update(own.metrics)
        finally:
            self._tap.which = None
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the base as transformers does, and each small network beside it, as `small`.

        A small network that no config describes is saved as `plan.json` and `model.safetensors`.
        """
        if _internal_call and output_dir is not None:  # a checkpoint: the joint network; None: what is pushed to a hub
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            networks: list[tuple[str, Any]] = [("", self.net.base)]
            for which, name in enumerate(small_names(len(self.net.plans))):
                small: Any = self.net.extract(which).eval()
                small.config = narrow_config(small, self.net.plans[which], self._example)
                if small.config is not None:
                    networks.append((name, small))
                    continue
                (folder / name).mkdir(parents=True, exist_ok=True)
                self.net.plans[which].save(folder / name / "plan.json")
                save_weights(small, str(folder / name / "model.safetensors"))
            for name, network in networks:
                network.save_pretrained(folder / name)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder / name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:  # of load_state_dict
            raise AdjoinedError(
                "the checkpoint does not fit this joint network",
                where=resume_from_checkpoint,
                fix="Resume with the model and the adjoin_settings of the original training.",
            ) from error

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            names = inspect.signature(self.net.base.forward).parameters
            self._signature_columns = list(dict.fromkeys([*names, "label", "label_ids", *self.label_names]))


class _Tap(nn.Module):
    """The joint network as the trainer's model: all outputs in training, and otherwise those of one network.

    `DistributedDataParallel` sees all outputs, and so the small networks' own parameters among those in use.
    """

    def __init__(self, net: AdjoinedNetwork) -> None:
        super().__init__()
        self.net = net
        self.config = getattr(net.base, "config", None)
        self.which: int | None = None
        """The small network to evaluate; None: the base."""

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Have the base compute activations again in the backward pass; small networks have few."""
        base: Any = self.net.base
        base.gradient_checkpointing_enable(**options)

    def forward(self, **inputs: Any) -> Any:
        if self.training:
            return self.net(**inputs)
        return self.net.base(**inputs) if self.which is None else self.net.small(which=self.which, **inputs)


class _FirstOutput(nn.Module):
    """A model that returns the base's output, and keeps those of small networks, which it has in training alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.smalls: tuple[Any, ...] = ()

    def forward(self, **inputs: Any) -> Any:
        outputs = self.model(**inputs)
        if not self.model.training:
            return outputs
        output, *smalls = outputs
        self.smalls = tuple(smalls)
        return output


class _KnownOutput(nn.Module):
    """A model whose output is already known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, **_: Any) -> Any:
        return self.output


def narrow_config(small: nn.Module, plan: SlicePlan, example_input: Any = None) -> Any:
    """Return a config that describes a small network, or None if its family's config cannot.

    The widths in the base's config are replaced by the small network's, and where needed its numbers of heads. A model
    made from the result must have the small network's tensors, name for name and shape for shape, and compute the same.
    Uneven widths, as of `keep` and `widths`, have none.

    Args:
        small: an extracted network, with the base's config.
        plan: its slice plan.
        example_input: as for `AdjoinedTrainer`.
    """
    config = getattr(small, "config", None)
    if config is None:
        return None
    inputs = Inputs.of(_example_of(small) if example_input is None else example_input)
    found: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for group in plan.groups:
        found[group.width][group.kept] += 1
    narrow = copy.deepcopy(config)
    values = config.to_dict()
    for name, value in values.items():
        if name.endswith(("size", "sizes", "channels", "dim", "dims", "width", "widths")) and name not in _NOT_WIDTHS:
            if isinstance(value, int) and not isinstance(value, bool) and value in found:
                setattr(narrow, name, found[value].most_common(1)[0][0])
            elif isinstance(value, list) and value and all(isinstance(each, int) and each in found for each in value):
                setattr(narrow, name, [found[each].most_common(1)[0][0] for each in value])
    if _describes(narrow, small, inputs):
        return narrow
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int):  # small networks have fewer heads, of the same size
        narrow.num_attention_heads = heads * narrow.hidden_size // hidden
    return narrow if _describes(narrow, small, inputs) else None


def _describes(config: Any, small: nn.Module, inputs: Inputs) -> bool:
    """Return whether a model made from the config has the small network's tensors, and computes the same with them."""
    try:
        with torch.device("meta"):
            again = type(small)(config)
        shapes, wanted = ({name: each.shape for name, each in net.state_dict().items()} for net in (again, small))
        if shapes != wanted:
            return False
        again = type(small)(config)
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError):  # raised by families that reject odd widths
        return False
    again.load_state_dict(small.state_dict())
    ours = copy.deepcopy(small).to("cpu", torch.float64).eval()
    drawn = inputs.map(
        lambda each: torch.rand(each.shape, dtype=torch.float64) if each.is_floating_point() else each.cpu()
    )
    with torch.no_grad():
        pairs = zip(*(tensor_leaves(drawn.run(net)) for net in (ours, again.double().eval())), strict=True)
        return all(torch.allclose(one, two, rtol=1e-9, atol=1e-12) for one, two in pairs)


_NOT_WIDTHS = {"image_size", "patch_size", "num_channels", "kernel_size", "chunk_size_feed_forward"}


def _logits(output: Any) -> Tensor:
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if not isinstance(logits, Tensor):
        raise AdjoinedError(
            "the model's output has no logits to compare",
            where="AdjoinedTrainer",
            expected="an output with `logits`",
            got=", ".join(output) if isinstance(output, Mapping) else type(output).__name__,
            fix="Train this model in your own loop, with adjoined.adjoint_objective.",
        )
    return logits


def _distance(config: Any, logits: Tensor, inputs: Mapping[str, Any]) -> Distance:
    """Return the distance between the networks' logits for the task that the config names; see `AdjoinedTrainer`."""
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        raise AdjoinedError(
            "no labels to train on",
            where="AdjoinedTrainer",
            expected="batches with a tensor `labels`",
            got=", ".join(inputs) or "an empty batch",
        )
    problem = getattr(config, "problem_type", None)  # which transformers' own loss sets, if the user has not
    if problem == "regression":
        return gaussian_kl
    if problem == "multi_label_classification":
        return lambda p, q: label_kl(p, q, temperature=4.0) / p.shape[1]  # a mean, as transformers' loss of labels is
    counted = None
    if not labels.is_floating_point() and labels.ndim == logits.ndim - 1:
        ignored = getattr(config, "semantic_loss_ignore_index", -100) if labels.ndim > 1 else -100
        counted = labels != ignored
        if labels.ndim == 3:  # of pixels, where logits may be coarser
            counted = F.interpolate(counted[:, None].float(), logits.shape[2:])[:, 0] > 0
    return partial(class_kl, temperature=4.0, counted=counted)


def _example_of(model: nn.Module) -> dict[str, Tensor]:
    config = getattr(model, "config", None)
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), height, width)}
