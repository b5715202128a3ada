"""Images with any number of labels: the kinds of CSV files, and rows that are wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adjoined.data import DataSettings, ImageData, labels, open_data, open_to_measure
from adjoined.errors import AdjoinedError

LISTED = "file,labels\na.png,red;round\nb.png,\nc.png, round ;big;\nd.png,red\n"
QUOTED = LISTED.replace("red;round", '"red, round"').replace(" round ;big;", '"round,big"')
BARS = LISTED.replace(";", "|")
SPACES = LISTED.replace(";", " ")
MARKED = "file,big,red,round,split\na.png,0,1,1,train\nb.png,0,0,0,train\nc.png,1,0,1,val\nd.png,0,1,0,val\n"
TRUTH = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]])  # big, red, round


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate("abcd"):
        Image.fromarray(np.full((9, 9, 3), 60 * number, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def opened(folder: Path, text: str) -> ImageData:
    (folder / "labels.csv").write_text(text, errors="surrogateescape")
    return open_data(DataSettings(name=f"labels:{folder / 'labels.csv'}", image_size=8, val_fraction=0.5, batch_size=4))


def test_all_kinds_of_files_say_the_same(folder: Path):
    for text in (LISTED, QUOTED, BARS, SPACES, MARKED):
        data = opened(folder, text)
        assert (data.info.task, data.info.class_names) == ("multilabel", ("big", "red", "round"))
        assert len(data.train) == len(data.val) == 2
        for part in (data.train, data.val):
            for index in range(2):
                _, y = part[index]
                images = part.images
                assert torch.equal(y, TRUTH["abcd".index(images.place(index)[-5])])
        x, y = next(iter(data.val_loader()))
        assert (x.shape, y.shape, y.dtype) == ((2, 3, 8, 8), (2, 3), torch.float32)


def test_a_label_is_the_same_in_every_unicode_form(folder: Path):
    data = opened(folder, LISTED.replace("a.png,red", "a.png,caf\u00e9").replace("d.png,red", "d.png,cafe\u0301"))
    assert data.info.class_names == ("big", "caf\u00e9", "round")


@pytest.mark.parametrize("separator", [";", "|", ","])
def test_labels_may_contain_spaces_where_something_else_separates_them(folder: Path, separator: str):
    data = opened(folder, f'file,labels\na.png,"fire truck{separator} red"\nb.png,fire truck\n')
    assert data.info.class_names == ("fire truck", "red")


def test_marked_splits_are_kept(folder: Path):
    assert [Path(opened(folder, MARKED).val.images.place(index)).name for index in (0, 1)] == ["c.png", "d.png"]


def test_labels_of_other_images_are_matched_by_name(folder: Path):
    trained = opened(folder, MARKED).info
    other = folder / "other.csv"
    settings = DataSettings(name=f"labels:{other}")
    other.write_text("file,labels\na.png,round;red\nd.png,red\n")
    data = open_to_measure(settings, trained).val
    assert torch.equal(data.images.labels, TRUTH[[0, 3]])
    other.write_text("file,labels\na.png,round;blue\n")
    with pytest.raises(AdjoinedError, match=r"expected 3 labels \(big, red, round\), got unknown: 1 labels \(blue\)"):
        open_to_measure(settings, trained)


def test_a_table_of_labels_is_made_only_up_to_a_size(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labels, "LARGEST_TABLE", 4 * 3)
    assert len(opened(folder, LISTED).info.class_names) == 3
    with pytest.raises(AdjoinedError, match=r"labels.csv: too many labels .*got 4 labels, 4 images"):
        opened(folder, LISTED.replace("b.png,", "b.png,blue"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MARKED.replace("c.png,1", "c.png,yes"), "labels.csv, row 4, column big: a label is neither 0 nor 1"),
        (LISTED.replace("c.png", "x.png"), "labels.csv, row 4: no such image"),
        (LISTED.replace("c.png", "../c.png"), "labels.csv, row 4: the image is outside the folder"),
        (LISTED.replace("c.png", "/etc/passwd"), "labels.csv, row 4: the image is outside the folder"),
        (LISTED.replace("c.png", "a.png"), "labels.csv, row 4: the image is listed twice"),
        (LISTED.replace("c.png", "./a.png"), "labels.csv, row 4: the image is listed twice"),
        (LISTED.replace("b.png,", "b.png"), "labels.csv, row 3: a wrong number of columns"),
        (MARKED.replace("val\nd", "later\nd"), "labels.csv, row 4: no such split"),
        (LISTED.replace("file", "path"), "labels.csv: the columns are not those of a label file"),
        (LISTED.replace("c.png", 300 * "c"), "labels.csv, row 4: no such image"),
        (LISTED.replace(" round ;big", '"round'), "labels.csv, row 4: not CSV"),
        (LISTED.replace("big", "b\udcf6g"), "labels.csv, row 4: the text is not UTF-8"),
        (MARKED.replace("c.png,1", "c.png,"), "labels.csv, row 4, column big: a label is neither 0 nor 1"),
        (MARKED.replace("big", ""), "labels.csv, row 1: column 2 has no name"),
        (MARKED.replace("big", "red"), "labels.csv, row 1: two columns have the same name"),
        ("# photos\n" + LISTED, "labels.csv: the columns are not those of a label file"),
        (MARKED.replace(",", ";"), "labels.csv: the columns are not those of a label file"),
        ("file,labels\na.png,\"['red', 'round']\"\n", "labels.csv, row 2: the labels are written as a list"),
        (
            LISTED.replace("d.png,red", "d.png,red|big"),
            "separated in different ways (expected one of semicolons, bars, commas, got bars in row 5, semi",
        ),
        ("file,labels\n", "labels.csv: no rows"),
        ("file,labels\na.png,red\n", "labels.csv: fewer than two labels"),
        (
            "file,labels\na.png,red;big\n",
            "labels.csv: no image can be held out of only one (expected at least 2 images). Add images.",
        ),
    ],
)
def test_what_is_wrong_is_reported_in_one_line_with_file_and_row(folder: Path, text: str, message: str):
    with pytest.raises(AdjoinedError) as caught:
        opened(folder, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_without_any_label_are_refused_before_the_first_step(folder: Path):
    """Average precision has no value there; a table would show 0 %."""
    opened(folder, MARKED).check()
    for text, images in (
        (MARKED.replace("1,0,1,val", "0,0,0,val").replace("0,1,0,val", "0,0,0,val"), "c.png, d.png"),
        (MARKED.replace("0,1,1,train", "0,0,0,train"), "a.png, b.png"),
    ):
        with pytest.raises(AdjoinedError, match=rf"labels.csv: none of .* has a label.* without any: {images}"):
            opened(folder, text).check()
    trained, other = opened(folder, MARKED).info, opened(folder, "file,red,round\na.png,0,0\nb.png,0,0\n")
    with pytest.raises(AdjoinedError, match=r"2 images without any: a.png, b.png"):
        open_to_measure(other.settings, trained).check(training=False)


def test_labels_that_no_training_image_has_are_named(folder: Path):
    assert "labels in no training image: 1 (big)" in opened(folder, MARKED).in_words().splitlines()
    assert "in no training image" not in opened(folder, MARKED.replace("b.png,0", "b.png,1")).in_words()


def test_a_file_of_which_no_image_can_be_read_is_refused(folder: Path):
    (folder / "labels.csv").write_text("file,labels\na.png,red;big\nb.png,red\n")
    for name in "ab":
        (folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(AdjoinedError, match=r"^data set labels:.*: no image can be read.* 2 files are damaged"):
        open_data(DataSettings(name=f"labels:{folder / 'labels.csv'}", bad_images="skip"))


def test_a_large_table_of_labels_is_read(folder: Path):
    """A column for each of 80 labels of 118,000 photos, as of COCO, takes 21 MB; here fewer images have more labels."""
    names, count = [f"l{number}" for number in range(1500)], 3000
    lines = [",".join(["file", *names])]
    for number in range(count):
        (folder / f"{number}.png").hardlink_to(folder / "a.png")
        lines.append(",".join([f"{number}.png", *("1" if label == number % 7 else "0" for label in range(1500))]))
    text = "\n".join(lines)
    assert len(text) > 8 << 20
    data = opened(folder, text)
    assert data.info.class_names == tuple(names)
    assert len(data.train) + len(data.val) == count
    assert data.val.labels.sum() == len(data.val)


def test_a_label_file_may_be_a_link(folder: Path):
    (folder / "stored.csv").write_text(LISTED)
    (folder / "labels.csv").symlink_to("stored.csv")
    assert len(open_data(DataSettings(name=f"labels:{folder / 'labels.csv'}")).train) == 3


def test_a_folder_is_no_label_file(folder: Path):
    with pytest.raises(AdjoinedError, match=r"no such file \(expected a CSV file: labels:FILE.csv, got a folder\)"):
        open_data(DataSettings(f"labels:{folder}"))
