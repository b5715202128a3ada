"""A run resumes with the images that it started with, wherever they are, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from adjoined.comparison.study import Study
from adjoined.comparison.variants import read_variants
from adjoined.data import open_data
from adjoined.errors import AdjoinedError
from adjoined.runs import load, read_description
from adjoined.runs.finished import are_own, open_images, open_other_images, open_run
from adjoined.runs.folder import RunFolder
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.evaluate import evaluate
from adjoined.versions import versions
from tiny_runs import QUIET, TINY


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("run") / "photos", np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path) -> Path:
    here = Path.cwd()
    os.chdir(photos.parent)
    try:
        settings = replace(
            TINY, model="resnet20", model_options={}, data="folder:photos", image_size=16, epochs=1, batch_size=8
        )
        train(settings, photos.parent / "run", console=QUIET)
    finally:
        os.chdir(here)
    return photos.parent / "run"


@pytest.fixture
def moved(photos: Path, finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The run, with its images in a new location; the folder that its settings name is gone."""
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "settings.yaml").read_text()
    assert f"folder:{photos}" in text  # stored absolute
    (run / "settings.yaml").write_text(text.replace(str(photos), str(tmp_path / "gone")))
    return run, shutil.copytree(photos, tmp_path / "new" / "photos")


def unfinished(run: Path) -> None:
    record = json.loads((run / "run.json").read_bytes())
    (run / "run.json").write_text(json.dumps(record | {"finished": None, "result": None}))


def test_images_are_found_in_their_new_location(moved: tuple[Path, Path]):
    run, images = moved
    opened = open_run(run)
    with pytest.raises(AdjoinedError, match="no such folder"):
        open_images(opened)
    for where in ({"data": f"folder:{images}"}, {"data_root": str(images.parent)}):
        assert len(open_images(opened, **where).val) == 4
    assert are_own(opened, f"folder:{images}")


def test_other_images_are_not_taken_for_the_run_s_own(moved: tuple[Path, Path]):
    run, images = moved
    shutil.copy(images / "cat" / "0.png", images / "cat" / "more.png")
    opened, data = open_run(run), f"folder:{images}"
    assert not are_own(opened, data)
    assert len(open_other_images(opened, data).val) == 21
    with pytest.raises(AdjoinedError, match=r"1 added \(cat/more\.png\)"):
        open_images(opened, data=data)


def test_images_that_were_trained_on_are_counted_under_any_name(moved: tuple[Path, Path]):
    run, images = moved
    opened = open_run(run)
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.rename(path.with_name(f"renamed {number}.png"))
    assert open_other_images(opened, f"folder:{images}").val_name == "all of them, 16 of them also trained on"


def test_a_run_says_how_many_validation_images_it_trains_on(photos: Path, tmp_path: Path):
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / part)
    for name in "0.png", "1.png":
        (tmp_path / "train" / "cat" / name).unlink()  # 18 of 20 are in both
    settings = replace(TINY, data=f"folder:{tmp_path}", image_size=16, epochs=1)
    result = train(settings, tmp_path / "run", console=QUIET)
    assert result.val_name == "folder val/, 18 of them also trained on"
    opened = open_run(tmp_path / "run")
    assert open_images(opened).val_name == result.val_name
    assert open_images(opened, data=f"folder:{tmp_path}").val_name == result.val_name


def test_evaluation_reads_validation_images_and_no_others(moved: tuple[Path, Path]):
    """Reading a million training files would take minutes."""
    run, folder = moved
    opened, data = open_run(run), f"folder:{folder}"
    images = open_images(opened, data=data)
    train, val = (Path(part.images.place(0)) for part in (images.train, images.val))
    train.write_bytes(bytes(train.stat().st_size))
    images = open_images(opened, data=data)
    images.check(training=False)
    with pytest.raises(AdjoinedError, match=train.name):
        images.check()
    val.write_bytes(bytes(val.stat().st_size))
    with pytest.raises(AdjoinedError, match="of the same size with other contents"):
        open_images(opened, data=data)


def test_a_run_resumes_on_moved_images_but_not_on_others(moved: tuple[Path, Path]):
    run, images = moved
    unfinished(run)
    settings = replace(RunFolder(run).read_settings(), data=f"folder:{images}")
    extra = images / "dog" / "more.png"
    shutil.copy(images / "dog" / "0.png", extra)
    before = (run / "settings.yaml").read_bytes()
    with pytest.raises(AdjoinedError, match="the images are not those that the run started with: 1 added"):
        train(settings, run, resume=True, console=QUIET)
    assert (run / "settings.yaml").read_bytes() == before
    extra.unlink()
    result = train(settings, run, resume=True, console=QUIET)
    assert result.images == 4
    assert RunFolder(run).read_settings().data == f"folder:{images}"


def test_a_run_that_resumes_with_other_versions_says_so(moved: tuple[Path, Path]):
    run, images = moved
    unfinished(run)
    record = json.loads((run / "run.json").read_bytes())
    record["versions"].update(torch="1.0", pillow="3.1", gone="2.1")
    (run / "run.json").write_text(json.dumps(record))
    now = {name: version for name, (_, version) in RunFolder(run).other_versions().items()}
    assert now == {**versions("torch", "pillow"), "gone": "none"}
    output = StringIO()
    settings = replace(RunFolder(run).read_settings(), data=f"folder:{images}")
    train(settings, run, resume=True, console=Console(file=output))
    (line,) = [each for each in output.getvalue().splitlines() if "may differ" in each]
    assert f"torch {now['torch']} (it started with 1.0)" in line
    assert json.loads((run / "run.json").read_bytes())["sittings"][-1]["versions"] == now
    assert not RunFolder(run.parent / "new").other_versions()


