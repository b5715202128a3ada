"""What the data sets hold: against their published figures, torchvision's readers, and files written by the tests."""

import gzip
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adjoined.data import DataSettings, open_data
from adjoined.data.images import FileImages, ImageDataset, ImageLoader, MemoryImages
from adjoined.data.sampling import EpochSampler
from adjoined.errors import AdjoinedError
from small_cifar import write_cifar10


def sources(**settings) -> tuple[MemoryImages, MemoryImages]:
    """Training and validation images as they are stored."""
    data = open_data(DataSettings(**settings))
    return data.train.images, data.val.images


def rows(images: Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


# Known data sets


def test_digits_are_scikit_learn_s_split_by_class():
    from sklearn.datasets import load_digits

    train, val = sources(val_fraction=0.2)
    everything = torch.as_tensor(load_digits().images).mul(255 / 16).round().to(torch.uint8)
    assert rows(torch.cat([train.images, val.images])) == rows(everything)  # disjoint, and nothing is lost
    held_out, of = val.labels.bincount(), torch.as_tensor(load_digits().target).bincount()
    assert (held_out - 0.2 * of).abs().max() <= 0.5


def test_the_split_is_a_function_of_its_seed():
    splits = {seed: sources(split_seed=seed)[1] for seed in (0, 1)}
    assert torch.equal(splits[0].images, sources(split_seed=0)[1].images)
    assert not torch.equal(splits[0].images, splits[1].images)


@pytest.mark.filterwarnings("ignore:dtype:numpy.exceptions.VisibleDeprecationWarning")  # in torchvision's reader
def test_cifar100_is_what_torchvision_reads(data_root):
    from torchvision.datasets import CIFAR100

    train, val = sources(name="cifar100", root=str(data_root))
    for ours, is_train in ((train, True), (val, False)):
        theirs = CIFAR100(data_root, train=is_train)
        assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert ours.labels.tolist() == theirs.targets
    assert open_data(DataSettings(name="cifar100", root=str(data_root))).info.class_names == tuple(theirs.classes)


def test_cifar100_has_the_stated_mean_and_deviation(data_root):
    info = open_data(DataSettings(name="cifar100", root=str(data_root / "cifar-100-python"))).info
    pixels = sources(name="cifar100", root=str(data_root))[0].images[::5].float() / 255
    assert info.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=2e-3)
    assert info.std == pytest.approx(pixels.std(dim=(0, 2, 3)).tolist(), abs=2e-3)


def test_digits_have_the_stated_mean_and_deviation():
    data = open_data(DataSettings(augment="none", val_fraction=0.01))
    images = torch.cat([images for images, _ in data.train_loader(seed=0, drop_last=False)])
    assert images.mean().item() == pytest.approx(0, abs=0.01)
    assert images.std().item() == pytest.approx(1, abs=0.01)


@pytest.fixture
def cifar10(tmp_path) -> tuple[Path, np.ndarray, list[int]]:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    labels = [i % 10 for i in range(60)]
    write_cifar10(tmp_path / "cifar-10-batches-py", images, labels)
    return tmp_path, images, labels


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_its_extracted_folder(cifar10, inside):
    root, images, labels = cifar10
    train, val = sources(name="cifar10", root=str(root / inside))
    assert np.array_equal(torch.cat([train.images, val.images]).numpy(), images)
    assert torch.cat([train.labels, val.labels]).tolist() == labels
    assert len(val.labels) == 10


def test_a_pickle_that_calls_something_is_refused_before_it_does(cifar10):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(cifar10[0] / "it-ran"),)

    path = cifar10[0] / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Trap(), "labels": [0]}, protocol=2))
    with pytest.raises(AdjoinedError, match=r"data_batch_3.*mkdir"):
        open_data(DataSettings(name="cifar10", root=str(cifar10[0])))
    assert not (cifar10[0] / "it-ran").exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"data": np.zeros((2, 3072), np.uint8)},
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
        {"data": "text", "labels": [0]},
        ["no", "dictionary"],
        None,
    ],
    ids=["no labels", "short rows", "floats", "label 10", "one label", "empty", "text", "list", "cut off"],
)
def test_a_damaged_cifar_file_is_named(cifar10, entry):
    path = cifar10[0] / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps(entry) if entry else path.read_bytes()[:1000])
    with pytest.raises(AdjoinedError, match=r"data_batch_3: the file is damaged"):
        open_data(DataSettings(name="cifar10", root=str(cifar10[0])))


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def fashion() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        f"{part}-{kind}-ubyte": random.integers(0, high, shape, dtype=np.uint8)
        for part, n in (("train", 20), ("t10k", 10))
        for kind, high, shape in (("images-idx3", 256, (n, 28, 28)), ("labels-idx1", 10, (n,)))
    }


