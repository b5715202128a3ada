"""The report page as a file: it holds what it should, loads nothing from outside, and runs no text."""

import base64
import csv
import hashlib
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from adjoined.cli import main
from adjoined.data import DataInfo
from adjoined.report import units
from adjoined.report.page import Answers, Evidence, read_story, run_page
from adjoined.training import train
from mistakes import fails
from report_runs import HOSTILE, Page, hostile_run, page_of
from tiny_runs import QUIET, TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("family") / "family"
    train(replace(TINY, alpha=[2.0, 4.0]), run, console=QUIET)
    return run


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(trained, out=tmp_path_factory.mktemp("page") / "report.html")


# ---- one page, whole and safe ----------------------------------------------------------------------------------------


def test_the_page_is_well_formed_and_its_references_have_their_targets(page: Page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    wanted += [
        name for _, each in page.tags for name in (each.get("aria-labelledby"), each.get("aria-describedby")) if name
    ]
    assert set(wanted) <= set(ids)
    assert len(wanted) > 20


def test_every_part_is_there(page: Page):
    headings = page.written("h2")
    assert headings == [
        "Networks side by side",
        "Learning curves",
        "Widths",
        "Where the networks disagree",
        "Confusion between classes",
        "Calibration",
        "The regularising penalty",
        "Settings and versions",
    ]
    assert {"Top-1 accuracy", "Weight of the KL term, λ", "Channels of every layer", "Reliability"} <= set(
        page.written("h3")
    )


def test_a_loss_of_accuracy_is_not_shown_as_a_saving(page: Page):
    assert page.written("dt")[:5] == [
        "fewer parameters", "fewer multiply-adds (MACs)", "smaller file", "lower latency, one image",
        "points of top-1 accuracy",
    ]  # fmt: skip
    assert [each["class"] for each in page.all("div") if each.get("class") == "quality"] == ["quality"]


def test_points_are_plotted_where_there_are_more_than_two(family: Path, tmp_path: Path):
    assert "Accuracy and cost" in page_of(family, "--images", 0, out=tmp_path / "page.html").written("h2")


def test_headings_go_down_one_level_at_a_time(page: Page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_can_be_used_without_eyes(page: Page):
    tags = [tag for tag, _ in page.tags]
    assert {"header", "nav", "main", "footer"} <= set(tags)
    assert page.all("html")[0]["lang"] == "en"
    drawings = [each for each in page.all("svg") if each.get("aria-hidden") != "true"]
    assert len(drawings) >= 8
    assert all(each["role"] == "img" and {"aria-labelledby", "aria-describedby"} <= each.keys() for each in drawings)
    assert all(image["alt"] for image in page.all("img"))
    assert tags.count("caption") == tags.count("table")  # also of the figures behind every chart
    assert tags.count("details") == len(drawings) + 1  # and all settings
    assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))


def test_it_asks_for_nothing_from_outside(page: Page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            if tag != "a" and value is not None:
                assert value.startswith("data:"), (tag, name, value[:60])
    assert "@import" not in page.text
    assert "url(" not in page.text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]


def test_the_policy_lets_the_pages_own_style_and_script_run_and_no_other(page: Page):
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_of_classes_are_text_and_nothing_else(page: Page):
    shown = [text for _, text in page.texts]
    assert set(HOSTILE) <= set(shown)
    assert "49 &" not in page.text
    assert len(page.all("script")) == 1
    assert not page.all("b")


def test_figures_are_those_of_the_run(page: Page, trained: Path):
    result = json.loads((trained / "run.json").read_text())["result"]
    rows = list(csv.DictReader((trained / "metrics.csv").read_text().splitlines()))
    cells = page.written("td")
    for network in result["networks"]:
        assert f"{100 * network['top1']:.2f} %" in cells
    assert units.column([float(row["kl"]) for row in rows])[-1] in cells
    sentence = "Accuracies: 30 images of folder:images (folder val/)"
    assert any(text.startswith(sentence) for text in page.written("p"))


def test_writing_it_again_gives_the_same_page(page: Page, trained: Path, tmp_path: Path):
    def without_times(text: str) -> str:  # latency is measured anew where no result.json has been kept
        # marks of a noisy measurement
        doubt = r" \?(?=<)|; unreliable, the machine was busy|\s*<p[^>]*>The machine was busy.*?</p>"
        times = r"[\d.]+x|[\d.e+]+( to [\d.e+]+)? ms|\d\d:\d\d UTC|<svg.*?</svg>"
        return re.sub(f"{times}|{doubt}", "", text, flags=re.DOTALL)

    again = page_of(trained, out=tmp_path / "again.html")
    assert without_times(again.text) == without_times(page.text)


# ---- other runs ------------------------------------------------------------------------------------------------------