class Meanwhile(Console):
    """A console on which a run that prints an epoch meets a change."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.text = StringIO()
        super().__init__(file=self.text, width=500)
        self.change: Callable[[], object] | None = change

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if self.change and "epoch 1/" in self.text.getvalue():
            self.change()
            self.change = None


def on_photos(images: Path) -> Settings:
    return replace(TINY, data=f"folder:{images}", image_size=16, batch_size=8)


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_that_change_while_a_run_goes_on_are_named_at_its_end(part: str, photos: Path, tmp_path: Path):
    images = shutil.copytree(photos, tmp_path / "photos")
    name, other, *_ = part_of(on_photos(images), part)
    console = Meanwhile(lambda: shutil.copy(images / other, images / name))
    train(on_photos(images), tmp_path / "run", console=console)
    assert f"evaluation saw others: 1 ({name})" in console.text.getvalue()


def test_an_image_that_is_gone_in_the_midst_of_a_run_names_how_to_go_on(photos: Path, tmp_path: Path):
    images = shutil.copytree(photos, tmp_path / "photos")
    name, run = part_of(on_photos(images), "train")[0], tmp_path / "run"
    with pytest.raises(AdjoinedError) as caught:
        train(on_photos(images), run, console=Meanwhile((images / name).unlink))
    said = f"{name}: no such image. Once this is mended, continue with: adjoined train --resume {run}"
    assert said in str(caught.value)
    shutil.copy(photos / name, images / name)
    train(on_photos(images), run, console=QUIET, resume=True)
    assert RunFolder(run).finished


def part_of(settings: Settings, part: str) -> list[str]:
    """Return the names of the images of a part of the split."""
    images = getattr(open_data(settings.data_settings()), part).images
    return [images.name(index) for index in range(len(images.labels))]


def test_a_damaged_validation_image_stops_a_run_before_it_leaves_anything(photos: Path, tmp_path: Path):
    images = shutil.copytree(photos, tmp_path / "photos")
    (images / "dog" / "9.png").write_bytes(b"")
    settings = replace(TINY, data=f"folder:{images}", image_size=16, epochs=1, model="resnet20", model_options={})
    with pytest.raises(AdjoinedError, match=r"dog/9\.png: the image cannot be read"):
        train(settings, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_a_run_does_not_start_where_it_would_be_taken_for_a_class(photos: Path, tmp_path: Path):
    images = shutil.copytree(photos, tmp_path / "photos")
    settings = replace(TINY, data=f"folder:{images}")
    for place in (images / "run", images / "runs" / "1", images / "cat" / "run"):
        with pytest.raises(AdjoinedError, match="in the folder of the images and count as a class"):
            train(settings, place, console=QUIET)
        with pytest.raises(AdjoinedError, match="count as a class"):
            Study(place, settings, read_variants(["standard"], settings, unequal=False), 1).check(unequal=False)
    assert sorted(each.name for each in images.rglob("*") if each.is_dir()) == ["cat", "dog"]
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / part)
    RunFolder(tmp_path / "run").check(replace(TINY, data=f"folder:{tmp_path}"), resume=False)


def test_a_comparison_is_not_continued_on_other_images(photos: Path, tmp_path: Path):
    images = shutil.copytree(photos, tmp_path / "photos")
    settings = replace(on_photos(images), epochs=1)

    def compare(*methods: str) -> Study:
        study = Study(tmp_path / "out", settings, read_variants(methods, settings, unequal=False), 1)
        study.check(unequal=False)
        return study

    assert not compare("standard").train(QUIET)
    shutil.copy(images / "cat" / "0.png", images / "cat" / "more.png")
    compare("standard")  # finished: its table needs no images
    with pytest.raises(AdjoinedError, match=r"standard-seed0.*1 added \(cat/more\.png\)"):
        compare("standard", "scratch")
    (images / "cat" / "more.png").unlink()
    assert not compare("standard", "scratch").train(QUIET)
    record = tmp_path / "out" / "runs" / "scratch-seed0" / "data.json"
    content = json.loads(record.read_bytes())
    record.write_text(json.dumps(content | {"train": content["train"] | {"images": 17}}))  # of an older version
    with pytest.raises(
        AdjoinedError, match=r"scratch-seed0.*different images .expected those of standard-seed0: 16 .*got 17"
    ):
        compare("standard", "scratch")


def test_a_teacher_of_another_split_is_measured_on_the_validation_images_of_its_student(photos: Path, tmp_path: Path):
    settings = replace(on_photos(photos), epochs=1, split_seed=1)
    teacher = train(settings.for_method("standard"), tmp_path / "teacher", console=QUIET)
    known = set(part_of(settings, "train"))
    settings = replace(settings.for_method("distillation", teacher=str(tmp_path / "teacher")), split_seed=0)
    both = [name for name in part_of(settings, "val") if name in known]
    output = StringIO()
    result = train(settings, tmp_path / "run", console=Console(file=output, width=500))
    said = f"4 validation images, {len(both)} of them trained on by the teacher, so the accuracies may be too high"
    assert len(both) == 3
    assert said in output.getvalue()
    assert result.val_name == "held-out split, seed 0, 3 of them trained on by the teacher"
    images = open_images(open_run(tmp_path / "run"))
    scores = evaluate(load(tmp_path / "run", "base"), images.val_loader(), 2)
    assert scores.loss == result.networks[0].loss != teacher.networks[0].loss
    assert scores.top1 == result.networks[0].top1
    metrics = read_description(tmp_path / "run", "base")["metrics"]
    assert (metrics["loss"], metrics["measured_on"]) == (scores.loss, result.val_name)
