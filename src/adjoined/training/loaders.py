"""The data of a run, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from adjoined.data.sampling import EpochSampler
from adjoined.settings import Settings

if TYPE_CHECKING:
    from adjoined.data import ImageData
    from adjoined.data.images import Batch
    from adjoined.data.on_device import DeviceLoader


def training_batches(settings: Settings, images: ImageData, device: torch.device, epoch: int) -> Iterator[Batch]:
    """Return the batches of an epoch with the augmentation of the training, at full resolution, outside of a training.

    Args:
        settings: the settings of the run; its seed determines the images.
        images: the data set.
        device: where images that stay on a device are held and augmented.
        epoch: number of the epoch; from `settings.epochs` on, one that training has not seen.
    """
    seed = settings.seed
    loader = images.device_loader(device, seed=seed) if settings.data_on_device else images.train_loader(seed=seed)
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    sampler.set_epoch(epoch)
    return iter(loader)


def training_images(settings: Settings, images: ImageData, device: torch.device, epoch: int, count: int) -> Batch:
    """Return the first `count` training images of an epoch and their targets in one batch."""
    wanted = -(-count // images.settings.batch_size)
    batches = list(islice(training_batches(settings, images, device, epoch), wanted))
    x, y = (torch.cat(each)[:count].to(device) for each in zip(*batches, strict=True))
    return x, y


class RunData(LightningDataModule):
    """This process's share of the images, in an order that depends only on seed and epoch."""

    def __init__(self, settings: Settings, images: ImageData) -> None:
        super().__init__()
        self.settings, self.images = settings, images
        self._loaders: list[Any] = []

    def setup(self, stage: str) -> None:
        """Open the training images."""
        assert self.trainer is not None
        options: dict[str, Any] = {
            "seed": self.settings.seed,
            "rank": self.trainer.global_rank,
            "world_size": self.trainer.world_size,
        }
        self._train: DataLoader[Any] | DeviceLoader
        if self.settings.data_on_device:
            self._train = self.images.device_loader(self.trainer.strategy.root_device, **options)
        else:
            self._train = self.images.train_loader(**options)
            self._loaders.append(self._train)

    def killed_worker(self) -> int | None:
        """Return the exit code of a data worker, if one was killed."""
        return next((code for each in self._loaders if (code := each.killed_worker()) is not None), None)

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return ceil(len(self._train) / self.settings.accumulate) * self.settings.epochs

    def train_places(self, batch_idx: int) -> list[str]:
        """Return the places of the images of a training batch of this process in the current epoch, for errors."""
        sampler, size = self._train.sampler, self.images.settings.batch_size
        mine = islice(iter(sampler), batch_idx * size, (batch_idx + 1) * size)
        return [self.images.train.images.place(index) for index, _ in mine]

    def train_dataloader(self) -> Any:
        """Return the training images; Lightning sets their sampler's epoch."""
        return self._train

    def val_dataloader(self) -> DataLoader:
        """Return the validation images."""
        assert self.trainer is not None
        loader = self.images.val_loader(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        self._loaders.append(loader)
        self._val_images = loader.own
        return loader

    def val_images_in(self, batch_idx: int) -> int:
        """Return how many images of a validation batch count: all but those that pad this process's share."""
        return max(self._val_images - batch_idx * self.settings.eval_batch_size, 0)
