"""One image is prepared as in evaluation, and as torchvision's reference does it; DataInfo passes through JSON."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from adjoined.data import DataInfo, DataSettings, load_image, open_data, preprocess
from adjoined.errors import AdjoinedError


def through_json(info: DataInfo) -> DataInfo:
    return DataInfo.from_json(json.loads(json.dumps(info.to_json())))


@pytest.mark.parametrize("size", [None, 12, 32])
def test_a_digit_is_prepared_as_in_evaluation(size):
    data = open_data(DataSettings(image_size=size))
    for index in range(20):
        image = Image.fromarray(data.val.images.pixels(index).squeeze(0).numpy())
        assert torch.equal(preprocess(through_json(data.info), image)[0], data.val[index][0])


@pytest.mark.parametrize("size", [None, 48])
def test_a_cifar_image_is_prepared_as_in_evaluation(data_root, size):
    data = open_data(DataSettings(name="cifar100", root=str(data_root), image_size=size, eval_batch_size=20))
    batch, _ = next(iter(data.val_loader()))
    for index in range(20):
        image = Image.fromarray(data.val.images.pixels(index).permute(1, 2, 0).numpy())
        assert torch.equal(preprocess(through_json(data.info), image)[0], batch[index])


@pytest.mark.parametrize("size", [None, 128])
def test_a_photo_is_prepared_as_in_evaluation(data_root, size):
    folder = data_root / "imagenette224"
    data = open_data(DataSettings(name="imagenette", root=str(folder), image_size=size, eval_batch_size=20))
    batch, _ = next(iter(data.val_loader()))
    assert batch.shape == (20, 3, size or 224, size or 224)
    for name, prepared in zip(data.val.images.names[:20], batch, strict=True):
        image = load_image(folder / name.decode())
        assert torch.equal(preprocess(through_json(data.info), image)[0], prepared)


@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (90, 90), (10, 1000)])
def test_photos_are_prepared_as_torchvision_s_reference_does(shape):
    from torchvision.transforms._presets import ImageClassification
    from torchvision.transforms.v2.functional import pil_to_tensor

    info = DataInfo(
        "photos", 2, ("a", "b"), 3, image_size=64, resize=73, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    reference = ImageClassification(crop_size=64, resize_size=73)(pil_to_tensor(image))
    one_level = 1 / 255 / min(info.std)  # the reference rounds in floating point, ours in integers
    torch.testing.assert_close(preprocess(info, image)[0], reference, atol=1.01 * one_level, rtol=0)
    assert reference.std() > 10 * one_level


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_mode_and_size_are_prepared(mode, channels):
    info = DataInfo("any", 2, ("a", "b"), channels, image_size=8, resize=9, mean=(0.5,) * channels, std=(1,) * channels)
    image = Image.new("RGB", (50, 31), "white").convert(mode)
    prepared = preprocess(info, image)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared, torch.full((1, channels, 8, 8), 0.5))


@pytest.mark.parametrize("settings", [{}, {"image_size": 16}])
def test_info_passes_through_json(settings):
    info = open_data(DataSettings(**settings)).info
    assert through_json(info) == info
    assert hash(through_json(info)) == hash(info)


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": None},
        {"mean": [0.1, 0.2]},
        {"std": [0.0]},
        {"num_classes": 9},
        {"channels": 2},
        {"image_size": 9},
        {"image_size": "eight"},
        {"class_names": 3},
    ],
)
def test_a_damaged_description_is_refused(damage):
    values = open_data(DataSettings()).info.to_json()
    with pytest.raises(AdjoinedError, match="description of the data"):
        DataInfo.from_json({**values, **damage})
    for name in values:
        with pytest.raises(AdjoinedError, match=name):
            DataInfo.from_json({key: value for key, value in values.items() if key != name})
