"""The exported files of a run: the images for comparison and calibration, and the record beside the files.

Shape legend: N images, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.data import ImageData
from adjoined.data.images import ImageDataset
from adjoined.data.preprocessing import evaluation_transform, normalise
from adjoined.errors import AdjoinedError
from adjoined.export.preprocessing import Takes, metadata, prepared
from adjoined.export.record import claim, file_name, record, refuse_unlisted
from adjoined.export.targets import Runnable, Target
from adjoined.export.writing import write
from adjoined.files import make_folder
from adjoined.versions import versions

BATCH = 64
"""Batch size when many images are run, of up to 224 pixels; batches of larger images have as many pixels."""


@dataclass
class Exporter:
    """Exports networks of one run into one folder and maintains its export.json.

    Args:
        data: the images of the run.
        folder: the folder for the files; created if missing.
        takes: the format of the images that the files take.
        images: number of validation images to compare on.
        calibration: number of training images to calibrate int8 on.
        max_drop: largest drop of top-1 accuracy allowed in int8, in [0, 1].
        largest_batch: batch size for which an ExecuTorch file reserves memory.
        weights: network -> SHA-256 of its weights, of all networks of the run.
        alone: whether files of other weights in the folder are refused; not in the run's own folder, where they are
            from an earlier epoch.
    """

    data: ImageData
    folder: Path
    takes: Takes = "normalised"
    images: int = 256
    calibration: int = 256
    max_drop: float = 0.05
    largest_batch: int = 1
    weights: Mapping[str, str] = field(default_factory=dict)
    alone: bool = True
    _pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    def export(self, module: nn.Module, name: str, target: Target, *, int8: bool = False) -> dict[str, Any]:
        """Export one network to one target.

        Args:
            module: the network, in evaluation mode, on the CPU.
            name: base, small, small-1 …; the file is NAME.SUFFIX, or NAME.int8.SUFFIX.
            target: the target.
            int8: whether the file is in int8.

        Returns:
            The file's entry in export.json.

        Raises:
            AdjoinedError: as in `write`; in int8 also if accuracy falls by more than `max_drop`.
        """
        info = self.data.info
        make_folder(self.folder, links=True)
        path = self.folder / file_name(name, target, int8=int8)
        known = {"file": path.name, "network": name, "target": target.name, "int8": int8}
        known |= {"weights": self.weights.get(name), "takes": self.takes}
        refuse_unlisted(path, target)
        self._pairs = self._pairs or [(given, x) for given, x, _ in self._batches(self.data.val, self.images)]
        accuracy: dict[str, Any] = {"top1": None, "top1_pytorch": None, "accuracy_images": None}

        def inspect(run: Runnable) -> None:
            if int8:
                accuracy.update(self._accuracy(run, module, path))
            claim(self.folder, known, self.weights if self.alone else None)

        done = write(
            module,
            path,
            self._pairs,
            to=target.name,
            holds=prepared(module, info, self.takes),
            metadata=metadata(info, self.takes, name),
            largest_batch=self.largest_batch,
            calibration=self._calibration() if int8 else None,
            inspect=inspect,
        )
        entry = {
            **known,
            "largest_batch": self.largest_batch if target.name == "executorch" else None,
            "bytes": done.bytes,
            "seconds": round(done.seconds, 3),
            "difference": done.difference.to_json(),
            **accuracy,
            "calibration_images": min(self.calibration, len(self.data.train)) if int8 else None,
            "versions": _versions(target, int8),
        }
        record(self.folder, entry)
        return entry

    def _batches(self, dataset: ImageDataset, count: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield batches of images in the file's format, the same images normalised, and their labels.

        `count` images are spread evenly over the data.
        """
        info, transform = self.data.info, evaluation_transform(self.data.info)
        whole, size = len(dataset), max(BATCH * 224**2 // max(224, info.image_size) ** 2, 1)
        chosen = torch.linspace(0, whole - 1, min(count or whole, whole)).round().long()
        for indices in chosen.split(size):
            pixels = torch.stack([transform(dataset.images.pixels(index)) for index in indices.tolist()])
            normalised = normalise(pixels, info.mean, info.std)
            taken = {"normalised": normalised, "uint8": pixels, "unit": pixels.float() / 255}[self.takes]
            yield taken, normalised, dataset.labels[indices]

    def _calibration(self) -> Tensor:
        if not len(self.data.train):
            raise AdjoinedError("there are no training images to calibrate on", where=f"data {self.data.info.name}")
        return torch.cat([given for given, _, _ in self._batches(self.data.train, self.calibration)])

    def _accuracy(self, run: Runnable, module: nn.Module, path: Path) -> dict[str, Any]:
        """Measure the top-1 accuracy of a file and of the network in PyTorch on all validation images."""
        right = torch.zeros(2, dtype=torch.long)
        with torch.no_grad():
            for given, normalised, labels in self._batches(self.data.val, None):
                for place, logits in enumerate((run(given), module(normalised))):
                    right[place] += (logits.argmax(dim=1) == labels).sum()
        whole = len(self.data.val)
        found, pytorch = (right / whole).tolist()
        if pytorch - found > self.max_drop:
            raise AdjoinedError(
                "int8 costs too much accuracy; the file was not kept",
                where=path,
                expected=f"top-1 accuracy of at least {100 * (pytorch - self.max_drop):.2f} %",
                got=f"{100 * found:.2f} % (PyTorch {100 * pytorch:.2f} %)",
                fix="Calibrate on more images (--calibration), choose another target, or allow it (--max-drop).",
            )
        return {"top1": found, "top1_pytorch": pytorch, "accuracy_images": whole}


def _versions(target: Target, int8: bool) -> dict[str, str]:
    packages = (*target.packages, *((target.int8 or ()) if int8 else ()))
    return {"python": platform.python_version(), **versions("adjoined", "torch", *packages)}
