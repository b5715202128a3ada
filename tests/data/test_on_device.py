"""Images that stay on the device: each once an epoch, shifted and flipped as said, a function of seed and epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adjoined import AdjoinedError, load
from adjoined.data.on_device import DeviceLoader
from adjoined.data.sampling import EpochSampler
from adjoined.settings import Settings
from adjoined.statistics import measure_statistics
from adjoined.training import train
from adjoined.training.job import make_job
from device_images import COUNT, SIZE, dataset
from small_cifar import write_cifar100
from tiny_runs import QUIET

CPU = torch.device("cpu")


def loader(rank: int = 0, world_size: int = 1, **options) -> DeviceLoader:
    sampler = EpochSampler(COUNT, seed=3, rank=rank, world_size=world_size)
    return DeviceLoader(dataset(), sampler, batch_size=10, device=CPU, **options)


def epoch(of: DeviceLoader, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    of.sampler.set_epoch(number)
    batches = list(of)
    assert len(batches) == len(of)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def plain(y: torch.Tensor) -> torch.Tensor:
    return torch.stack([dataset()[int(label)][0] for label in y])


def test_without_augmentation_the_images_are_those_of_the_data_set():
    x, y = epoch(loader(flip=False), 0)
    assert sorted(y.tolist()) == list(range(COUNT))
    torch.testing.assert_close(x, plain(y))


def test_flips_alternate_from_epoch_to_epoch():
    flipped = []
    for number in range(4):
        x, y = epoch(loader(), number)
        original = plain(y)
        turned = (x - original.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
        straight = (x - original).abs().amax(dim=(1, 2, 3)) < 1e-5
        assert bool((turned ^ straight).all())
        flipped.append(turned[y.argsort()])
    assert 0 < flipped[0].sum() < COUNT
    assert torch.equal(flipped[1], ~flipped[0])
    assert torch.equal(flipped[2], flipped[0])


def test_every_shift_up_to_the_largest_occurs_and_no_other():
    shift, seen = 2, set()
    for number in range(3):
        x, y = epoch(loader(flip=False, shift=shift), number)
        padded = F.pad(plain(y), [shift] * 4, mode="reflect")
        for image, wide in zip(x, padded, strict=True):
            corners = [
                (top, left)
                for top in range(2 * shift + 1)
                for left in range(2 * shift + 1)
                if torch.allclose(wide[:, top : top + SIZE, left : left + SIZE], image, atol=1e-5)
            ]
            assert len(corners) == 1
            seen.add(corners[0])
    assert len(seen) == (2 * shift + 1) ** 2


def test_it_is_a_function_of_seed_and_epoch_and_processes_share_an_epoch():
    first, again = epoch(loader(shift=2), 5), epoch(loader(shift=2), 5)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(epoch(loader(shift=2), 6)[1], first[1])
    parts = [epoch(loader(rank=rank, world_size=2), 5)[1] for rank in range(2)]
    assert sorted(torch.cat(parts).tolist()) == list(range(COUNT))


def test_what_cannot_stay_on_the_device_is_reported(tmp_path: Path):
    with pytest.raises(AdjoinedError, match="larger than the images"):
        loader(shift=SIZE)
    settings = Settings(data_on_device=True, epochs=1)  # the digits, which are turned and scaled
    with pytest.raises(AdjoinedError, match=r"--data-on-device.*cifar10"):
        train(settings, tmp_path / "run", console=QUIET)
    with pytest.raises(AdjoinedError, match="--shift"):
        train(replace(settings, data_on_device=False, shift=1), tmp_path / "run", console=QUIET)
    with pytest.raises(AdjoinedError, match="--low-resolution"):
        Settings(low_resolution={"24px": 0.5})


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small CIFAR-100: 100 training images."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar100(root / "cifar-100-python", 100)
    return str(root)


def test_the_recipe_trains_and_trains_the_same_again(tmp_path: Path, cifar100: str):
    """The fast recipe, cut down: smaller images at first, Lookahead, both networks."""
    from adjoined.recipes import cifar_fast

    settings = replace(cifar_fast(), data_root=cifar100, epochs=2, batch_size=25, model="fast_resnet16", alpha=2.0)
    whole = train(settings, tmp_path / "whole", console=QUIET)
    again = train(settings, tmp_path / "again", console=QUIET)
    for one, other in zip(whole.networks, again.networks, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()


def test_statistics_are_measured_on_images_augmented_as_in_training(cifar100: str, tmp_path: Path):
    """Padded with zeros, as they are away from the device, the images' statistics cost points of accuracy."""
    settings = Settings(
        **{"data": "cifar100", "data_root": cifar100, "epochs": 1, "batch_size": 25, "shift": 2},
        **{"data_on_device": True, "model": "fast_resnet16", "method": "standard", "accelerator": "cpu"},
    )
    result = train(settings, tmp_path / "run", console=QUIET)
    network, same = (load(result.folder, "base") for _ in range(2))
    images = make_job(settings).images.device_loader(CPU, seed=settings.seed)
    images.sampler.set_epoch(settings.epochs)
    assert measure_statistics([same], [same], images) == result.statistics
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name], msg=name)
