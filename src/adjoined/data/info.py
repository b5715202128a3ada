"""The facts about the training data that are needed to prepare any image for a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adjoined.errors import AdjoinedError
from adjoined.kinds import MAIN
from adjoined.plain import check, entry, texts, value, whole

LARGEST_IMAGE = 4096
"""Largest image side in pixels that a file may declare."""


@dataclass(frozen=True)
class DataInfo:
    """The classes of a data set, and how its images are prepared for evaluation.

    An image is resized so that its shorter side has `resize` pixels, centre-cropped to `image_size` x `image_size`,
    divided by 255, and normalised to (value - mean) / std.

    Args:
        name: the data set, as in DataSettings.
        num_classes: number of classes.
        class_names: their names, in the order of the labels.
        channels: 1 (grey) or 3 (RGB).
        image_size: height and width of the network's input, pixels.
        resize: the shorter side before the centre crop, pixels; `image_size` if nothing is cropped.
        mean: mean per channel, of values in [0, 1].
        std: standard deviation per channel, of values in [0, 1].
        task: classification, segmentation or multilabel.

    Example:
        >>> info = DataInfo("folder:pets", 2, ("cat", "dog"), 1, image_size=8, resize=8, mean=(0.5,), std=(0.25,))
        >>> DataInfo.from_json(info.to_json()) == info
        True
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    channels: int
    image_size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: str = "classification"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: object = "description of the data") -> DataInfo:
        """Return the DataInfo that `to_json` wrote; unknown entries are ignored.

        Raises:
            AdjoinedError: an entry is missing or has no usable value.
        """
        info = cls(
            name=entry(values, "name", str, where),
            num_classes=whole(values, "num_classes", where, least=1),
            class_names=tuple(texts(values, "class_names", where)),
            channels=whole(values, "channels", where, least=1, most=3),
            image_size=whole(values, "image_size", where, least=1, most=LARGEST_IMAGE),
            resize=whole(values, "resize", where, least=1, most=2 * LARGEST_IMAGE),
            mean=tuple(value(each, float, f"{where}, mean") for each in entry(values, "mean", list, where)),
            std=tuple(value(each, float, f"{where}, std") for each in entry(values, "std", list, where)),
            task=entry(values, "task", str, where),
        )
        check(info.task in MAIN, where, f"a task, one of {', '.join(MAIN)}", info.task)
        if not (
            info.num_classes == len(info.class_names)
            and info.channels in (1, 3)
            and info.channels == len(info.mean) == len(info.std)
            and info.image_size <= info.resize
            and min(info.std) > 0
        ):
            raise AdjoinedError(
                "the description of the data contradicts itself",
                where=where,
                expected="as many names as classes, 1 or 3 channels with mean and std > 0 each, image_size <= resize",
                got={name: value for name, value in info.to_json().items() if name not in ("name", "class_names")},
            )
        return info
