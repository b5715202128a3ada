"""A training task for timm: its training loops, including train.py, train both networks.

In Python, pass `AdjoinedTask(model, ...)` to the loop. timm's own script runs unchanged, with the flags of `adjoin`
before its name:

    python -m adjoined.integrations.timm --alpha 4 train.py --data-dir DATA --model resnet18 --epochs 100
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from timm.task import ClassificationTask
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adjoined.distances import class_kl
from adjoined.errors import AdjoinedError, first_line
from adjoined.integrations.own_parameters import joined_as, load_own_state, own_state
from adjoined.network import ADJOINT_PLUS, AdjoinedNetwork, adjoin
from adjoined.objective import adjoint_objective
from adjoined.printable import printable
from adjoined.warn import warn

MOST_IN_A_STEP = 100
"""A training that has seen this many batches before its first optimizer step most likely does not count its steps."""


class AdjoinedTask(ClassificationTask):
    """Train a model together with its small twin; timm provides EMA, `compile` and `prepare_distributed`.

    The loss is that of `adjoint+`, criterion(p, y) + λ(t) · [criterion(q, y) + KL(p ‖ q)], the KL at temperature 4 and
    without gradient to p. The loop validates and checkpoints the base network under the model's own parameter names;
    the slice plans and the small networks' private tensors are the checkpoint's `task_state`.

    Args:
        model: the base network, or an existing joint network.
        criterion: loss of one network's logits, as in timm's tasks; None: cross-entropy.
        updates: optimizer steps of the whole training; λ(t) follows them. Without it, set `updates` before training.
        example_input: what the model takes; None: float32 (1, C, H, W) by the model's `pretrained_cfg`.
        criterion_kwargs, device, dtype, verbose: as for timm's tasks.
        **settings: as for `adjoin`: alpha, keep, order, ... By default `private_head` is True and
            `small_gradient` 0.5, as in `adjoint+`.

    Example:
        >>> import timm
        >>> task = AdjoinedTask(timm.create_model("resnet10t", num_classes=10), updates=100, alpha=4, verbose=False)
        >>> sorted(task(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])))
        ['loss', 'output']
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module | Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        updates: int | None = None,
        example_input: Any = None,
        criterion_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
        **settings: Any,
    ) -> None:
        if not isinstance(model, AdjoinedNetwork):
            example = _example_of(model) if example_input is None else example_input
            model = adjoin(model, example, **{**ADJOINT_PLUS, **settings})
        made = {} if criterion_kwargs is None else {"criterion_kwargs": criterion_kwargs}  # which new versions take
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=verbose, **made)
        self.updates, self.done, self._before_first = updates, 0, 0

    @property
    def net(self) -> AdjoinedNetwork:
        """The joint network, without wrappers."""
        net = unwrap_model(self.trainable_module)
        assert isinstance(net, AdjoinedNetwork)
        return net

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss, and the base's logits for the metrics of the loop.

        Args:
            input: images, float (N, C, H, W).
            target: class indices, int64 (N,), or class probabilities, float (N, K).

        Raises:
            AdjoinedError: the length of the training is not known.
        """
        if not self.updates:
            raise AdjoinedError(
                "the length of the training is unknown, so λ(t) is undefined",
                where="AdjoinedTask(updates=...)",
                expected="the number of optimizer steps in the whole training",
            )
        if self.training and not self.done:
            self._before_first += 1
            if self._before_first == MOST_IN_A_STEP:
                warn(
                    f"after {MOST_IN_A_STEP} batches the task knows of no optimizer step, so the small network is not "
                    "trained: call task.step_update(step) after each step"
                )
        outputs = self.trainable_module(input)
        loss = adjoint_objective(
            outputs,
            task=lambda logits: self.criterion(logits, target),
            distance=partial(class_kl, temperature=4.0),
            progress=min(self.done / self.updates, 1.0),
        )
        return {"loss": loss, "output": outputs[0]}

    def step_update(self, done: int) -> None:
        """Count the optimizer steps; call it once after each."""
        self.done = done

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Return the parameters whose gradients are clipped, by default all; each network's head is its last two."""
        head = [name for name, _ in self.net.base.named_parameters()][-2:] if exclude_head else []
        networks = (self.net.base, *self.net.smalls)
        return [each for network in networks for name, each in network.named_parameters() if name not in head]

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """Return the base network, which the loop validates and saves."""
        return None if ema and not self.has_ema() else self._joint(ema).base

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the state that a checkpoint needs besides the base network: plain values and tensors."""
        return {**own_state(self._joint(ema)), "done": self.done}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Load the result of `get_task_state`."""
        if state is None:
            return
        load_own_state(self._joint(ema), state, "AdjoinedTask")
        self.done = int(state["done"])

    def _joint(self, ema: bool) -> AdjoinedNetwork:
        """Return the joint network, or its moving average."""
        average = self.get_trainable_module(ema=True) if ema else None
        joint = self.net if average is None else average.get_submodule("module")
        assert isinstance(joint, AdjoinedNetwork)
        return joint

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the joint network for training; the loop validates the base as it is."""
        self.net.compile(backend=backend, mode=mode, **compile_kwargs)  # in place: names stay
        return self.net

    def compile_ema(
        self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any
    ) -> nn.Module | None:
        """Do not compile the average: it is only evaluated."""
        return self.get_eval_model(ema=True)


def finished(model: nn.Module, checkpoint: str | os.PathLike[str], *, ema: bool = False) -> list[nn.Module]:
    """Return the networks that a checkpoint of timm's loop holds: the base, then every small network, in eval mode.

    Args:
        model, checkpoint, ema: as for `from_checkpoint`.

    Raises:
        AdjoinedError: the file is not such a checkpoint, or belongs to another model.
    """
    net = from_checkpoint(model, checkpoint, ema=ema)
    return [net.base, *(net.extract(which) for which in range(len(net.plans)))]


def from_checkpoint(model: nn.Module, checkpoint: str | os.PathLike[str], *, ema: bool = False) -> AdjoinedNetwork:
    """Return the joint network that a checkpoint of timm's loop holds, in eval mode; `adjoined.save` takes it.

    Args:
        model: the base network, built as for the training; its weights are overwritten.
        checkpoint: a file that timm's `CheckpointSaver` wrote, such as model_best.pth.tar.
        ema: take the averaged weights.

    Raises:
        AdjoinedError: the file is not such a checkpoint, or belongs to another model.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        weights, state = (content[f"{key}_ema" if ema else key] for key in ("state_dict", "task_state"))
        model.load_state_dict(weights)
        net = joined_as(model, state)
    except AdjoinedError:
        raise
    except Exception as error:  # torch.load and load_state_dict raise many kinds
        raise AdjoinedError(
            f"this checkpoint cannot be read: {first_line(error)}",
            where=os.fspath(checkpoint),
            expected="a checkpoint that timm saved of an AdjoinedTask with this model",
        ) from error
    return net.eval()