@pytest.mark.parametrize("layout", ["FashionMNIST/raw", "fashion-mnist", ""])
@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_wherever_torchvision_or_debian_lay_it(tmp_path, fashion, layout, packed):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    for name, values in fashion.items():
        content = gzip.compress(idx(values)) if packed else idx(values)
        (tmp_path / layout / f"{name}{'.gz' * packed}").write_bytes(content)
    train, val = sources(name="fashion-mnist", root=str(tmp_path))
    for part, stored in (("train", train), ("t10k", val)):
        assert np.array_equal(stored.images.squeeze(1).numpy(), fashion[f"{part}-images-idx3-ubyte"])
        assert np.array_equal(stored.labels.numpy(), fashion[f"{part}-labels-idx1-ubyte"])


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:3], lambda b: b"\1" + b[1:], lambda b: b""])
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_idx_file_is_named(tmp_path, fashion, damage, packed):
    for name, values in fashion.items():
        (tmp_path / name).write_bytes(idx(values))
    path = tmp_path / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    path.unlink()
    broken = tmp_path / f"{path.name}{'.gz' * packed}"
    broken.write_bytes(damage(gzip.compress(content) if packed else content))
    with pytest.raises(AdjoinedError, match=r"t10k-images.*damaged"):
        open_data(DataSettings(name="fashion-mnist", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(2**26 + 1), 1), "more than 67108864 bytes"),
        ("t10k-labels-idx1-ubyte", idx(np.full(10, 10, dtype=np.uint8)), "labels"),
    ],
    ids=["a small file that unpacks to much", "a label out of range"],
)
def test_an_idx_file_holds_no_more_than_it_may(tmp_path, fashion, name, content, message):
    for each, values in fashion.items():
        (tmp_path / each).write_bytes(idx(values))
    (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdjoinedError, match=f"damaged.*{message}"):
        open_data(DataSettings(name="fashion-mnist", root=str(tmp_path)))


# Folders of photos


