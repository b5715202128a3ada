"""Sharing a run: over real HTTP to a stand-in for a hub, and back; what is shared, and what is not."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path

import pytest
import torch
import yaml

import adjoined
from adjoined import AdjoinedError
from adjoined.cli import main
from adjoined.training import train
from hub_server import Hub, serving
from mistakes import fails
from tiny_runs import QUIET, TINY, with_code


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub talks to, and an empty cache."""
    from huggingface_hub import constants

    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(a(x), b(x))


# ---- to a hub and back -----------------------------------------------------------------------------------------------


def test_what_is_pushed_loads_bit_for_bit(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (run / "export").mkdir()
    (run / "export" / "small.onnx").write_bytes(b"a file of another runtime")
    (run / "export" / "notes.txt").write_text("not for others")
    exported = {"file": "small.onnx", "network": "small", "target": "onnx", "int8": False}
    record = {"format": "adjoined-export", "version": 1, "files": [exported]}
    (run / "export" / "export.json").write_text(json.dumps(record))
    assert main(["push", str(run), "--to", "hub:ann/digits", "--license", "mit"]) == 0
    out = capsys.readouterr().out
    assert f"pushed: {hub.url}/ann/digits" in out
    files = hub.repositories["ann/digits"]
    assert files.keys() == {
        "README.md", "base.safetensors", "base.json", "small.safetensors", "small.json", "plan.json", "settings.yaml",
        "run.json", "result.json", "metrics.csv", "export/small.onnx", "export/export.json",
    }  # fmt: skip
    assert hub.commits == ["Networks trained with adjoined"]
    assert not hub.private["ann/digits"]

    assert same(adjoined.load("hub:ann/digits"), adjoined.load(run))
    cached = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.is_symlink()}
    assert {"small.json", "small.safetensors"} <= cached
    assert not {"base.safetensors", "small.onnx", "README.md"} & cached  # nothing that is not needed
    names: dict[str, torch.nn.Module] = {}
    exec(out.strip().splitlines()[-1], names)  # the printed line
    assert same(names["model"], adjoined.load(run, "small"))
    assert same(adjoined.load("hub:ann/digits", "base"), adjoined.load(run, "base"))
    assert not same(
        adjoined.load("hub:ann/digits", "base"), adjoined.load(run, "small")
    )  # otherwise the check shows nothing


