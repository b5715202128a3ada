"""Images with masks: the layouts that are read, the masks that are refused, and that image and mask stay together."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adjoined.data import DataSettings, ImageData, open_data, open_to_measure
from adjoined.data.segmentation import NOT_COUNTED, read_mask
from adjoined.errors import AdjoinedError
from drawn_masks import draw
from made_by_hand import png, tiff


def opened(folder: Path, **settings) -> ImageData:
    return open_data(DataSettings(name=f"segmentation:{folder}", image_size=16, **settings))


def refusal(folder: Path) -> str:
    with pytest.raises(AdjoinedError) as caught:
        opened(folder).check()
    return str(caught.value)


def saved(values: np.ndarray, kind: str, **how: str) -> bytes:
    content = BytesIO()
    Image.fromarray(values).save(content, kind, **how)
    return content.getvalue()


@pytest.fixture
def squares(tmp_path) -> Path:
    draw(tmp_path / "squares" / "images", tmp_path / "squares" / "masks", 10, palette=True)
    return tmp_path / "squares"


LAYOUTS = ["{part}/images {part}/masks", "images/{part} masks/{part}", "{part} {part}annot"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "{part}/JPEGImages {part}/SegmentationClass"])
def test_layouts_with_training_and_validation_images(tmp_path: Path, layout: str):
    for count, part in ((4, "train"), (2, "val")):
        images, masks = layout.format(part=part).split()
        draw(tmp_path / images, tmp_path / masks, count, seed=count)
    data = opened(tmp_path)
    assert (len(data.train), len(data.val), data.splits) == (4, 2, False)
    assert (data.info.task, data.info.num_classes, data.info.resize) == ("segmentation", 3, 16)
    data.check()


def test_without_a_split_one_is_drawn_and_a_limit_counts_images(squares: Path):
    data = opened(squares, limit=3)
    assert (len(data.train), len(data.val), data.splits) == (3, 2, True)
    x, y = next(iter(data.val_loader()))
    assert (x.shape, x.dtype) == ((2, 3, 16, 16), torch.float32)
    assert (y.shape, y.dtype) == ((2, 16, 16), torch.int64)
    assert set(y.unique().tolist()) == {NOT_COUNTED, 0, 1, 2}


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
def test_image_and_mask_stay_together(squares: Path, augment):
    """The square is brighter than its ground by more than the noise, wherever crops and flips put it."""
    data = opened(squares, augment=augment, workers=0, batch_size=4)
    images, masks = next(iter(data.train_loader(seed=1)))
    for x, y in zip(images, masks, strict=True):
        inside, outside = x[:, y > 0].mean(), x[:, y == 0].mean()
        assert inside > outside + 0.5


def test_a_batch_depends_only_on_seed_and_epoch(squares: Path):
    batches = [next(iter(opened(squares, workers=workers, batch_size=4).train_loader(seed=3))) for workers in (0, 1)]
    torch.testing.assert_close(*batches, rtol=0, atol=0)


def test_classes_are_named_in_a_file(squares: Path):
    (squares / "classes.txt").write_text("ground\nsquare\ncentre\nhole\n")
    assert opened(squares).info.class_names == ("ground", "square", "centre", "hole")
    (squares / "classes.txt").write_text("ground\nsquare\ncentre\n", encoding="utf-8-sig")  # as some editors write it
    assert opened(squares).info.class_names == ("ground", "square", "centre")
    (squares / "classes.txt").write_text("\n".join(map(str, range(256))))
    assert "expected 2 to 255 lines, with a name in each, got 256" in refusal(squares)


def test_a_class_that_no_training_mask_has_is_named(squares: Path):
    (squares / "classes.txt").write_text("ground\nsquare\ncentre\nhole\nroof\n")
    data = opened(squares)
    data.check()
    assert "classes in no training image: 2 (hole, roof)" in data.in_words().splitlines()
    (squares / "classes.txt").unlink()
    data = opened(squares)
    data.check()
    assert "in no training image" not in data.in_words()


def test_wrong_masks_are_reported_in_one_line_with_file_and_value(squares: Path):
    mask, original = squares / "masks" / "3.png", Image.open(squares / "masks" / "3.png").copy()
    values = np.asarray(original).copy()
    values[0, 0] = 7
    Image.fromarray(values).save(mask)
    assert f"{mask}: the values of the masks are not class indices" in refusal(squares)
    assert "got 7, but no mask has 3" in refusal(squares)
    (squares / "classes.txt").write_text("ground\nsquare\ncentre\n")
    assert f"{mask}: the mask has a value that is not a class (expected 0 to 2, or 255" in refusal(squares)
    assert "got 7" in refusal(squares)
    original.convert("RGB").save(mask)
    assert f"{mask}: the mask does not have one integer per pixel" in refusal(squares)
    original.convert("L").save(mask, format="jpeg")
    assert f"{mask}: the values of the mask are not read as they were saved" in refusal(squares)
    assert "got JPEG, with loss). Save it as a PNG file" in refusal(squares)
    original.resize((30, 24)).save(mask)
    assert f"{mask}: the mask does not have the size of its image (expected 20 x 24" in refusal(squares)
    mask.write_bytes(mask.read_bytes()[:60])
    assert f"{mask}: the image cannot be read" in refusal(squares)
    mask.unlink()
    assert f"{squares / 'images' / '3.png'}: there is no mask for it" in refusal(squares)
    shutil.rmtree(squares / "masks")
    assert "no images with masks" in refusal(squares)


@pytest.mark.parametrize("held", ["images", "masks"])
def test_files_held_on_their_side_are_rotated_before_they_are_compared(tmp_path: Path, held: str):
    """As a viewer shows them, image and mask have one size, whichever of the two an EXIF tag rotates."""
    draw(tmp_path / "images", tmp_path / "masks", 4)
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (tmp_path / held).glob("*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".tif"), exif=turned)
        path.unlink()
    data = opened(tmp_path, augment="none")
    data.check()
    x, y = next(iter(data.val_loader()))
    assert x[0][:, y[0] > 0].mean() > x[0][:, y[0] == 0].mean() + 0.5


def test_masks_of_many_bits_are_read_and_negative_and_real_values_refused(squares: Path):
    mask, values = squares / "masks" / "3.tif", np.asarray(Image.open(squares / "masks" / "3.png"))
    (squares / "masks" / "3.png").unlink()
    Image.fromarray(values.astype(">u2")).save(mask)
    opened(squares).check()
    Image.fromarray(values.astype(np.float32)).save(mask)
    assert f"{mask}: the mask does not have one integer per pixel" in refusal(squares)
    Image.fromarray(values.astype(np.int32) - (values == 0)).save(mask)
    assert f"{mask}: the values of the masks are not class indices" in refusal(squares)
    assert "got -1)" in refusal(squares)
    (squares / "classes.txt").write_text("ground\nsquare\ncentre\n")
    assert f"{mask}: the mask has a value that is not a class" in refusal(squares)


INDICES = np.array([[0, 1, 2, 3]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (png(4, 1, 1, 0, b"\0\x50"), [0, 1, 0, 1]),
        (png(4, 1, 2, 0, b"\0\x1b"), None),  # Pillow reads 0, 85, 170, 255
        (png(4, 1, 4, 0, b"\0\x01\x23"), None),
        (png(4, 1, 4, 3, b"\0\x01\x23", (b"PLTE", bytes(12))), [0, 1, 2, 3]),
        (png(4, 1, 16, 0, b"\0" + INDICES.astype(">u2").tobytes()), [0, 1, 2, 3]),
        (b"P5\n4 1\n3\n" + INDICES.tobytes(), None),
        (b"P2\n4 1\n20\n0 1 2 3\n", None),
        (b"P5\n4 1\n1000\n" + INDICES.astype(">u2").tobytes(), None),
        (b"P5\n4 1\n65535\n" + INDICES.astype(">u2").tobytes(), [0, 1, 2, 3]),
        (b"P1\n4 1\n0 1 0 1\n", [1, 0, 1, 0]),  # 1 is black
        (tiff(INDICES, bits=8), [0, 1, 2, 3]),
        (tiff(INDICES, bits=8, photometric=0), None),  # inverted
        (saved(INDICES.repeat(32, 0), "tiff", compression="jpeg"), None),
        (saved(INDICES, "tiff", compression="tiff_lzw"), [0, 1, 2, 3]),
        (saved(INDICES, "avif"), None),
        (saved(INDICES, "gif"), [0, 1, 2, 3]),
    ],
)
def test_masks_are_read_as_they_were_saved_or_refused(tmp_path: Path, content: bytes, read: list[int] | None):
    (tmp_path / "mask").write_bytes(content)
    if read is not None:
        assert read_mask(str(tmp_path / "mask")).tolist() == [read]
    else:
        with pytest.raises(AdjoinedError, match="mask: the values of the mask are not read as they were saved"):
            read_mask(str(tmp_path / "mask"))


def test_wrong_names_of_classes_are_reported_with_their_row(squares: Path):
    names = squares / "classes.txt"
    names.write_text("ground\n\nsquare\n")
    assert f"{names}, row 2: a class has no name" in refusal(squares)
    names.write_text("ground\nsquare\nground\n")
    assert f"{names}, rows 1 and 3: two classes have the same name" in refusal(squares)
    names.write_bytes("ground\nTür\n".encode("latin-1"))
    assert f"{names}, row 2: the text is not UTF-8" in refusal(squares)
    names.write_text("ground\n")
    assert f"{names}: the number of classes is out of range (expected 2 to 255 lines" in refusal(squares)


def test_masks_without_a_class_are_reported(tmp_path: Path):
    draw(tmp_path / "images", tmp_path / "masks", 2)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((24, 20), 255, dtype=np.uint8)).save(path)
    assert "0.png and 1 other mask: no pixel of the masks belongs to a class" in refusal(tmp_path)
    assert "got only 255). Save the values of the classes" in refusal(tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_masks_without_a_class_on_one_side_are_refused_before_the_first_step(tmp_path: Path, part: str):
    for each in ("train", "val"):
        draw(tmp_path / each / "images", tmp_path / each / "masks", 3)
    masks = tmp_path / part / "masks"
    ignored = Image.fromarray(np.full((24, 20), 255, dtype=np.uint8))
    for number in (0, 2):
        ignored.save(masks / f"{number}.png")
    opened(tmp_path).check()
    ignored.save(masks / "1.png")
    assert f"{masks / '0.png'} and 2 other masks: no pixel of the masks belongs to a class" in refusal(tmp_path)


def test_masks_of_0_and_255_are_not_taken_for_one_class(tmp_path: Path):
    draw(tmp_path / "images", tmp_path / "masks", 4)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    assert "the masks have only one class" in refusal(tmp_path)
    assert "got only 0 and 255). Save the class that is 255 as 1." in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\nsquare\n")
    assert "got only 0 and 255). Save the class that is 255 as 1." in refusal(tmp_path)


def test_other_masks_may_lack_the_last_classes_but_not_have_more(squares: Path, tmp_path: Path):
    draw(tmp_path / "other" / "images", tmp_path / "other" / "masks", 4)
    for path in (tmp_path / "other" / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 2, 1, mask).astype(np.uint8)).save(path)
    trained, other = opened(squares).info, opened(tmp_path / "other")
    assert open_to_measure(other.settings, trained).info == trained
    with pytest.raises(AdjoinedError, match=r"expected 2 classes \(0, 1\), got 3 classes \(0, 1, 2\)\).*classes.txt"):
        open_to_measure(opened(squares).settings, other.info)