def test_imagenette_is_what_torchvision_s_image_folder_finds(data_root):
    from torchvision.datasets import ImageFolder

    folder = data_root / "imagenette224"
    data = open_data(DataSettings(name="imagenette", root=str(folder)))
    for part, ours in (("train", data.train.images), ("val", data.val.images)):
        assert isinstance(ours, FileImages)
        theirs = ImageFolder(folder / part)
        assert [str(folder / name) for name in ours.names.astype(str)] == [path for path, _ in theirs.samples]
        assert ours.labels.tolist() == theirs.targets
    assert data.info.class_names[0] == "tench"
    assert (data.info.image_size, data.info.resize) == (224, 256)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of ten photos each, with other files beside them."""
    random = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"day{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.PNG")
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("about cats")
    (tmp_path / "photos" / "cat" / "._hidden.png").write_text("left by a file manager")
    (tmp_path / "photos" / ".checkpoints").mkdir()
    return tmp_path / "photos"


def names(images: FileImages) -> list[str]:
    return [os.fsdecode(bytes(name)) for name in images.names]


def test_a_folder_of_classes_is_split_by_class(photos):
    data = open_data(DataSettings(name=f"folder:{photos}", val_fraction=0.3))
    train, val = data.train.images, data.val.images
    assert val.labels.bincount().tolist() == [3, 3]
    everything = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.PNG"))
    assert sorted(names(train) + names(val)) == everything
    assert all((name[:3] == "dog") == label for name, label in zip(names(train), train.labels.tolist(), strict=True))
    assert data.info.class_names == ("cat", "dog")
    assert data.val_name == "held-out split, seed 0"


def test_a_folder_with_train_and_val_is_not_split(photos):
    both = photos.parent / "both"
    both.mkdir()
    (both / "train").symlink_to(photos)
    shutil.copytree(photos, both / "val")
    data = open_data(DataSettings(name=f"folder:{both}"))
    assert len(data.train) == len(data.val) == 20
    assert data.val_name == "folder val/"


@pytest.mark.parametrize("name", ["cat/ünï cødé.png", "dog/\udcff.png"])
def test_files_of_any_name_are_found(photos, name):
    (photos / "cat" / "day0" / "0.PNG").rename(photos / name)
    data = open_data(DataSettings(name=f"folder:{photos}", image_size=8, augment="none"))
    assert name in names(data.train.images) + names(data.val.images)
    for part in (data.train, data.val):
        for index in range(len(part)):
            assert part[index][0].shape == (3, 8, 8)


def test_limit_takes_that_many_of_each_class_and_a_larger_limit_takes_more():
    kept = {limit: sources(limit=limit)[0] for limit in (3, 10)}
    assert kept[3].labels.bincount().tolist() == [3] * 10
    assert kept[10].labels.bincount().tolist() == [10] * 10
    assert set(rows(kept[3].images)) < set(rows(kept[10].images))
    assert len(sources(limit=3)[1].labels) == len(sources()[1].labels)  # the evaluation images stay the same
    assert len(sources(limit=10**6)[0].labels) == len(sources()[0].labels)


# Wrong data are reported in one line


def refusal(**settings) -> str:
    with pytest.raises(AdjoinedError) as caught:
        open_data(DataSettings(**settings))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100", "imagenette", "imagenet"])
def test_missing_data_are_an_error_that_says_where_and_how_to_get_them(tmp_path, name):
    line = refusal(name=name, root=str(tmp_path / "nowhere"))
    assert name in line
    assert str(tmp_path / "nowhere") in line
    assert "root" in line
    assert "torchvision.datasets." in line or "image-net.org" in line


def test_an_archive_that_is_not_unpacked_is_pointed_at(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").touch()
    assert f"Unpack {tmp_path / 'cifar-100-python.tar.gz'}" in refusal(name="cifar100", root=str(tmp_path))


def test_an_unknown_data_set_is_an_error_with_the_nearest_name():
    line = refusal(name="cifar-100")
    assert "folder:PATH" in line
    assert "Did you mean cifar100?" in line


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"eval_batch_size": 0},
        {"workers": -1},
        {"image_size": 0},
        {"limit": 0},
        {"split_seed": -1},
        {"val_fraction": 0.0},
        {"val_fraction": 1.0},
        {"val_fraction": float("nan")},
        {"augment": "wild"},
    ],
)
def test_a_setting_out_of_range_is_named(wrong):
    assert next(iter(wrong)) in refusal(**wrong)


def test_a_missing_folder_is_named(tmp_path):
    assert str(tmp_path / "none") in refusal(name=f"folder:{tmp_path / 'none'}")
    assert "folder:': the path is missing" in refusal(name="folder:")  # not the current folder


def test_an_empty_class_is_named(photos):
    (photos / "eel").mkdir()
    (photos / "eel" / "notes.txt").touch()
    assert str(photos / "eel") in refusal(name=f"folder:{photos}")


def test_one_class_alone_is_refused(photos):
    (photos / "cat").rename(photos.parent / "cat")
    assert "fewer than two classes" in refusal(name=f"folder:{photos}")


@pytest.mark.parametrize("part", ["train", "val"])
def test_one_part_alone_is_refused(photos, part):
    photos.rename(photos.parent / part)
    line = refusal(name=f"folder:{photos.parent}")
    assert f"only {part}/" in line
    assert f"folder:{photos.parent / part}" in line


def test_other_classes_in_val_than_in_train_are_named(photos):
    both = photos.parent / "both"
    (both / "val").mkdir(parents=True)
    (both / "train").symlink_to(photos)
    for name in ("cat", "doggy"):
        shutil.copytree(photos / "dog", both / "val" / name)
    line = refusal(name=f"folder:{both}")
    assert "only train/ has dog" in line
    assert "only val/ has doggy" in line


def test_a_class_too_small_to_split_is_named(photos):
    (photos / "eel").mkdir()
    (photos / "dog" / "day0" / "3.PNG").rename(photos / "eel" / "3.png")
    assert "class eel" in refusal(name=f"folder:{photos}")


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("images", [1, 7, 8])
def test_processes_evaluate_every_image_once_apart_from_the_padding_they_count(images: int, processes: int):
    samplers = [EpochSampler(images, seed=0, rank=r, world_size=processes, shuffle=False) for r in range(processes)]
    seen = [index for sampler in samplers for index, _ in list(sampler)[: sampler.own]]
    assert sorted(seen) == list(range(images))
    assert len({len(list(sampler)) for sampler in samplers}) == 1  # unequal numbers of batches would deadlock


class Unsendable(ImageDataset):
    def __getitems__(self, keys: Any) -> Any:
        return lambda: keys  # fails to be pickled in the thread that also fails if shared memory is full


def test_a_batch_that_a_worker_cannot_send_is_reported():
    images = MemoryImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    sampler = EpochSampler(2, seed=0)
    loader = ImageLoader(
        Unsendable(images, lambda x: x, [0.0], [1.0]), sampler, batch_size=1, workers=1, drop_last=False
    )
    with pytest.raises(AdjoinedError, match=r"^--workers: a worker cannot pass a batch on: Can't pickle .*--shm-size"):
        list(loader)
