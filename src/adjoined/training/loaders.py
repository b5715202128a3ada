"""The data of a run, as Lightning takes it."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from adjoined.settings import Settings

if TYPE_CHECKING:
    from adjoined.data import ImageData


class RunData(LightningDataModule):
    """This process's share of the images, in an order that depends on seed and epoch alone.

    Args:
        settings: the settings of the run.
        images: the data set.
        views: how often each training image is varied.
    """

    def __init__(self, settings: Settings, images: ImageData, views: int = 1) -> None:
        super().__init__()
        self.settings, self.images, self.views = settings, images, views

    def setup(self, stage: str) -> None:
        """Open the training images."""
        assert self.trainer is not None
        self._train = self.images.train_loader(
            seed=self.settings.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            views=self.views,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return ceil(len(self._train) / self.settings.accumulate) * self.settings.epochs

    def train_dataloader(self) -> DataLoader:
        """Return the training images; Lightning tells their sampler the epoch."""
        return self._train

    def val_dataloader(self) -> DataLoader:
        """Return the images that accuracy is measured on."""
        assert self.trainer is not None
        return self.images.val_loader(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
