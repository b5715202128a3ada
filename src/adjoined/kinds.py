"""The tasks that runs train for: the data of each, and the measures of its networks' quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

OWN = {"folder": "classification", "segmentation": "segmentation", "labels": "multilabel"}
"""KIND of KIND:PATH, the user's own data -> the task that they are for."""
NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "miou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_ap": "mean average precision",
}
"""Measure -> its name in tables."""
CLASSES = {"classification": "classes", "segmentation": "classes", "multilabel": "labels"}
"""Task -> what its networks tell apart."""
MEASURES = {
    "classification": ("top1", "top5"),
    "segmentation": ("miou", "pixel_accuracy"),
    "multilabel": ("mean_ap",),
}
"""Task -> its measures, the main one first."""
MAIN = {task: names[0] for task, names in MEASURES.items()}
"""Task -> the measure that networks are compared by."""


_SHOWN = 4


def in_brief(names: Sequence[str], task: str) -> str:
    """Return the number of classes or labels of a task, and the first names.

    Example:
        >>> in_brief(("cat", "dog"), "classification"), in_brief(("a", "b", "c", "d", "e"), "multilabel")
        ('2 classes (cat, dog)', '5 labels (a, b, c, d, …)')
    """
    more = ["…"] if len(names) > _SHOWN else []
    return f"{len(names)} {CLASSES[task]} ({', '.join([*names[:_SHOWN], *more])})"


def kind_of(data: str) -> str | None:
    """Return KIND of KIND:PATH; None for the name of a known data set."""
    kind, colon, _ = data.partition(":")
    return kind if colon and kind in OWN else None


def without_folder(name: str) -> str:
    """Return the name of the user's own data or code without the folders before it; other names are unchanged.

    Example:
        >>> [without_folder(name) for name in ("folder:/home/ann/pets", "/home/ann/net.py:make", "timm:resnet18")]
        ['folder:pets', 'net.py:make', 'timm:resnet18']
    """
    if kind := kind_of(name):
        return f"{kind}:{Path(name.removeprefix(f'{kind}:')).name}"
    return Path(name).name if ".py:" in name else name


def task_kind(data: str) -> str:
    """Return the task that some data are for.

    Example:
        >>> task_kind("segmentation:streets"), task_kind("cifar10")
        ('segmentation', 'classification')
    """
    return OWN.get(kind_of(data) or "", "classification")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The quality of a network, as fractions in [0, 1]; None: its task has no such measure, or it was not measured."""

    top1: float | None = None
    """Share of the images whose most probable class is right."""
    top5: float | None = None
    """Share of the images whose class is among the five most probable; None if there are five classes or fewer."""
    miou: float | None = None
    """Intersection over union of predicted and true pixels, the mean over the classes."""
    pixel_accuracy: float | None = None
    """Share of the pixels whose class is right."""
    mean_ap: float | None = None
    """Average precision, the area under the precision-recall curve, the mean over the labels that some image has."""

    @property
    def main(self) -> float | None:
        """The measure that networks are compared by."""
        return next((value for name in MAIN.values() if (value := getattr(self, name)) is not None), None)

    @property
    def main_name(self) -> str:
        """Its key in `NAMES`; "top1" if nothing was measured."""
        return next((name for name in MAIN.values() if getattr(self, name) is not None), "top1")

    def measures(self) -> dict[str, float | None]:
        """Return all measures by name.

        Example:
            >>> Measures(miou=0.5).measures()["miou"], Measures(miou=0.5).main_name
            (0.5, 'miou')
        """
        return {each.name: getattr(self, each.name) for each in fields(Measures)}


def short_name(measure: str) -> str:
    """Return a measure's name as the head of a column.

    Example:
        >>> [short_name(each) for each in MAIN.values()]
        ['top-1', 'mean IoU', 'mAP']
    """
    return {"top1": "top-1", "mean_ap": "mAP"}.get(measure, NAMES[measure])


def heading(measure: str) -> str:
    """Return a measure's name with a capital letter."""
    return NAMES[measure][0].upper() + NAMES[measure][1:]


def main_in(row: Mapping[str, float]) -> str:
    """Return the main measure that the row of an epoch holds.

    Example:
        >>> main_in({"epoch": 1.0, "val_base_miou": 0.5})
        'miou'
    """
    return next((name for name in MAIN.values() if any(key.endswith(f"_{name}") for key in row)), "top1")
