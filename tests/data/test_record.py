"""The record of a run's images: whether they are the same as before, and what has changed."""

import gzip
import shutil
from pathlib import Path

import pytest

from adjoined.data import DataRecord, DataSettings, open_data
from adjoined.errors import AdjoinedError
from drawn_masks import draw
from photo_folders import fill, opened, refusal, three_classes
from read_only import read_only


@pytest.fixture
def photos(tmp_path) -> Path:
    return three_classes(tmp_path / "photos")


@pytest.fixture
def recorded(photos, tmp_path):
    data = opened(photos)
    paths = tmp_path / "data.json", tmp_path / "data-files.txt.gz"
    DataRecord.of(data).write(*paths, data)

    def change_told(**settings) -> str:
        record = DataRecord.read(paths[0])
        now = opened(photos, **settings)
        record.check(data, paths[1])
        return refusal(record.check, now, paths[1])

    return change_told


def test_unchanged_images_pass_wherever_they_are(photos, tmp_path):
    record = DataRecord.of(opened(photos))
    photos.rename(tmp_path / "elsewhere")
    assert record.fits(opened(tmp_path / "elsewhere"))
    gone = DataSettings(name=f"folder:{photos}", root=str(tmp_path), image_size=16)
    assert record.found(gone).name == f"folder:{tmp_path / 'elsewhere'}"
    fill(tmp_path / "elsewhere" / "cat", 11)
    assert record.found(gone) == gone


@pytest.mark.parametrize(("kind", "place"), [("segmentation", "squares"), ("labels", "photos/labels.csv")])
def test_masks_and_labels_are_found_in_their_new_location(tmp_path, kind, place):
    old, new = tmp_path / "old", tmp_path / "new"
    draw(old / "squares" / "images", old / "squares" / "masks", 4)
    three_classes(old / "photos")
    (old / "photos" / "labels.csv").write_text("file,labels\ncat/0.png,a;b\ncat/1.png,a\ndog/0.png,b\n")
    settings = DataSettings(name=f"{kind}:{old / place}", root=str(new), image_size=16)
    record = DataRecord.of(open_data(settings))
    old.rename(new)
    assert record.found(settings).name == f"{kind}:{new / place}"
    with pytest.raises(AdjoinedError, match=rf"If it has moved, give its new location: --data {kind}:"):
        open_data(settings)
    shutil.copy(new / "photos" / "eel" / "0.png", new / "photos" / "cat" / "0.png")
    shutil.copy(new / "squares" / "images" / "1.png", new / "squares" / "images" / "0.png")
    assert record.found(settings) == settings


def test_what_has_changed_is_counted_and_named(photos, recorded):
    shutil.copy(photos / "cat" / "1.png", photos / "cat" / "new.png")
    assert "1 added (cat/new.png)" in recorded()
    (photos / "cat" / "new.png").unlink()
    (photos / "dog" / "2.png").rename(photos / "dog" / "two.png")
    assert "1 renamed (dog/two.png)" in recorded()
    (photos / "dog" / "two.png").unlink()
    assert "1 removed (dog/2.png)" in recorded()
    fill(photos / "dog", 10, seed=1)
    (photos / "eel" / "4.png").write_bytes((photos / "eel" / "4.png").read_bytes() + b"\0")
    assert "1 of another size (eel/4.png)" in recorded()


@pytest.mark.parametrize(
    ("size", "place"), [(500, 250), (65536, 40000), (400_000, 0), (400_000, 133_000), (400_000, -1)]
)
def test_contents_that_change_at_equal_name_and_size_are_reported(photos, recorded, size, place):
    file = photos / "cat" / "3.bmp"
    content = bytearray(size)
    file.write_bytes(content)
    data, paths = opened(photos), (photos / "data.json", photos / "data-files.txt.gz")
    DataRecord.of(data).write(*paths, data)
    file.touch()
    DataRecord.read(paths[0]).check(opened(photos), paths[1])
    content[place] = 1
    file.write_bytes(content)
    line = refusal(DataRecord.read(paths[0]).check, opened(photos), paths[1])
    assert "1 of the same size with other contents (cat/3.bmp)" in line


def test_images_in_a_read_only_folder_are_opened_checked_and_recorded(photos):
    with read_only(photos):
        data = opened(photos)
        data.check()
        assert DataRecord.of(data).fits(opened(photos))


def test_a_renamed_class_and_another_split_are_reported(photos, recorded):
    assert "on the other side of the split" in recorded(split_seed=1)
    (photos / "cat").rename(photos / "zebra")
    assert "class cat is now called zebra; 10 renamed" in recorded()


def test_images_in_memory_are_told_apart():
    records = [DataRecord.of(open_data(DataSettings(split_seed=seed))) for seed in (0, 0, 1)]
    assert records[0] == records[1]
    assert records[0].fits(open_data(DataSettings()))
    assert not records[2].fits(open_data(DataSettings()))


def test_a_damaged_record_is_refused(photos, tmp_path):
    data = opened(photos)
    record, files = tmp_path / "data.json", tmp_path / "data-files.txt.gz"
    DataRecord.of(data).write(record, files, data)
    files.write_bytes(files.read_bytes()[:40])
    assert "damaged" in refusal(DataRecord.read(record).check, opened(photos, split_seed=3), files)
    files.write_bytes(gzip.compress(b"train\t1 0\tcat/0.png\n" * 1_000_000))  # a small file that unpacks to a large one
    assert "listed twice" in refusal(DataRecord.read(record).check, opened(photos, split_seed=3), files)
    record.write_text('{"format": "adjoined-data", "version": 1, "train": 3}')
    assert "data.json" in refusal(DataRecord.read, record)
