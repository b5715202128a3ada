"""Which models the coverage table is about, and how each is built: random weights, nothing downloaded.

The lists come from the libraries themselves: every module file of timm that defines a network with convolutions, and
all of torchvision's classification, segmentation, video and detection networks.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

LISTS = Path(__file__).parent / "results" / "coverage"
"""Where the list of timm's families is kept, since building all of timm's networks once takes minutes."""


@dataclass(frozen=True)
class Subject:
    """A model of the table."""

    name: str
    """`SET/NAME`."""
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    """What the model is called with, batch size 1."""


def convolves(model: nn.Module) -> bool:
    """Tell whether a network has a convolution whose places overlap: more than a transformer's cut into patches."""
    kernels = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return any(k > s for module in kernels for k, s in zip(module.kernel_size, module.stride, strict=True))


def timm_families() -> dict[str, str]:
    """Return timm's module files that define networks with convolutions, each with the smallest of these networks.

    timm's own test models (`test_*`) do not count. The list is kept in a file with timm's version in its name.
    """
    import timm

    path = LISTS / f"timm_{timm.__version__}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    families = {}
    for family in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=family):
            if name.startswith("test_"):
                continue
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = timm.create_model(name)
            if convolves(model):
                sizes[name] = sum(p.numel() for p in model.parameters())
        if sizes:
            families[family] = min(sizes, key=lambda name: sizes[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(families, indent=1) + "\n", encoding="utf-8")
    return families


def timm_subjects() -> list[Subject]:
    """One network of every family of timm that convolves, at the size in pixels that its weights were trained for."""
    import timm

    def of(family: str, name: str) -> Subject:
        config: Any = timm.get_pretrained_cfg(name)
        shape = tuple(config.min_input_size or config.input_size) if not config.fixed_input_size else config.input_size
        return Subject(f"timm/{family}/{name}", lambda: timm.create_model(name), lambda: torch.zeros(1, *shape))

    return [of(family, name) for family, name in timm_families().items()]


def torchvision_subjects() -> list[Subject]:
    """All of torchvision's networks that convolve, detectors by their backbones."""
    from torchvision import models

    subjects = []
    for task, module, shape in (
        ("classification", models, (1, 3, 224, 224)),
        ("segmentation", models.segmentation, (1, 3, 224, 224)),
        ("video", models.video, (1, 3, 16, 112, 112)),
        ("detection", models.detection, (1, 3, 224, 224)),
    ):
        for name in models.list_models(module=module):
            subjects.append(_torchvision_subject(task, name, shape))
    return [subject for subject in subjects if subject is not None]


def _torchvision_subject(task: str, name: str, shape: tuple[int, ...]) -> Subject | None:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if task in ("segmentation", "detection"):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # truncated normal numbers take scipy half a minute
    if name == "inception_v3":
        shape = (1, 3, 299, 299)

    def build() -> nn.Module:
        model = models.get_model(name, **options)
        return model.backbone if task == "detection" else model

    with torch.device("meta"):
        if not convolves(build()):
            return None
    return Subject(f"torchvision/{task}/{name}", build, lambda: torch.zeros(shape))


SETS: dict[str, Callable[[], list[Subject]]] = {"timm": timm_subjects, "torchvision": torchvision_subjects}
"""Name of a set -> its models."""


def find(name: str) -> Subject:
    """Return the model of this name."""
    return next(subject for subject in SETS[name.partition("/")[0]]() if subject.name == name)
