"""The user's own folders: which files are read, and which are damaged."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]

from adjoined.data import DataRecord, DataSettings, checking, load_image, open_data, open_to_measure
from adjoined.errors import AdjoinedError
from adjoined.settings import Settings
from photo_folders import fill, opened, refusal, three_classes


@pytest.fixture
def photos(tmp_path) -> Path:
    return three_classes(tmp_path / "photos")


# Which folders are what


@pytest.mark.parametrize(("of", "first"), [("imagenet-1k", "tench"), ("imagenet-22k", "n00004475")])
def test_a_thousand_folders_get_readable_names_if_they_are_those_of_imagenet(tmp_path, of, first):
    fill(tmp_path, 1)
    for name in sorted(ImageNetInfo(of).label_names())[:1000]:
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "train" / name / f"{number}.png").hardlink_to(tmp_path / "0.png")
    data = opened(tmp_path / "train")
    assert (data.info.num_classes, data.info.class_names[0]) == (1000, first)
    assert len(data.train) == len(data.val) == 1000


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "eval", "holdout", "test", "Valid"])
def test_the_validation_folder_goes_by_many_names(tmp_path, photos, name):
    shutil.copytree(photos, tmp_path / "both" / "train")
    shutil.copytree(photos, tmp_path / "both" / name)
    data = opened(tmp_path / "both")
    assert (len(data.train), len(data.val), data.val_name) == (30, 30, f"folder {name}/")


def test_of_several_validation_folders_the_others_are_named(tmp_path, photos):
    for part in ("train", "valid", "test"):
        shutil.copytree(photos, tmp_path / "parts" / part)
    data = opened(tmp_path / "parts")
    assert data.val_name == "folder valid/"
    assert "test/" in data.left_out


def test_a_folder_beside_train_with_the_same_classes_is_not_a_class(tmp_path, photos):
    for part in ("train", "fold2"):
        shutil.copytree(photos, tmp_path / "both" / part)
    line = refusal(opened, tmp_path / "both")
    assert "fold2/ beside train/ has the same classes" in line
    assert "Rename fold2/ to val/" in line
    (tmp_path / "both" / "fold2" / "cat").rename(tmp_path / "both" / "fold2" / "lynx")
    assert opened(tmp_path / "both").info.class_names == ("fold2", "train")


def test_a_folder_too_high_or_without_class_folders_is_reported(photos):
    assert f"got folders: photos). Did you mean folder:{photos}?" in refusal(opened, photos.parent)
    assert "got folders: none; 10 beside the folders (such as 0.png))" in refusal(opened, photos / "cat")


def test_a_folder_of_an_unknown_user_is_missing():
    assert "no such folder" in refusal(opened, Path("~nobody-has-this-name/photos"))


def test_a_file_is_no_folder_of_images():
    assert "no such folder (expected a folder" in (said := refusal(opened, Path(__file__)))
    assert "got a file)" in said


def test_class_names_that_look_the_same_are_refused(photos):
    for name in ("caf\u00e9", "cafe\u0301"):
        fill(photos / name, 2)
    assert r"'cafe\u0301' and 'caf\xe9'" in refusal(opened, photos)


def test_class_names_of_both_parts_are_compared_in_one_unicode_form(tmp_path):
    for part, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        fill(tmp_path / part / name, 2)
        fill(tmp_path / part / "bar", 3)
    data = opened(tmp_path)
    assert data.info.class_names == ("bar", "caf\u00e9")
    assert data.val.labels.bincount().tolist() == [3, 2]


def test_a_class_may_be_called_train(tmp_path, photos):
    (photos / "cat").rename(photos / "train")
    (photos / "dog").rename(photos / "test")
    assert opened(photos).info.class_names == ("eel", "test", "train")


def test_images_in_train_without_class_folders_are_not_taken_for_a_class(tmp_path):
    for part in ("train", "test"):
        fill(tmp_path / part, 2)
    assert "outside the class folders" in refusal(opened, tmp_path)


def test_what_is_left_out_is_counted_by_its_kind(photos):
    for number in range(5):
        (photos / "cat" / f"{number}.heic").write_bytes(b"a kind that is not read")
    (photos / "dog" / ".hidden.png").touch()
    (photos / "labels.csv").touch()
    (photos / "dog" / "two\nlines.txt").touch()
    os.mkfifo(photos / "dog" / "pipe.png")
    (photos / "dog" / "broken.png").symlink_to("nowhere")
    (photos / "dog" / "round.png").symlink_to("and_round.png")
    (photos / "dog" / "and_round.png").symlink_to("round.png")
    (photos / "dog" / "through.png").symlink_to("1.png/inside")
    (photos / "dog" / "long.png").symlink_to("x" * 300)
    (photos / "itself").symlink_to("itself")
    left_out = opened(photos).left_out
    assert "5 .heic (such as cat/" in left_out
    assert r"1 .txt (such as dog/two\x0alines.txt)" in left_out
    for part in ("1 hidden", "2 beside the folders (such as labels.csv)", "6 broken links, pipes or devices"):
        assert part in left_out


def test_folders_that_a_system_adds_are_not_classes(photos):
    for name in ("__MACOSX", "@eaDir"):
        fill(photos / name / "cat", 1)
        fill(photos / "cat" / name, 1)
    data = opened(photos)
    assert data.info.class_names == ("cat", "dog", "eel")
    assert len(data.train) + len(data.val) == 30
    assert "4 hidden" in data.left_out


def test_every_folder_is_read_once_for_a_class(photos):
    (photos / "cat" / "more").mkdir()
    (photos / "cat" / "more" / "round").symlink_to(photos / "cat")
    (photos / "cat" / "up").symlink_to(photos)
    (photos / "cat" / "dogs").symlink_to(photos / "dog")
    (photos / "all").symlink_to(photos)
    (photos / "a_cat").symlink_to("cat")
    data = opened(photos)
    assert data.info.class_names == ("cat", "dog", "eel")
    assert (data.train.labels.bincount() + data.val.labels.bincount()).tolist() == [10, 10, 10]
    assert "5 links to folders read elsewhere" in data.left_out


def test_the_error_for_an_empty_class_lists_its_files(photos):
    (photos / "fox").mkdir()
    (photos / "fox" / "1.heic").touch()
    assert "1 .heic" in (line := refusal(opened, photos))
    assert str(photos / "fox") in line


def test_a_class_whose_name_is_not_utf8_has_a_name_that_can_be_written(photos):
    os.rename(photos / "cat", os.fsencode(photos) + b"/caf\xe9")
    data = opened(photos)
    assert data.info.class_names == ("caf\\xe9", "dog", "eel")
    assert data.val[0][0].shape == (3, 16, 16)


# Whole or not


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes({
        "empty": b"", "text": b"not an image", "cut in half": content[:middle], "last byte": content[:-1],
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }[how])  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "text", "cut in half", "last byte"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_a_damaged_file_is_found_before_anything_else(tmp_path, suffix, how):
    for name in ("cat", "dog"):
        fill(tmp_path / name, 3, suffix)
    opened(tmp_path).check()
    damage(tmp_path / "dog" / f"1.{suffix}", how)
    decodable = suffix in ("gif", "png") and how == "last byte"  # nothing of the pixels is missing
    if decodable:
        opened(tmp_path).check()
    else:
        assert f"dog/1.{suffix}: the image cannot be read" in refusal(opened(tmp_path).check)


def test_a_byte_changed_inside_a_png_is_found(photos):
    damage(photos / "dog" / "1.png", "flipped")
    damage(photos / "eel" / "1.png", "empty")
    line = refusal(opened(photos).check)
    assert "1.png: the image cannot be read" in line
    assert "and 1 other like it" in line
    assert "--bad-images skip" in line


@pytest.mark.parametrize(
    ("suffix", "how"),
    [("jpg", {}), ("jpg", {"progressive": True}), ("webp", {"lossless": True}), ("gif", {}),
     ("tif", {"compression": "tiff_lzw"}), ("tif", {"compression": "tiff_adobe_deflate"})],
)  # fmt: skip
def test_files_damaged_inside_are_found_as_decoding_finds_them(photos, suffix, how, monkeypatch):
    random = np.random.default_rng(0)
    whole = Image.open(photos / "cat" / "0.png").resize((64, 64))
    for number in range(30):
        path = photos / "dog" / f"damaged-{number}.{suffix}"
        whole.save(path, **how)
        content = bytearray(path.read_bytes())
        place, size = random.integers(len(content) // 4, len(content) * 3 // 4), min(200, len(content) // 4)
        content[place : place + size] = random.bytes(size) if number % 2 else bytes(size)
        path.write_bytes(content)
    unreadable = [name for name in sorted(os.listdir(photos / "dog")) if not is_readable(photos / "dog" / name)]
    assert len(unreadable) > 1
    assert f"and {len(unreadable) - 1} other" in refusal(opened(photos).check)
    monkeypatch.setattr(checking, "DECODED", 0)  # as in a large data set
    assert [Path(name).name for name in sorted(opened(photos, bad_images="skip").skipped)] == unreadable


def is_readable(path: Path) -> bool:
    try:
        return load_image(path) is not None
    except AdjoinedError:
        return False


def test_damaged_files_are_left_out_before_the_split_on_request(photos):
    for name in ("cat", "eel"):
        damage(photos / name / "3.png", "cut in half")
    data = opened(photos, bad_images="skip")
    assert sorted(data.skipped) == ["cat/3.png", "eel/3.png"]
    assert len(data.train) + len(data.val) == 28
    data.check()
    assert "damaged images left out: 2 (cat/3.png, eel/3.png)" in data.in_words()
    fill(photos / "cat", 4)  # the file is there again, but a run that began without it continues without it
    known = open_data(data.settings, skipped=data.skipped)
    assert DataRecord.of(data).fits(known)


def test_a_class_of_which_nothing_can_be_read_is_refused(photos):
    for path in (photos / "eel").iterdir():
        damage(path, "empty")
    assert "class eel" in refusal(lambda: opened(photos, bad_images="skip"))


def test_the_images_are_described_in_four_lines(photos):
    classes, train, val, normalised = opened(photos, val_fraction=0.3, limit=5).in_words().splitlines()
    assert classes == f"folder:{photos}: 3 classes (cat, dog, eel), 16 px (--image-size)"
    assert train == "15 training images (--limit 5 per class)"
    assert val.startswith("9 validation images")
    assert "--val-fraction 0.3, --split-seed 0" in val
    assert normalised == "normalised by mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225 (the data's)"


# Evaluation images


def test_images_are_normalised_as_the_pretrained_network_expects(photos):
    asked = Settings(model="timm:tf_efficientnet_lite0", data=f"folder:{photos}", pretrained=True)
    for settings, mean in ((asked, 0.5), (replace(asked, pretrained=False), 0.485)):
        images = open_data(settings.data_settings())
        assert images.info.mean[0] == mean
    black = DataSettings(f"folder:{photos}", normalisation=((0.5,) * 3, (0.25,) * 3))
    x, _ = open_data(black).val[0]
    assert x.min() >= -2
    assert x.max() <= 2


def test_all_images_are_evaluated_whatever_the_training_settings(photos):
    trained = opened(photos, limit=2, val_fraction=0.5, augment="strong")
    data = open_to_measure(trained.settings, trained.info)
    assert (len(data.val), len(data.train)) == (30, 0)
    assert data.val[3][0].equal(data.val[3, 99][0])  # not varied


def test_classes_are_matched_by_name_and_may_be_missing(tmp_path, photos):
    trained = opened(photos)
    fill(tmp_path / "test" / "eel", 2)
    fill(tmp_path / "test" / "dog", 1)
    (tmp_path / "test" / "empty").mkdir()
    data = open_to_measure(replace(trained.settings, name=f"folder:{tmp_path / 'test'}"), trained.info)
    assert data.val.labels.tolist() == [1, 2, 2]
    assert data.info == trained.info
    assert "empty" in data.left_out
    fill(tmp_path / "test" / "fox", 1)
    assert "fox" in refusal(open_to_measure, data.settings, trained.info)


def test_of_train_and_val_only_val_is_measured(tmp_path, photos):
    trained = opened(photos)
    fill(tmp_path / "new" / "train" / "cat", 5)
    settings = replace(trained.settings, name=f"folder:{tmp_path / 'new'}")
    assert "only train/" in refusal(open_to_measure, settings, trained.info)
    fill(tmp_path / "new" / "val" / "dog", 3)
    assert open_to_measure(settings, trained.info).val.labels.tolist() == [1, 1, 1]


def test_networks_of_grey_images_see_photos_in_grey(photos, tmp_path):
    info = replace(open_data(DataSettings()).info, class_names=("cat", "dog", "eel"), num_classes=3)
    data = open_to_measure(DataSettings(name=f"folder:{photos}"), info)
    assert data.val[0][0].shape == (1, 8, 8)
