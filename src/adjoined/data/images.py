"""Images in memory or in files, and the data set and loader that serve them in batches.

Shape legend: N images, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from multiprocessing import queues
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from adjoined.data.preprocessing import Transform, load_image, normalise, to_tensor
from adjoined.data.sampling import EpochSampler
from adjoined.errors import AdjoinedError, first_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Batch = tuple[Tensor, Tensor]
_BLOCKS, _BLOCK = 4, 16 << 10  # bytes: reading all of a large data set would take as long as an epoch
_THREADS = 8  # they wait for the disk together
SECONDS_TO_DIE = 1.0
"""Seconds that a killed process may take to end."""


class Images(ABC):
    """Labelled images, before augmentation and resizing."""

    labels: Tensor
    """Classes, int64 (N,); with several labels float, 0 or 1 (N, K); 0 if the targets are masks."""

    @abstractmethod
    def pixels(self, index: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Say where an image is, for errors."""

    @abstractmethod
    def subset(self, chosen: Tensor) -> Self:
        """Return those for which `chosen`, bool (N,), is True."""

    @abstractmethod
    def identity(self) -> str:
        """Return a digest that changes with the images, their number or their order; of files, the contents aside."""

    def relabelled(self, labels: Tensor) -> Self:
        """Return the same images with other labels, int64 (N,)."""
        same = copy(self)
        same.labels = labels
        return same

    def check_targets(self) -> None:  # noqa: B027
        """Raise AdjoinedError if a target in a file of its own is wrong; labels are known when images are opened."""

    def unseen(self) -> list[int]:
        """Return the classes that no target has; of masks, those that `check_targets` has not seen."""
        return []


class MemoryImages(Images):
    """Images held in memory: uint8 (N, C, H, W), labels int64 (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def pixels(self, index: int) -> Tensor:
        """Return one image, uint8 (C, H, W)."""
        return self.images[index]

    def place(self, index: int) -> str:
        """Say where an image is, for errors."""
        return f"image {index}"

    def subset(self, chosen: Tensor) -> Self:
        """Return those for which `chosen`, bool (N,), is True."""
        return type(self)(self.images[chosen], self.labels[chosen])

    def identity(self) -> str:
        """Return a digest of pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in (self.images, self.labels):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()


class FileImages(Images):
    """Images in files, read on demand.

    Args:
        folder: folder of the files.
        names: their paths below `folder`.
        labels: int64 (N,).
        channels: 1 to read them as grey, 3 as RGB.
        sizes: sizes of the files, bytes.
    """

    def __init__(self, folder: Path, names: Sequence[str], labels: Tensor, channels: int, sizes: Sequence[int]) -> None:
        import numpy as np

        # One block of bytes: a list of a million strings would be copied into every worker that reads it.
        self.folder, self.labels, self.channels = folder, labels, channels
        self.names = np.array([os.fsencode(name) for name in names], dtype=None if names else "S1")
        self.sizes = np.array(sizes, dtype=np.int64)
        self._checksums: NDArray[np.uint32] | None = None

    def pixels(self, index: int) -> Tensor:
        """Return one image, uint8 (C, H, W); raise AdjoinedError if the file is damaged."""
        return to_tensor(load_image(self.place(index)), self.channels)

    def place(self, index: int) -> str:
        """Say where an image is, for errors."""
        return os.path.join(self.folder, self.name(index))

    def name(self, index: int) -> str:
        """Return the path of an image below the folder."""
        return os.fsdecode(bytes(self.names[index]))

    def subset(self, chosen: Tensor) -> Self:
        """Return those for which `chosen`, bool (N,), is True."""
        subset = copy(self)
        subset.names, subset.sizes = self.names[chosen.numpy()], self.sizes[chosen.numpy()]
        subset._checksums = None
        subset.labels = self.labels[chosen]
        return subset

    def identity(self) -> str:
        """Return a digest of the files' names below the folder and of their sizes."""
        digest = hashlib.sha256()
        for name, size in zip(self.names.tolist(), self.sizes.tolist(), strict=True):
            digest.update(b"%d %s\0" % (size, name))
        return digest.hexdigest()

    def checksums(self) -> NDArray[np.uint32]:
        """Return a checksum of each file's contents, uint32 (N,); the files are read once.

        Raises:
            AdjoinedError: a file cannot be read.
        """
        import numpy as np

        if self._checksums is None:
            with ThreadPoolExecutor(_THREADS) as threads:
                found = threads.map(sampled_checksum, map(self.place, range(len(self.labels))))
                self._checksums = np.fromiter(found, dtype=np.uint32, count=len(self.labels))
        return self._checksums

    def contents(self) -> Iterator[tuple[int, int]]:
        """Yield the size in bytes and the checksum of each file; errors as for `checksums`."""
        return zip(self.sizes.tolist(), self.checksums().tolist(), strict=True)