def test_other_commands_take_a_run_from_the_hub(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run), "--to", "hub:ann/digits", "--private"]) == 0
    assert hub.private["ann/digits"]
    capsys.readouterr()
    assert main(["evaluate", "hub:ann/digits", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for network in printed["networks"]:
        assert network["top1"] == printed["recorded"][network["name"]]["top1"]


def test_files_about_a_run_on_the_hub_are_written_to_the_current_folder_and_not_to_the_cache(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert main(["push", str(run), "--to", "hub:ann/digits"]) == 0
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(["export", "hub:ann/digits", "--to", "torch-export", "--which", "small"]) == 0
    assert main(["benchmark", "hub:ann/digits", "--runtimes", "eager", "--batch-sizes", "1", "--seconds", "0.1"]) == 0
    assert main(["report", "hub:ann/digits"]) == 0
    names = {"export", "benchmark.json", "benchmark.md", "report.html"}
    assert {each.name for each in here.iterdir()} == names
    assert json.loads((here / "benchmark.json").read_text())["subject"] == "hub:ann/digits"
    assert main(["report", "hub:ann/digits", str(run)]) == 0
    page = (here / "comparison.html").read_text()
    assert "digits small" in page
    assert f"{run.name} small" in page
    assert hub.head("ann/digits") not in page
    assert not {each.name for each in (tmp_path / "cache").rglob("*")} & names


def test_a_run_is_not_trained_into_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for place in ("hub:ann/new", Path("hub:ann/new")):
        with pytest.raises(
            AdjoinedError, match=r"^hub:ann/new: a run is written on this machine, .* adjoined push FOLDER"
        ):
            train(TINY, place, console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_revision_can_be_named_and_the_cache_works_offline(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert main(["push", str(run), "--to", "hub:ann/digits"]) == 0
    first = hub.head("ann/digits")
    other = train(TINY.__class__(**{**vars(TINY), "seed": 5}), tmp_path / "other", console=QUIET).folder
    assert main(["push", str(other), "--to", "hub:ann/digits"]) == 0
    assert hub.head("ann/digits") != first
    assert same(adjoined.load("hub:ann/digits"), adjoined.load(other))
    with pytest.raises(AdjoinedError, match="no such revision"):
        adjoined.load("hub:ann/digits@v9")
    latest = hub.head("ann/digits")
    assert same(adjoined.load(f"hub:ann/digits@{latest}"), adjoined.load(other))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(adjoined.load("hub:ann/digits"), adjoined.load(other))


def test_a_damaged_or_foreign_download_is_refused(run: Path, hub: Hub):
    assert main(["push", str(run), "--to", "hub:ann/digits"]) == 0
    files = hub.repositories["ann/digits"]
    files["small.safetensors"] = files["small.safetensors"][:-1] + b"x"
    with pytest.raises(AdjoinedError, match="the weights are not those that the run wrote"):
        adjoined.load("hub:ann/digits")


# ---- the card, and what stays at home --------------------------------------------------------------------------------


def test_the_card_says_what_the_run_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run), "--to", str(tmp_path / "shared"), "--license", "apache-2.0"]) == 0
    assert f"written: {tmp_path / 'shared'}" in capsys.readouterr().out
    text = (tmp_path / "shared" / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    entries = yaml.safe_load(metadata)
    assert (entries["license"], entries["library_name"], entries["pipeline_tag"]) == (
        "apache-2.0", "adjoined", "image-classification",
    )  # fmt: skip
    recorded = json.loads((run / "run.json").read_text())["result"]["networks"]
    (index,) = entries["model-index"]
    (result,) = index["results"]
    assert (index["name"], result["dataset"]["name"]) == ("shared", TINY.data)
    for metric, wanted in zip(result["metrics"], recorded, strict=True):
        assert metric["name"] == f"top-1 accuracy of {wanted['name']}"
        assert metric["value"] == pytest.approx(wanted["top1"], abs=1e-6)
        assert f"{wanted['top1']:.2%}".replace("%", " %") in body
    assert f"adjoined.load('{tmp_path / 'shared'}', 'small')" in body
    base, small = (wanted["parameters"] for wanted in recorded)
    assert f"and a small network with {base / small:.1f} times fewer parameters, trained on digits" in body
    assert "Loading never runs code" in body
    assert "2 epochs, batches of 32, sgd" in body
    assert "Classes: 0, 1, 2" in body
    for name in ("base.safetensors", "small.json", "settings.yaml"):
        assert f"- `{name}`" in body
    assert same(adjoined.load(tmp_path / "shared"), adjoined.load(run))


def test_nothing_of_this_machine_is_shared(tmp_path: Path):
    settings = with_code(tmp_path)
    run = train(settings, tmp_path / "run", console=QUIET).folder
    at_home = run.joinpath("run.json").read_text() + run.joinpath("settings.yaml").read_text()
    assert str(tmp_path) in at_home  # the check below can fail
    assert platform.node() in at_home
    assert main(["push", str(run), "--to", str(tmp_path / "shared"), "--model", settings.model]) == 0
    for path in (tmp_path / "shared").rglob("*"):
        if path.suffix in (".json", ".yaml", ".csv"):
            assert str(tmp_path) not in path.read_text(), path
            assert platform.node() not in path.read_text(), path
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "'small', model='net.py:make')" in card
    assert "author's own code builds the model" in card
    with pytest.raises(AdjoinedError, match="a file never decides which code runs"):
        adjoined.load(tmp_path / "shared")
    assert same_classes(
        adjoined.load(tmp_path / "shared", model=settings.model), adjoined.load(run, model=settings.model)
    )


def same_classes(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes_are_reported_in_one_line_and_leave_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert "--to: the destination is missing" in fails(capsys, "push", run)
    assert "hub:digits: not a name on a hub (expected hub:OWNER/NAME" in fails(
        capsys, "push", run, "--to", "hub:digits"
    )
    assert "the folder exists already" in fails(capsys, "push", run, "--to", tmp_path)
    assert "write --to hub:ann/digits for" in fails(capsys, "push", run, "--to", "ann/digits")
    assert "there is no run in this folder" in fails(capsys, "push", tmp_path, "--to", tmp_path / "new")
    assert "nowhere: no such folder. Create it" in fails(capsys, "push", run, "--to", tmp_path / "nowhere" / "new")
    (run / "small.safetensors").write_bytes(b"damaged")
    assert "the weights are not those" in fails(capsys, "push", run, "--to", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_what_a_hub_refuses_is_reported_in_one_line(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    push = ("push", run, "--to", "hub:ann/digits")
    for status, message in ((403, "the hub denies permission"), (401, "you are not logged in to the hub")):
        hub.closed_to["ann/digits"] = status
        assert message in fails(capsys, *push)
    hub.closed_to.clear()
    with pytest.raises(AdjoinedError, match=r"hub:ann/nothing: no such run on the hub, or you have no access"):
        adjoined.load("hub:ann/nothing")
    hub.repositories["ann/empty"] = {"README.md": b"# nothing"}
    with pytest.raises(AdjoinedError, match="no such finished network"):
        adjoined.load("hub:ann/empty")
    assert "a run is pushed to a name, not to a revision" in fails(capsys, *push[:3], "hub:ann/digits@v1")


def test_what_is_to_be_private_is_never_published(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]):
    assert main(["push", str(run), "--to", "hub:ann/open"]) == 0
    before = dict(hub.repositories["ann/open"]), list(hub.commits)
    capsys.readouterr()
    error = fails(capsys, "push", run, "--to", "hub:ann/open", "--private", "--license", "mit")
    assert "hub:ann/open: the repository exists and is public, so nothing was uploaded" in error
    assert (hub.repositories["ann/open"], hub.commits) == before
    for _ in range(2):  # a new one, and then the same one
        assert main(["push", str(run), "--to", "hub:ann/closed", "--private"]) == 0
    assert hub.private == {"ann/open": False, "ann/closed": True}
    capsys.readouterr()
    assert "--private: has no effect" in fails(capsys, "push", run, "--to", run.parent / "shared", "--private")
    assert not (run.parent / "shared").exists()


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path: Path):
    code = "import adjoined; adjoined.load('hub:ann/digits')"
    shell = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=shell | {"HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "hub:ann/digits: the hub cannot be reached, and the run is not in the cache" in done.stderr.splitlines()[-1]


def test_a_missing_extra_is_reported_with_the_install_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = util.find_spec
    monkeypatch.setattr("adjoined.runs.hub.find_spec", lambda name: None if name == "huggingface_hub" else found(name))
    assert "pip install 'adjoined[hub]'" in fails(capsys, "push", run, "--to", "hub:ann/digits")
    with pytest.raises(AdjoinedError, match="huggingface_hub, which is not installed"):
        adjoined.load("hub:ann/digits")


def test_the_card_names_the_model_of_a_teacher_that_is_another_one(tmp_path: Path):
    """The teacher is a library's model, the student the user's own."""
    teacher = replace(TINY, model="resnet14", epochs=1).for_method("standard")
    train(teacher, tmp_path / "teacher", console=QUIET)
    settings = replace(with_code(tmp_path), epochs=1).for_method("distillation", teacher=str(tmp_path / "teacher"))
    train(settings, tmp_path / "run", console=QUIET)
    assert main(["push", str(tmp_path / "run"), "--model", settings.model, "--to", str(tmp_path / "pushed")]) == 0
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert "A base network (adjoined:resnet14) and a small network with" in card
    assert "A small network has the layers of net.py:make with fewer channels." in card
    place = str(tmp_path / "pushed")
    assert f"base = adjoined.load({place!r}, 'base')\n" in card
    assert f"small = adjoined.load({place!r}, 'small', model='net.py:make')\n" in card
    assert same(adjoined.load(place, "base"), adjoined.load(tmp_path / "teacher", "base"))
    other = replace(TINY, epochs=1).for_method("distillation", teacher=str(tmp_path / "run"))
    train(other, tmp_path / "again", console=QUIET)  # its base is a library's
    train(settings.for_method("standard"), tmp_path / "own", console=QUIET)
    with pytest.raises(AdjoinedError, match=r"built by your own code.*got .*net\.py:make.*Use the same code"):
        train(replace(other, teacher=str(tmp_path / "own")), tmp_path / "never", console=QUIET)
