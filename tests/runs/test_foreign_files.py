"""A run from somebody else: its names, paths and links lead nowhere, and nothing in it is code."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from errno import ENOSPC
from math import prod
from pathlib import Path

import pytest
import torch
from PIL import Image

import adjoined
from adjoined.atomic import replaced_folder, write_whole, written_beside
from adjoined.cli import main
from adjoined.comparison.study import Study
from adjoined.comparison.variants import read_variants
from adjoined.errors import AdjoinedError
from adjoined.files import check_writable
from adjoined.json_files import read_json, write_json
from adjoined.runs import RunFolder
from adjoined.runs.finished import open_run
from adjoined.runs.networks import LARGEST_HEADER
from adjoined.training import train
from tiny_runs import QUIET, TINY


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file outside of the run that nobody may change or copy."""
    (tmp_path / "secret.txt").write_text("SECRET")
    return tmp_path / "secret.txt"


def edit(file: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def texts_in(folder: Path) -> set[bytes]:
    return {each.read_bytes() for each in folder.rglob("*") if each.is_file()}


# ---- names and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "small/../base", "small\n", "small-0", "small-01", "Base", "", ".", "a" * 5000, 3],
)
def test_a_network_has_one_of_the_few_names(run, name, tmp_path):
    for each in ("json", "safetensors"):
        shutil.copy(run / f"small.{each}", tmp_path / f"evil.{each}")
    edit(run / "run.json", lambda data: data["result"]["networks"][1].update(name=name))
    for command in (["export", run, "--out", tmp_path / "x" / "out"], ["push", run, "--to", tmp_path / "pushed"]):
        assert main([str(each) for each in command]) == 2
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "pushed").exists()
    with pytest.raises(AdjoinedError, match="not the name of a network"):
        adjoined.load(run, name)


def test_a_path_in_a_file_is_never_read(run, secret, tmp_path):
    edit(run / "run.json", lambda data: data["result"]["networks"][0].update(path=str(secret)))
    edit(run / "run.json", lambda data: data["result"].update(folder=str(tmp_path)))
    assert open_run(run).result.networks[0].path == run / "base.safetensors"
    assert open_run(run).result.folder == run
    assert main(["push", str(run), "--to", str(tmp_path / "pushed")]) == 0
    student = ["--method", "distillation", "--teacher", str(run), "--run", str(tmp_path / "student")]
    tiny = ["--model-options", "{width: 0.5}", "--limit", "16", "--epochs", "1", "--warmup-epochs", "0"]
    assert main(["train", "--recipe", "digits", *tiny, *student]) == 0
    assert b"SECRET" not in texts_in(tmp_path / "pushed") | texts_in(tmp_path / "student")


def test_exported_files_are_found_by_what_they_are_not_by_their_path(run, secret, tmp_path):
    (run / "export").mkdir()
    (run / "export" / "small.onnx").write_bytes(b"weights")
    entry = {"network": "small", "target": "onnx", "int8": False, "file": "../../secret.txt", "takes": "normalised"}
    write_json(run / "export" / "export.json", {"format": "adjoined-export", "version": 1, "files": [entry]})
    assert main(["push", str(run), "--to", str(tmp_path / "pushed")]) == 0
    assert (tmp_path / "pushed" / "export" / "small.onnx").read_bytes() == b"weights"
    assert b"SECRET" not in texts_in(tmp_path / "pushed")


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "links",
    ["base.safetensors", "small.json", "run.json", "settings.yaml", "metrics.csv", "result.json", "benchmark.json",
     "plan.json", "export/export.json", "export", "export/notes.txt notes.txt tensorboard/x report.html"],
)  # fmt: skip
def test_what_a_link_leads_to_is_neither_copied_nor_changed(run, secret, links, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "small.onnx").write_text("SECRET")
    for link in links.split():
        place = run / link
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(outside if link == "export" else secret)
    codes = {
        main([*map(str, command)])
        for command in (
            ["push", run, "--to", tmp_path / "pushed"], ["report", run, "--images", 0], ["train", "--resume", run],
            ["export", run, "--images", 4, "--to", "torch-export", "--which", "small"],
        )
    }  # fmt: skip
    assert codes <= {0, 2}
    assert secret.read_text() == "SECRET"
    assert [each.name for each in outside.iterdir()] == ["small.onnx"]
    assert b"SECRET" not in texts_in(tmp_path / "pushed")


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard", "logits", "stages", "stages/teacher", ".lock"])
def test_training_writes_through_no_link(tmp_path, folder):
    (tmp_path / "run" / folder).parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / folder).symlink_to(tmp_path / "elsewhere")
    settings = TINY.for_method("distillation")
    (tmp_path / "run" / "settings.yaml").write_text(settings.to_yaml())
    with pytest.raises(AdjoinedError, match=f"{folder}: is a link"):
        train(settings, tmp_path / "run", resume=True, console=QUIET)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("link", ["checkpoints", "checkpoints/best"])
