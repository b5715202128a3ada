"""Order and augmentation are a pure function of (seed, epoch, index), and no other random state is touched."""

import itertools
import pickle
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adjoined.data import DataSettings, ImageData, open_data
from adjoined.errors import AdjoinedError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with a single core


def digits(**settings) -> ImageData:
    return open_data(DataSettings(batch_size=48, augment="strong", limit=20, **settings))


def batches(data: ImageData, *, seed: int = 0, epoch: int = 0, **options) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_loader(seed=seed, **options)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) > 0 and all(
        torch.equal(x, x2) and torch.equal(y, y2) for (x, y), (x2, y2) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("strength", ["standard", "strong"])
@pytest.mark.parametrize(("name", "folder", "size"), [("cifar100", "", None), ("imagenette", "imagenette224", 64)])
def test_workers_change_nothing_on_real_images(data_root, name, folder, size, strength):
    several = [
        open_data(
            DataSettings(
                name=name,
                root=str(data_root / folder),
                image_size=size,
                limit=2,
                batch_size=7,
                workers=workers,
                augment=strength,
            )
        )
        for workers in (0, 2)
    ]
    assert same(*(batches(data, seed=1, epoch=2) for data in several))


def test_workers_kept_over_epochs_change_nothing():
    alone = digits()
    loader = digits(workers=2).train_loader(seed=5)
    for epoch in (0, 1, 4):
        loader.sampler.set_epoch(epoch)
        assert same(list(loader), batches(alone, seed=5, epoch=epoch))


def test_no_worker_is_started_for_no_batch():
    """Ten thousand processes would fill the memory; these are 200 images in batches of 48."""
    assert digits(workers=10_000).train_loader(seed=0, drop_last=False).num_workers == 5


def test_seed_and_epoch_change_order_and_augmentation():
    data = digits()
    assert same(batches(data, seed=3, epoch=1), batches(data, seed=3, epoch=1))
    runs = [batches(data, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert not any(same(one, other) for one, other in itertools.pairwise([*runs, runs[0]]))


def test_an_image_s_augmentation_depends_neither_on_batch_size_nor_on_rank():
    data = digits()
    expected = {index: data.train[index, seed][0] for index, seed in data.train_loader(seed=0).sampler}
    for options in ({}, {"rank": 1, "world_size": 3}):
        loader = data.train_loader(seed=0, drop_last=False, **options)
        images = torch.cat([x for x, _ in loader])
        for (index, _), image in zip(loader.sampler, images, strict=True):
            assert torch.equal(image, expected[index])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_cover_an_epoch_once_up_to_padding(world_size):
    data = digits()
    whole = list(data.train_loader(seed=2).sampler)
    assert sorted(index for index, _ in whole) == list(range(200))
    ranks = [list(data.train_loader(seed=2, rank=r, world_size=world_size).sampler) for r in range(world_size)]
    assert {len(mine) for mine in ranks} == {-(-200 // world_size)}
    interleaved = [key for keys in zip(*ranks, strict=True) for key in keys]
    assert interleaved == (whole + whole)[: len(interleaved)]


def test_evaluation_sees_every_image_once_and_in_order():
    data = open_data(DataSettings(eval_batch_size=100))
    images, labels = (torch.cat(parts) for parts in zip(*data.val_loader(), strict=True))
    assert torch.equal(labels, data.val.labels)
    assert torch.equal(images, torch.stack([data.val[i][0] for i in range(len(data.val))]))


def test_the_last_batch_is_left_out_unless_it_is_the_only_one():
    data = digits()  # 200 images, batches of 48
    assert [len(y) for _, y in batches(data)] == [48] * 4
    assert [len(y) for _, y in batches(data, drop_last=False)] == [48] * 4 + [8]
    assert [len(y) for _, y in batches(data, rank=0, world_size=5)] == [40]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_states_are_left_as_they_were(workers):
    data = digits(workers=workers)
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    for loader in (data.train_loader(seed=0), data.val_loader()):
        for _ in loader:
            assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert pickle.dumps(np.random.get_state()) == before[2]  # noqa: NPY002


def test_the_global_random_state_has_no_influence():
    data = digits()
    first = batches(data)
    torch.manual_seed(99)
    assert same(batches(data), first)


# Variation


def test_no_augmentation_is_evaluation():
    data = digits()
    plain = open_data(DataSettings(augment="none", limit=20))
    shown = torch.stack([plain.train[index, 5][0] for index in range(50)])
    stored = torch.stack([plain.train.images.pixels(index) for index in range(50)]).float() / 255
    torch.testing.assert_close(shown * plain.info.std[0] + plain.info.mean[0], stored)
    varied = torch.stack([data.train[index, 5][0] for index in range(50)])
    assert (varied - shown).abs().mean() > 0.1


def test_light_augmentation_of_cifar_is_a_flip(data_root):
    plain, light = (
        open_data(DataSettings(name="cifar100", root=str(data_root), augment=a, limit=1)) for a in ("none", "light")
    )
    flips = 0
    for index in range(100):
        image, shown = plain.train[index][0], light.train[index, index][0]
        flipped = torch.equal(shown, image.flip(2))
        assert flipped or torch.equal(shown, image)
        flips += flipped
    assert 30 < flips < 70


def test_standard_augmentation_of_cifar_is_a_shift_of_at_most_four_pixels_and_a_flip(data_root):
    plain, standard = (
        open_data(DataSettings(name="cifar100", root=str(data_root), augment=a, limit=1)) for a in ("none", "standard")
    )
    black = -torch.tensor(plain.info.mean) / torch.tensor(plain.info.std)
    seen = set()
    for index in range(100):
        framed = black.view(3, 1, 1).repeat(1, 40, 40)
        framed[:, 4:36, 4:36] = plain.train[index][0]
        windows = framed.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
        shown = standard.train[index, index][0][:, None, None]
        alike = [torch.isclose(each, windows, atol=1e-5).all(dim=(0, 3, 4)) for each in (shown, shown.flip(4))]
        places = torch.stack(alike, dim=2).nonzero().tolist()  # top, left, flip
        assert places
        seen |= set(map(tuple, places))
    assert len(seen) > 50


# Damaged images


def test_a_damaged_image_is_named_in_the_same_line_from_every_worker(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / ("a", "b")[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    broken = tmp_path / "b" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:200])

    line = rf"^{re.escape(str(broken))}: the image cannot be read: [^\n]*\.$"
    for workers in (0, 2):
        data = open_data(DataSettings(name=f"folder:{tmp_path}", image_size=16, batch_size=2, workers=workers))
        with pytest.raises(AdjoinedError, match=line):
            list(itertools.chain(data.train_loader(seed=0), data.val_loader()))
