"""The models of the coverage table, and how each is built: random weights, nothing downloaded.

The lists come from the libraries themselves: every module file of timm that defines a network with convolutions, and
all of torchvision's classification, segmentation, video and detection networks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from coverage_unseen import UNSEEN
from torch import nn

LISTS = Path(__file__).parent / "results" / "coverage"
"""Where lists and results are kept."""


@dataclass(frozen=True)
class Subject:
    """A model of the table."""

    name: str
    """`SET/NAME`."""
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    """The arguments of the model, batch size 1."""


def convolves(model: nn.Module) -> bool:
    """Return whether a network has a convolution with overlapping windows, unlike a transformer's patch embedding."""
    kernels = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return any(k > s for module in kernels for k, s in zip(module.kernel_size, module.stride, strict=True))


def timm_families() -> dict[str, str]:
    """Return timm's module files that define networks with convolutions, each with the smallest of these networks.

    timm's own test models (`test_*`) do not count.
    """
    import timm

    def find() -> dict[str, str]:
        families = {}
        for family in timm.list_modules():
            sizes = {}
            for name in timm.list_models(module=family):
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = timm.create_model(name) if not name.startswith("test_") else nn.Identity()
                if convolves(model):
                    sizes[name] = sum(p.numel() for p in model.parameters())
            if sizes:
                families[family] = min(sizes, key=lambda name: sizes[name])
        return families

    return _kept_in(LISTS / f"timm_{timm.__version__}.json", find)


def torchvision_networks() -> dict[str, str]:
    """Return torchvision's networks that convolve: name -> classification, segmentation, video or detection."""
    import torchvision
    from torchvision import models

    def find() -> dict[str, str]:
        found = {}
        for task, module in (("classification", models), ("segmentation", models.segmentation),
                             ("video", models.video), ("detection", models.detection)):  # fmt: skip
            for name in models.list_models(module=module):
                try:
                    with torch.device("meta"):
                        fits = convolves(_torchvision_model(task, name))
                except NotImplementedError:  # computes its widths with tensors (RegNet)
                    fits = True
                if fits:
                    found[name] = task
        return found

    return _kept_in(LISTS / f"torchvision_{torchvision.__version__.partition('+')[0]}.json", find)


def _kept_in(path: Path, find: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return a list from its file; without a file, find it, which takes minutes, and write the file."""
    if not path.exists():
        text = json.dumps(find(), indent=1) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def timm_subjects() -> list[Subject]:
    """One network of every family of timm that convolves, at the smallest input size that it allows."""
    import timm

    def of(family: str, name: str) -> Subject:
        config: Any = timm.get_pretrained_cfg(name)
        shape = tuple(config.min_input_size or config.input_size) if not config.fixed_input_size else config.input_size
        options = SMALLER.get(name, {})
        shape = (shape[0], options["img_size"], options["img_size"]) if options else shape
        return Subject(
            f"timm/{family}/{name}", lambda: timm.create_model(name, **options), lambda: torch.zeros(1, *shape)
        )

    return [of(family, name) for family, name in timm_families().items()]


SMALLER: dict[str, dict[str, Any]] = {"samvit_base_patch16": {"img_size": 256}}
"""Options of networks that take minutes to run once at their own size, 1024 pixels."""

SHAPES = {"classification": (1, 3, 64, 64), "segmentation": (1, 3, 64, 64), "detection": (1, 3, 64, 64),
          "video": (1, 3, 8, 64, 64), "mvit_v1_b": (1, 3, 16, 224, 224), "mvit_v2_s": (1, 3, 16, 224, 224),
          "inception_v3": (1, 3, 299, 299), "ssd300_vgg16": (1, 3, 300, 300), "s3d": (1, 3, 16, 224, 224),
          "maxvit_t": (1, 3, 224, 224)}  # fmt: skip
"""Inputs of a task, or of a network that needs large ones: the table is about channels, not positions."""


def torchvision_subjects() -> list[Subject]:
    """All of torchvision's networks that convolve, detectors by their backbones."""

    def of(task: str, name: str) -> Subject:
        shape = SHAPES.get(name, SHAPES[task])
        build = partial(_torchvision_model, task, name)
        return Subject(f"torchvision/{task}/{name}", build, lambda: torch.zeros(shape))

    return [of(task, name) for name, task in torchvision_networks().items()]


def _torchvision_model(task: str, name: str) -> nn.Module:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if task in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # truncated normal numbers take scipy half a minute
    model: Any = models.get_model(name, **options)
    return model.backbone if task == "detection" else model


def unseen_subjects() -> list[Subject]:
    """Models of other packages, chosen before any of them was sliced."""
    return [Subject(f"unseen/{name}", *made) for name, made in UNSEEN.items()]


SETS: dict[str, Callable[[], list[Subject]]] = {
    "timm": timm_subjects,
    "torchvision": torchvision_subjects,
    "unseen": unseen_subjects,
}
"""Name of a set -> its models."""


def find(name: str) -> Subject:
    """Return the model of this name."""
    return next(subject for subject in SETS[name.partition("/")[0]]() if subject.name == name)