def sampled_checksum(path: str) -> int:
    """Return a CRC-32 of a file of up to 64 KiB, or of four blocks of 16 KiB spread evenly from its start to its end.

    Raises:
        AdjoinedError: the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _BLOCKS * _BLOCK:
                return zlib.crc32(file.read())
            checksum = 0
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                checksum = zlib.crc32(file.read(_BLOCK), checksum)
            return checksum
    except OSError as error:
        raise AdjoinedError(f"cannot be read: {error.strerror}", where=path) from error


class ImageDataset(Dataset[Batch]):
    """Labelled images, augmented and normalised; `dataset[index, seed]` is a pure function of both numbers.

    Args:
        images: the source.
        transform: maps uint8 (C, H, W) to uint8 (C, image_size, image_size), drawing from torch's global generator,
            which is seeded for each image and restored afterwards.
        mean: mean per channel, of values in [0, 1].
        std: standard deviation per channel, of values in [0, 1].
    """

    def __init__(self, images: Images, transform: Transform, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.transform, self.mean, self.std = images, transform, mean, std

    def of(self, images: Images) -> ImageDataset:
        """Return other images, prepared like these."""
        return type(self)(images, self.transform, self.mean, self.std)

    def one(self, index: int) -> Batch:
        """Return one augmented image, uint8 (C, H, W), and its target."""
        return self.augmented(index, self.images.pixels(index)), self.images.labels[index]

    def augmented(self, index: int, *sample: Tensor) -> Any:
        """Return an image, alone or with its mask, after the transform; errors name its place."""
        transform: Callable[..., Any] = self.transform
        try:
            return transform(*sample)
        except AdjoinedError as error:
            raise error.at(self.images.place(index)) from error

    @property
    def labels(self) -> Tensor:
        """All labels, int64 (N,)."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """Return one image, float32 (C, H, W), and its label, int64 (); a plain `index` uses seed 0."""
        images, labels = self._batch([key if isinstance(key, tuple) else (key, 0)])
        return images[0], labels[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch | AdjoinedError:
        """Return a whole batch, float32 (N, C, H, W) and int64 (N,), of pairs (index, seed).

        A worker process returns an AdjoinedError for `ImageLoader` to raise: if raised in the worker, torch would wrap
        it in the worker's traceback.
        """
        try:
            return self._batch(keys)
        except AdjoinedError as error:
            if get_worker_info() is None:
                raise
            return error

    def _batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        generator = torch.default_generator  # not torch.manual_seed, which would also seed accelerators
        before = generator.get_state()
        try:
            samples = []
            for index, seed in keys:
                generator.manual_seed(seed)
                samples.append(self.one(index))
        finally:
            generator.set_state(before)
        pixels, targets = map(torch.stack, zip(*samples, strict=True))
        return normalise(pixels, self.mean, self.std), targets


class ImageLoader(DataLoader[Batch]):
    """A DataLoader of whole batches of an ImageDataset; it raises its workers' AdjoinedErrors unchanged.

    Args:
        dataset: the images.
        sampler: yields pairs (index, seed).
        batch_size: images per batch.
        workers: processes that read images; they persist from epoch to epoch.
        drop_last: drop an incomplete last batch.
    """

    def __init__(
        self, dataset: ImageDataset, sampler: EpochSampler, *, batch_size: int, workers: int, drop_last: bool
    ) -> None:
        workers = min(workers, -(-len(sampler) // batch_size))  # others would have no batch
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_report_unsent,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            generator=torch.Generator(),  # otherwise it draws its workers' base seed from the global generator
            persistent_workers=workers > 0,
        )
        self._processes: tuple[BaseProcess, ...] = ()
        self.own = sampler.own
        """Number of this process's images before the padding."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches = super().__iter__()
        self._processes = tuple(getattr(batches, "_workers", ()))
        for batch in batches:
            if isinstance(batch, AdjoinedError):
                try:
                    raise batch
                finally:
                    del batch  # otherwise error and frame form a cycle, and torch's workers take 5 s to shut down
            yield batch

    def killed_worker(self) -> int | None:
        """Return the exit code of a worker that was killed, as the kernel does when memory is short.

        torch reports it by a RuntimeError at an arbitrary point in the main process. The pipes of a killed process
        break a moment before it has an exit code.
        """
        ended = wait([each.sentinel for each in self._processes], SECONDS_TO_DIE) if self._processes else []
        for each in self._processes:
            if each.sentinel in ended:
                each.join()
        codes = (each.exitcode for each in self._processes)
        return next((code for code in codes if code not in (None, 0, -SIGTERM)), None)


def _as_it_is(batch: Any) -> Any:
    return batch


def _report_unsent(_: int) -> None:
    """Let a worker send an error in place of a batch that it cannot send: the main process would wait forever."""

    def report(queue: Any, error: Exception, item: Any) -> None:
        what = f"a worker cannot pass a batch on: {first_line(error)}"
        fix = "Allow more shared memory (docker run --shm-size) or open files (ulimit -n), or use fewer workers."
        queue.put((item[0], AdjoinedError(what, where="--workers", fix=fix)))

    queues.Queue._on_queue_feeder_error = report  # pyright: ignore[reportAttributeAccessIssue]
