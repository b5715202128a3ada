"""Settings that are chosen for the model and the number of images if neither a recipe nor a flag sets them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import quote
from typing import Any, NamedTuple

from adjoined.kinds import task_kind
from adjoined.printable import counted
from adjoined.settings import Settings

STEPS_PER_EPOCH = 64
"""Steps that an epoch should have, with batches of 8 to 128 images: learning from few images takes many steps."""
FEW, MANY = 2_000, 20_000
"""Numbers of training images: alpha is 1.5 below the first, 4 from the second on, and 2 in between."""
SHORT = 5
"""Up to this many epochs, few images are not augmented: a network that sees each image so rarely hardly overfits."""

SHOWN = ("method", "alpha", "optimizer", "lr", "batch_size", "warmup_epochs")
"""Settings that a run always shows at its start."""


class Choice(NamedTuple):
    """The value of one setting, and why."""

    name: str
    value: Any
    why: str

    def line(self) -> str:
        """Return a line for the terminal, with the flag that changes it.

        Example:
            >>> Choice("batch_size", 16, "600 training images").line()
            '--batch-size 16: 600 training images'
        """
        return f"{as_flag(self.name, self.value)}: {self.why}"


def as_flag(name: str, value: object) -> str:
    """Return a setting as its flag.

    Example:
        >>> as_flag("alpha", [2.0, 4.0]), as_flag("budget", "1 MB"), as_flag("nesterov", False)
        ('--alpha 2,4', "--budget '1 MB'", '--no-nesterov')
        >>> as_flag("widths", {"stem": "1/2", "layer1": "3/8"})
        '--widths stem=1/2,layer1=3/8'
        >>> print(as_flag("model_options", {"width": 2}))
        --model-options '{"width": 2}'
    """
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if name == "model_options":  # of values of any type: JSON is YAML on one line
        return f"--{flag} {quote(json.dumps(value, ensure_ascii=False))}"
    if isinstance(value, Mapping):
        value = [f"{key}={each}" for key, each in value.items()]
    return f"--{flag} {quote(','.join(map(_written, value if isinstance(value, list) else [value])))}"


def _written(value: object) -> str:
    """Return a value as on the command line, a number with as many digits as it needs."""
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return "none" if value is None else str(value)


def choose(
    images: int, *, pretrained: bool, batch_norm: bool = True, task: str = "classification", epochs: int = 40
) -> list[Choice]:
    """Return initial settings where the default recipe, made for handwritten digits, does not fit.

    Args:
        images: training images.
        pretrained: whether the base starts from trained weights.
        batch_norm: whether the base has batch norms, which let it learn at higher rates.
        task: what the data are for, as `adjoined.kinds.task_kind` returns it.
        epochs: passes over the training images, if the base starts from random weights.

    Example:
        >>> {each.name: each.value for each in choose(600, pretrained=False)}["batch_size"]
        8
        >>> {each.name: each.value for each in choose(1000, pretrained=True)}["method"]
        'transfer'
    """
    count = counted(images, "training image")
    start = "pretrained weights" if pretrained else "from random weights"
    if pretrained:
        if task == "classification":
            how = [Choice("method", "transfer", "the small network inherits from the pretrained base")]
        else:
            how = [
                Choice("method", "adjoint+", f"transfer does not train {task}"),
                Choice("order", "l1", "the important channels of the pretrained base come first"),
            ]
        own = [
            *how,
            Choice("epochs", 10, start),
            Choice("batch_size", 32, start),
            Choice("lr", 5e-4, f"adamw, {start}"),
            Choice("augment", "light", start),
        ]
    else:
        batch = min((2**power for power in range(3, 8)), key=lambda size: abs(images / size - STEPS_PER_EPOCH))
        augment = "standard" if images >= MANY else "none" if epochs <= SHORT else "light"
        own = [
            Choice("method", "adjoint+", "better for both networks than the paper's loss"),
            Choice("batch_size", batch, count),
            Choice("lr", 2e-3 if batch_norm else 1e-3, f"adamw, {'with' if batch_norm else 'without'} batch norms"),
            Choice("grad_clip", 1.0, start),
            Choice("augment", augment, f"{count}, {counted(epochs, 'epoch')}"),
        ]
    alpha = 2.0 if pretrained else 1.5 if images < FEW else 4.0 if images >= MANY else 2.0
    return [
        *own,
        Choice("alpha", alpha, start if pretrained else count),
        Choice("optimizer", "adamw", "one rate fits more networks than with sgd"),
        Choice("warmup_epochs", 1.0, "the rate rises gradually"),
        Choice("weight_decay", 0.05, "adamw"),
        Choice("label_smoothing", 0.1, count),
    ]


def searches_widths(settings: Settings) -> bool:
    """Return whether widths are searched by default with these settings, given enough images.

    Example:
        >>> searches_widths(Settings(pretrained=True, method="transfer"))
        True
        >>> searches_widths(Settings(pretrained=True, method="transfer", widths="uniform"))
        False
    """
    fits = settings.pretrained and settings.method == "transfer" and task_kind(settings.data) == "classification"
    return settings.widths is None and fits and len(settings.alphas) == 1