def test_weights_are_read_through_no_link(run, link, tmp_path, capsys):
    assert adjoined.load(run, weights="best")
    (run / link).rename(tmp_path / "elsewhere")
    (run / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdjoinedError, match=f"{link}: is a link"):
        adjoined.load(run, weights="best")
    assert main(["evaluate", str(run), "--weights", "best"]) == 2
    assert "is a link" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["runs", "runs/standard-seed0"])
def test_a_comparison_writes_through_no_link(link, tmp_path):
    standard = read_variants(["standard"], TINY, unequal=False)
    study = Study(tmp_path / "study", TINY, standard, 1)
    assert study.path(*study.runs()[0]) == tmp_path / "study" / "runs" / "standard-seed0"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "study" / link).parent.mkdir(parents=True)
    (tmp_path / "study" / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdjoinedError, match=f"{link}: is a link"):
        study.train(QUIET)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_waiting_under_the_name_of_a_file_is_replaced(tmp_path, secret):
    (tmp_path / "page.html").symlink_to(secret)
    write_whole(tmp_path / "page.html", lambda file: file.write(b"new"))
    assert (tmp_path / "page.html").read_text() == "new"
    assert not (tmp_path / "page.html").is_symlink()
    assert secret.read_text() == "SECRET"


def test_devices_and_pipes_are_not_replaced(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert main(["plan", "resnet20", "--out", str(tmp_path / "pipe")]) == 2
    assert "pipe: is not a regular file" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
    for place in (tmp_path / "pipe", Path("/dev/stdout"), Path(os.devnull)):  # this only asks: a test may run as root
        with pytest.raises(AdjoinedError, match=f"{place}: is not a regular file"):
            check_writable(place)


def test_the_name_beside_is_new_each_time_and_leaves_nothing(tmp_path):
    seen = set()
    for _ in range(3):
        write_whole(tmp_path / "a", lambda _: seen.update(each.name for each in tmp_path.iterdir()))
        with written_beside(tmp_path / "b") as (part,):
            seen.add(part.parent.name)
            part.write_text("x")
    assert len(seen - {"a", "b"}) == 6
    assert {each.name for each in tmp_path.iterdir()} == {"a", "b"}


def test_an_error_names_the_final_place_of_a_file_that_is_written_beside_it(tmp_path):
    def full(_: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    with written_beside(tmp_path / "new") as (part,):
        part.mkdir()
        with pytest.raises(AdjoinedError) as of_new:
            write_whole(part / "file", full)
    with replaced_folder(tmp_path / "best") as folder, pytest.raises(AdjoinedError) as of_best:
        write_whole(folder / "file", full)
    assert str(of_new.value).startswith(f"{tmp_path}/new/file: the disk is full")
    assert str(of_best.value).startswith(f"{tmp_path}/best/file: the disk is full")


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "folder", "zero", "large"):
        for links in (False, True):
            with pytest.raises(AdjoinedError, match=f"{name}.json: "):
                read_json(tmp_path / f"{name}.json", "anything", links=links)


def test_a_run_may_lie_behind_a_link_as_a_whole(run, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    assert adjoined.load(tmp_path / "latest")


# ---- what files claim ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["model"].update(num_classes=1 << 30),
        lambda data: data["model"].update(options={"width": 100_000}),
        lambda data: data["model"].update(options={"width": "wide"}),
        lambda data: data["model"].update(spec="timm:vit_giant_patch14_224", image_size=224),
        lambda data: data["model"].update(spec="adjoined:wide_resnet1006_1000"),
        lambda data: data["data"].update(image_size=1 << 20, resize=1 << 20),
        lambda data: data["plan"]["shapes"].update({"fc.weight": [1 << 20, 1 << 20]}),
        lambda data: data["plan"]["attributes"].update({"conv1.forward": 3}),
        lambda data: data["plan"]["attributes"].update({"conv1.__class__": 3}),
        lambda data: data["plan"]["attributes"].update({"conv1.training": 3}),
        lambda data: data["plan"]["attributes"].update({"nosuch.x": 3}),
        lambda data: data["plan"]["conv_groups"].update({"conv1": 0}),
    ],
)
def test_a_network_is_not_built_larger_than_its_tensors(run, change):
    edit(run / "small.json", change)
    with pytest.raises(AdjoinedError):
        adjoined.load(run)