def _example_of(model: nn.Module) -> Tensor:
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    if not size:
        raise AdjoinedError(
            "no example input is known",
            where="AdjoinedTask(example_input=...)",
            fix="Pass one, such as torch.zeros(1, 3, 224, 224).",
        )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = size[0] if first is None else first.in_channels
    return torch.zeros(1, channels, *size[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Run timm's train.py with `AdjoinedTask` in place of its classification task."""
    parser = argparse.ArgumentParser(
        prog="python -m adjoined.integrations.timm",
        description="Run timm's train.py, training the model together with its small twin.",
    )
    parser.add_argument("--alpha", type=float, default=4.0, help="a layer keeps about 1/alpha of its channels")
    parser.add_argument("--keep", default="", help="modules that stay at full width, separated by commas")
    parser.add_argument("--order", choices=("l1", "l2", "bn"), help="important channels first, for pretrained weights")
    parser.add_argument("script", type=Path, help="timm's train.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    options = parser.parse_args(argv)
    if not options.script.is_file():
        parser.error(f"no such file: {options.script}")
    keep = tuple(filter(None, options.keep.split(",")))
    sys.argv = [str(options.script), *options.arguments]
    try:
        run_script(options.script, alpha=options.alpha, keep=keep, order=options.order)
    except AdjoinedError as error:
        parser.exit(2, f"adjoined: {printable(str(error))}\n")


def run_script(script: Path, **settings: Any) -> None:
    """Run a timm script in this process, with `AdjoinedTask` as its classification task.

    The task gets the length and the progress of the training from the script's scheduler.

    Raises:
        AdjoinedError: the script trains with another of timm's tasks, which would train the base alone, or without a
            scheduler.
    """
    schedulers: Any = import_module("timm.scheduler")
    tasks: Any = import_module("timm.task")
    made: list[AdjoinedTask] = []

    def make_task(model: nn.Module, criterion: Any = None, **options: Any) -> AdjoinedTask:
        made.append(AdjoinedTask(model, criterion, **options, **settings))
        return made[-1]

    def check_made() -> None:
        if not made:
            raise AdjoinedError(
                "the script does not train with timm's ClassificationTask, so the small network is left out",
                where=os.fspath(script),
                fix="Leave out the flags that choose another task, such as --kd-model-name.",
            )

    make_scheduler = schedulers.create_scheduler_v2

    def create_scheduler_v2(*args: Any, updates_per_epoch: int = 0, **options: Any) -> tuple[Any, int]:
        scheduler, epochs = make_scheduler(*args, updates_per_epoch=updates_per_epoch, **options)
        check_made()
        if scheduler is None:
            raise AdjoinedError(
                "without a scheduler the progress of training is unknown, so λ(t) is undefined",
                where=os.fspath(script),
                fix="Choose one, such as --sched cosine.",
            )
        for task in made:
            task.updates = epochs * updates_per_epoch
            scheduler.step_update = partial(_step_update, task, scheduler.step_update)
        return scheduler, epochs

    before = tasks.ClassificationTask, make_scheduler
    tasks.ClassificationTask, schedulers.create_scheduler_v2 = make_task, create_scheduler_v2
    stepping = register_optimizer_step_pre_hook(lambda *_: check_made())
    try:
        runpy.run_path(str(script), run_name="__main__")
        check_made()
    finally:
        stepping.remove()
        tasks.ClassificationTask, schedulers.create_scheduler_v2 = before


def _step_update(task: AdjoinedTask, step_update: Callable[..., Any], num_updates: int, **options: Any) -> Any:
    task.step_update(num_updates)
    return step_update(num_updates=num_updates, **options)


if __name__ == "__main__":
    main()
