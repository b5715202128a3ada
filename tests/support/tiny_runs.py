"""What the tests of training and of run folders share: runs of a second."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from adjoined.settings import Settings

TINY = Settings(
    epochs=2, warmup_epochs=0, batch_size=32, limit=16, augment="none", model_options={"width": 0.5}, accelerator="cpu"
)
"""A small ResNet on 160 digits, five steps an epoch."""
QUIET = Console(quiet=True)

# No BatchNorm: a batch is the mean of its parts. It can be told to fail at a training step: by a NaN, or by a signal.
CODE = """
import os
import signal

import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, fails_at, by):
        super().__init__(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, num_classes))
        self.fails_at, self.by, self.steps = fails_at, by, 0

    def forward(self, x):
        z = super().forward(x)
        self.steps += self.training
        if self.training and self.steps == self.fails_at:
            if self.by in ("SIGINT", "SIGTERM"):
                os.kill(os.getpid(), signal.Signals[self.by])
                return z
            z = z * float("nan")
        return z

def make(num_classes, fails_at=-1, by="nan"):
    return Net(num_classes, fails_at, by)
"""


NORMED = """
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, num_classes),
    )
"""
"""Norms, and a third of the layers of the small ResNet: a run takes half as long."""


def with_code(folder: Path, code: str = CODE) -> Settings:
    """Return settings for a model of the user's own, written to a file in `folder`."""
    file = folder / "net.py"
    file.write_text(code)
    return replace(TINY, model=f"{file}:make", model_options={})