def test_a_network_has_no_more_layers_than_its_tensors_account_for(run):
    """Each of many layers of one channel is small."""
    many = {"depth": 100_000, "embed_dim": 3, "patch_size": 4}
    edit(run / "base.json", lambda data: data["model"].update(spec="timm:vit_tiny_patch16_224", options=many))
    with pytest.raises(AdjoinedError, match=r"base\.json: the network is far larger .* bytes in \d+ tensors"):
        adjoined.load(run, "base")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000000]}}',
        b'{"a": 3}',
        b"[" * 1000,
        b"\xff{}",
    ],
)
def test_a_weights_file_is_as_long_as_it_says(run, header):
    (run / "small.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(AdjoinedError, match=r"small\.safetensors"):
        adjoined.load(run)
    (run / "small.safetensors").write_bytes((1 << 60).to_bytes(8, "little"))
    with pytest.raises(AdjoinedError, match="the weights are not those"):
        adjoined.load(run)


def test_a_long_header_of_weights_is_refused_before_it_is_parsed(run):
    header = b"{" + b" " * LARGEST_HEADER + b"}"  # safetensors itself would parse it
    (run / "small.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdjoinedError, match=r"small\.safetensors: .*expected a header of at most"):
        adjoined.load(run)


@pytest.mark.parametrize(
    ("kind", "bits", "message"),
    [
        ("I32", 32, "expected numbers like torch.float32, got torch.int32"),
        ("C64", 64, "expected numbers like torch.float32, got torch.complex64"),
        ("F8_E8M0", 8, "the weights cannot be read"),  # torch has no such numbers
        ("F32", 32, "expected numbers, got NaN"),
    ],
)
def test_weights_are_numbers_of_the_network_s_kind(run, kind, bits, message):
    content = (run / "small.safetensors").read_bytes()
    header, at = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]), 0
    for each in header.values():
        if "dtype" in each:
            whole = each["dtype"] == "I64"  # counters of batches
            size = prod(each["shape"]) * (64 if whole else bits) // 8
            each.update(dtype="I64" if whole else kind, data_offsets=[at, at := at + size])
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + b"\xff" * at
    (run / "small.safetensors").write_bytes(content)
    edit(run / "small.json", lambda data: data.update(sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(AdjoinedError, match=rf"small\.safetensors.*{message}"):
        adjoined.load(run)


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 2, "class_names": ["0", "1"]},
        {"num_classes": 11, "class_names": list("0123456789a")},
        {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
    ],
)
def test_a_model_and_its_data_agree(run, change, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    for name in ("base", "small"):
        edit(run / f"{name}.json", lambda data: data["data"].update(change))
        assert main(["predict", str(run), str(tmp_path / "digit.png")]) == 2
        assert f"{name if name == 'base' else 'base'}.json" in capsys.readouterr().err
        with pytest.raises(AdjoinedError, match=rf"{name}\.json, model: the file is damaged"):
            adjoined.load(run, name)


@pytest.mark.parametrize("change", [{"mean": [0.1]}, {"class_names": list("9876543210")}, {"image_size": 7}])
def test_networks_of_one_run_see_the_same_images(run, change):
    edit(run / "small.json", lambda data: data["data"].update(change))
    assert adjoined.load(run)
    with pytest.raises(AdjoinedError, match=r"small\.json: the networks of the run were trained on different images"):
        open_run(run)


@pytest.mark.parametrize("names", [["base"], ["base", "small", "small"]])
def test_figures_of_other_networks_are_measured_again(run, names, tmp_path):
    kept = {each["name"]: each for each in read_json(run / "result.json", "anything")["networks"]}
    times = {"latency": {"median_ms": 1e6, "lower_quartile_ms": 1e6, "upper_quartile_ms": 1e6, "calls": 9,
                         "batch_size": 1, "threads": 1, "device": "cpu"}}  # fmt: skip
    networks = [{**kept[name], "figures": {**kept[name]["figures"], **times}} for name in names]
    edit(run / "result.json", lambda data: data.update(networks=networks))
    assert main(["report", str(run), "--images", "0", "--out", str(tmp_path / "page.html")]) == 0
    assert main(["push", str(run), "--to", str(tmp_path / "pushed")]) == 0
    pushed = read_json(tmp_path / "pushed" / "result.json", "anything")["networks"]
    assert [each["figures"]["name"] for each in pushed] == ["base", "small"]
    assert all(each["figures"]["latency"]["median_ms"] < 1e6 for each in pushed)


def test_a_description_without_a_size_of_images_is_built_all_the_same(run):
    """Most models do not ask for it."""
    data = read_json(run / "small.json", "anything")
    del data["model"]["image_size"]
    write_json(run / "small.json", data)
    assert adjoined.load(run)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_entries_of_a_newer_minor_version_are_ignored(run):
    for name in ("run.json", "small.json", "base.json", "result.json", "plan.json"):
        if (run / name).exists():
            data = read_json(run / name, "anything")
            parts = [data.get(each) for each in ("result", "model", "data", "metrics", "plan")]
            for part in [each for each in (*parts, data) if isinstance(each, dict)]:
                lists = (part.get(each, []) for each in ("networks", "stages", "groups", "sittings"))
                for each in [part, *(item for items in lists for item in items)]:
                    each["from_the_future"] = {"a": [1, None]}
            write_json(run / name, data)
    assert open_run(run).networks
    assert adjoined.SlicePlan.load(run / "plan.json").groups
    assert main(["report", str(run), "--images", "0"]) == 0
    assert RunFolder(run).read_record()["from_the_future"]