def test_a_family_has_every_network_in_every_part(family: Path, tmp_path: Path):
    page = page_of(family, out=tmp_path / "family.html")
    names = ["base", "small-1 (α=2)", "small-2 (α=4)"]
    assert {f"Confusion matrix of {name}" for name in names} <= set(page.written("caption"))
    assert page.written("h3").count("Only base is right") == 2
    assert all(page.written("th").count(name) >= 4 for name in names)


@pytest.mark.parametrize(("method", "name", "colour"), [("standard", "base", "n0"), ("scratch", "small", "n1")])
def test_one_network_alone_keeps_its_colour_and_has_no_part_that_needs_two(
    tmp_path: Path, method: str, name: str, colour: str
):
    train(replace(TINY, method=method, epochs=1), tmp_path / "alone", console=QUIET)
    page = page_of(tmp_path / "alone", out=tmp_path / "alone.html")
    headings = page.written("h2")
    assert {"Learning curves", "Confusion between classes", "Calibration"} <= set(headings)
    assert not {"Widths", "Where the networks disagree", "The regularising penalty"} & set(headings)
    assert f"One network, {name}." in page.written("p")
    assert {each["class"] for each in page.all("li") if "class" in each} == {colour}


def test_a_run_in_progress_has_a_page_with_what_there_is(trained: Path, tmp_path: Path):
    run = Path(shutil.copytree(trained, tmp_path / "stopped"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished": None, "result": None}))
    (run / "result.json").unlink()
    page = page_of(run, out=tmp_path / "stopped.html")
    assert page.written("h2") == ["Learning curves", "The regularising penalty", "Settings and versions"]
    assert "This run is unfinished" in page.written("strong")
    (run / "metrics.csv").unlink()
    page = page_of(run, out=tmp_path / "begun.html")
    assert page.written("h2") == ["Settings and versions"]


def test_without_images_the_page_says_what_the_folder_says(trained: Path, tmp_path: Path):
    page = page_of(trained, "--images", 0, "--data-root", "/nowhere", out=tmp_path / "page.html")
    assert "Networks side by side" in page.written("h2")
    assert not {"Calibration", "Confusion between classes"} & set(page.written("h2"))
    assert page.all("img") == []


def test_a_part_of_the_images_is_an_even_share_of_every_class(trained: Path, tmp_path: Path):
    page = page_of(trained, "--images", 12, out=tmp_path / "page.html")
    assert "Predictions on 12 images, compared with the base network's" in page.written("caption")
    assert "Based on 12 of 30 validation images, sampled evenly from every class." in page.written("p")


def test_a_record_of_exports_is_shown_as_far_as_it_goes(trained: Path, tmp_path: Path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "export").mkdir()
    difference = {"images": 256, "relative": 1.2e-6, "other_class": 0}
    one = {"network": "small", "target": "onnx", "int8": True}
    known = {**one, "int8": False, "file": "../../<b>.onnx", "bytes": 85_000, "difference": difference}
    exports = {"format": "adjoined-export", "version": 1, "files": [known, one, {**one, "target": "of-the-future"}]}
    (run / "export" / "export.json").write_text(json.dumps(exports))
    page = page_of(run, "--images", 0, out=tmp_path / "page.html")
    assert "Exports" in page.written("h2")
    assert {"85.00 kB", "1.2e-06", "0 of 256"} <= set(page.written("td"))
    assert {"small.onnx", "small.int8.onnx"} <= set(page.written("th"))
    assert "../" not in page.text


def test_the_page_stays_small_whatever_the_run(trained: Path):
    classes = tuple(f"class {i} {'x' * 240}" for i in range(1000))
    names = ("base", *(f"small-{i}" for i in range(1, 6)))
    labels = torch.arange(20_000) % 1000
    answers = Answers(
        labels,
        {name: torch.randint(1000, (20_000,)) for name in names},
        {name: torch.rand(20_000) for name in names},
    )
    pictures = dict.fromkeys(range(20_000), "data:image/webp;base64," + "A" * 16_000)
    info = DataInfo("folder", 1000, classes, 3, 224, 256, (0.5,) * 3, (0.5,) * 3)
    story = read_story(trained)
    history = tuple(dict(story.history[-1], epoch=float(i + 1)) for i in range(5000))
    sittings = [{"command": ["adjoined", "x" * 500], "started": ""}] * 2000
    long = replace(story, history=history, record=story.record | {"sittings": sittings})
    page = run_page(long, Evidence(info, answers, pictures, 50_000))
    assert 0.3e6 < len(page.encode()) < 3e6


# ---- several runs ----------------------------------------------------------------------------------------------------


def trained_with(run: Path, **settings: object) -> Path:
    """Return the run as if it had been trained with other settings."""
    own, record = run / "settings.yaml", json.loads((run / "run.json").read_text())
    own.write_text(yaml.safe_dump({**yaml.safe_load(own.read_text()), **settings}))
    record["settings"].update(settings)
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_runs_are_compared_with_the_settings_in_which_they_differ(family: Path, trained: Path, tmp_path: Path):
    other = trained_with(Path(shutil.copytree(family, tmp_path / "other")), lr=0.05)
    page = page_of(family, other, out=tmp_path / "comparison.html")
    assert page.open == []
    assert page.written("h1") == ["2 runs compared"]
    assert {f"{run}, {name}" for run in ("family", "other") for name in ("base", "small-2 (α=4)")} <= set(
        page.written("th")
    )
    assert "lr" in page.written("th")
    assert "epochs" not in page.written("th")
    assert not [text for text in page.written("strong") if "same images" in text]
    page = page_of(family, trained, out=tmp_path / "comparison.html")
    assert [text for text in page.written("strong") if "same images" in text]
    assert trained.name in page.written("strong")  # the name of the folder is text, too
    assert not [text for text in page.written("td") if text.startswith("/") or ":/" in text]  # no paths of the machine
    assert not page.all("b")


def test_runs_of_different_tasks_are_not_compared_and_only_own_code_is_told_its_model(
    family: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "comparison.html"
    page = page_of(family, trained, "--model", "nowhere.py:make", out=out)
    assert page.written("h1") == ["2 runs compared"]
    out.unlink()
    other = trained_with(Path(shutil.copytree(family, tmp_path / "other")), data="labels:labels.csv")
    (other / "result.json").unlink()
    error = fails(capsys, "report", family, other, "--out", out)
    assert "different tasks" in error
    assert "family: top-1 accuracy, other: mean average precision" in error
    assert not out.exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(family: Path, tmp_path: Path):
    for parent in ("a", "b"):
        shutil.copytree(family, tmp_path / parent / "run")
    page = page_of(tmp_path / "a" / "run", tmp_path / "b" / "run", out=tmp_path / "comparison.html")
    assert {"a/run, base", "b/run, base"} <= set(page.written("th"))


@pytest.mark.parametrize("flag", ["--data", "--data-root", "--device", "--workers"])
def test_a_comparison_refuses_flags_that_it_does_not_read(
    flag: str, family: Path, trained: Path, capsys: pytest.CaptureFixture[str]
):
    error = fails(capsys, "report", family, trained, flag, "1")
    assert f"error: {flag}: has no effect: a comparison of runs shows their recorded figures" in error


def test_the_page_of_an_unfinished_run_refuses_flags_that_only_images_need(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(family, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished": None, "result": None}))
    error = fails(capsys, "report", run, "--data-root", tmp_path)
    assert "--data-root: has no effect: the run is not finished" in error


def test_a_run_is_not_compared_with_itself(family: Path, capsys: pytest.CaptureFixture[str]):
    assert "RUN: the same run is given twice" in fails(capsys, "report", family, family / ".." / family.name)


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_be_read_is_named_and_left_out(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "page.html"
    assert main(["report", str(trained), str(tmp_path / "empty"), "--out", str(out)]) == 0
    assert "left out" in (err := capsys.readouterr().err)
    assert "there is no run in this folder" in err
    assert "<html" in out.read_text()


def test_mistakes_take_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "there is no run in this folder" in fails(capsys, "report", tmp_path / "empty")
    assert "no such folder" in fails(capsys, "report", trained, "--out", tmp_path / "none" / "page.html")
    assert "is a folder" in fails(capsys, "report", trained, "--out", tmp_path / "empty")
    assert "--images" in fails(capsys, "report", trained, "--images", -1)
    assert "the device cannot be used" in fails(capsys, "report", trained, "--device", "nonsense")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "metrics.csv").write_text("epoch,kl\n1,many\n")
    assert "the history of the run cannot be read" in fails(capsys, "report", run)
    (run / "metrics.csv").write_text("kl\n1\n")
    assert "without its epoch" in fails(capsys, "report", run)
    (run / "metrics.csv").unlink()
    (run / "result.json").write_text('{"networks": [{}]}')
    assert "result.json: a value does not fit" in fails(capsys, "report", run)
    (run / "result.json").unlink()
    (run / "benchmark.json").write_text("[]")
    assert "is not a JSON object" in fails(capsys, "report", run)
    assert not list(tmp_path.rglob("*.html"))
    assert not list(tmp_path.rglob("*.part"))


def test_missing_images_are_reported_and_not_needed_for_a_page(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    settings = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(re.sub(r"(?m)^data: .*$", "data: folder:/nowhere/at/all", settings))
    assert "no such folder" in fails(capsys, "report", run)
    assert not (run / "report.html").exists()
    assert main(["report", str(run), "--images", "0"]) == 0
    assert (run / "report.html").is_file()
