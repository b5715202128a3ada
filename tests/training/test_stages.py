"""Methods with several stages: their total cost, what they pass on, and that a killed run resumes in its stage."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoined.cli import main
from adjoined.errors import AdjoinedError
from adjoined.methods import METHODS
from adjoined.runs import RunFolder, RunResult, load
from adjoined.settings import Settings
from adjoined.training import train
from forked import run_forked
from tiny_runs import NORMED, QUIET, with_code


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Settings:
    """Digits of 8x8 pixels, 5 steps an epoch."""
    return replace(with_code(tmp_path_factory.mktemp("code"), NORMED), epochs=1, lr=0.05)


@pytest.fixture(scope="module")
def standard(short, tmp_path_factory) -> RunResult:
    return train(short.for_method("standard"), tmp_path_factory.mktemp("standard") / "run", console=QUIET)


def same(one: Path, other: Path, network: str) -> bool:
    return (one / f"{network}.safetensors").read_bytes() == (other / f"{network}.safetensors").read_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_from_the_command_line(name, short, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adjoined.commands.outcome.latency", lambda modules, *_, **__: dict.fromkeys(modules))
    run = tmp_path / "run"
    argv = ["--epochs", "1", "--warmup-epochs", "0", "--limit", "16", "--batch-size", "32", "--model", short.model]
    assert main(["train", "--method", name, *argv, "--run", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["networks"]
    for network in result["networks"]:
        module = load(run, network["name"], model=short.model)
        assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
        assert all(each.isfinite().all() for each in module.parameters())
    stages = {stage["name"]: stage for stage in result["stages"]}
    assert list(stages)[-1] == name
    assert all(stage["macs"] > 0 and stage["seconds"] >= 0 for stage in stages.values())
    assert result["epochs"] == sum(stage["epochs"] for stage in stages.values())
    assert "top-1 accuracy" in capsys.readouterr().out


def test_distillation_has_the_teacher_of_a_standard_run(short, standard, tmp_path):
    result = train(short.for_method("distillation"), tmp_path / "run", console=QUIET)
    assert [each.name for each in result.networks] == ["base", "small"]
    assert same(result.folder, standard.folder, "base")
    assert result.stages[0].macs == standard.macs
    assert result.macs == sum(stage.macs or 0 for stage in result.stages)
    assert result.networks[0].top1 == standard.networks[0].top1
    assert result.networks[1].parameters < result.networks[0].parameters
    # A run that is known already, and one that is given as the teacher, take the place of the first stage.
    for number, (change, known) in enumerate([({}, [standard.folder]), ({"teacher": str(standard.folder)}, [])]):
        settings = short.for_method("distillation", **change)
        again = train(settings, tmp_path / f"again-{number}", console=QUIET, known=known)
        assert same(again.folder, result.folder, "base")
        assert same(again.folder, result.folder, "small")
        assert again.macs == result.macs
        assert not (again.folder / "stages" / "teacher" / "checkpoints").exists()  # it was copied, not trained


def test_a_run_of_other_settings_is_not_taken_for_a_stage(short, standard, tmp_path):
    settings = replace(short.for_method("distillation"), seed=1)
    result = train(settings, tmp_path / "run", console=QUIET, known=[standard.folder])
    assert not same(result.folder, standard.folder, "base")
    assert (result.folder / "stages" / "teacher" / "checkpoints").exists()


def test_whether_a_teacher_knows_validation_images_in_memory_is_left_open(short, standard, tmp_path):
    settings = replace(short.for_method("distillation", teacher=str(standard.folder)), split_seed=1)
    result = train(settings, tmp_path / "run", console=QUIET)
    assert result.val_name == "held-out split, seed 1, some perhaps trained on by the teacher"
    assert result.networks[0].loss != standard.networks[0].loss
    settings = replace(settings, split_seed=0, limit=12)  # other training images only
    result = train(settings, tmp_path / "other", console=QUIET)
    assert result.val_name == "held-out split, seed 0"
    assert result.networks[0].loss == standard.networks[0].loss


@pytest.mark.parametrize("case", ["no run", "other classes", "another task", "another crop"])
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(case, short, standard, tmp_path):
    teacher = tmp_path / "teacher"
    if case != "no run":
        RunFolder(teacher).path.mkdir(exist_ok=True)
        for file in standard.folder.glob("*.*"):
            (teacher / file.name).write_bytes(file.read_bytes())
        description = json.loads((teacher / "base.json").read_text())
        data = description["data"]
        changes = {
            "other classes": {"class_names": ["nought", *data["class_names"][1:]]},
            "another task": {"task": "multilabel"},
            "another crop": {"resize": data["resize"] + 1},
        }
        data.update(changes[case])
        (teacher / "base.json").write_text(json.dumps(description))
    with pytest.raises(AdjoinedError, match="--teacher"):
        train(short.for_method("distillation", teacher=str(teacher)), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_several_stages_train_on_one_device(short, tmp_path):
    with pytest.raises(AdjoinedError, match="on one device"):
        train(replace(short.for_method("distillation"), devices=2), tmp_path / "run", console=QUIET)


# ---- killed and resumed ----------------------------------------------------------------------------------------------

# Run as a program: train, and be killed by SIGKILL when a file is about to be written for the n-th time.
KILLED = """
import os, signal, sys
from adjoined.settings import Settings
from adjoined.training import train
from rich.console import Console
where, times, folder, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
replace = os.replace
def killing(source, target):
    global times
    times -= str(target).endswith(where)
    if times == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killing
train(Settings.from_yaml(settings), folder, resume=True, console=Console(quiet=True))
"""
MOMENTS = {
    "in the first stage": ("stages/base/checkpoints/last.ckpt", 1),
    "at the end of the first stage": ("stages/base/base.safetensors", 1),
    "between the stages": ("run/plan.json", 1),
    "in the last stage": ("run/checkpoints/last.ckpt", 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Settings, Path]:
    """An uninterrupted run of filter pruning."""
    settings = with_code(folder := tmp_path_factory.mktemp("whole"))
    settings = replace(settings, method="filter-pruning", epochs=2, alpha=2.0)
    train(settings, folder / "run", console=QUIET)
    return settings, folder / "run"


SOME = ("in the first stage", "in the last stage")


@pytest.mark.parametrize("moment", [m if m in SOME else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_a_killed_run_resumes_in_its_stage_and_ends_the_same(moment, whole, tmp_path):
    settings, reference = whole
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    place, times = MOMENTS[moment]
    done = run_forked("-c", KILLED, place, times, tmp_path / "run", tmp_path / "settings.yaml")
    assert done.returncode == -signal.SIGKILL, done.stderr
    base = RunFolder(tmp_path / "run" / "stages" / "base")
    finished = base.finished
    assert finished == (moment in ("between the stages", "in the last stage"))
    before = base.record.read_bytes()
    result = train(settings, tmp_path / "run", resume=True, console=QUIET)
    assert (base.record.read_bytes() == before) == finished  # a finished stage is not done again
    for network in ("base", "small"):
        assert same(result.folder, reference, network)
    assert [stage.name for stage in result.stages] == ["base", "filter-pruning"]
    assert isinstance(load(result.folder, "small", model=settings.model), nn.Module)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["sittings"]) == 2


def test_a_stopped_stage_says_how_to_resume_the_run(tmp_path, monkeypatch):
    settings = replace(with_code(tmp_path), method="distillation", alpha=2.0)
    settings = replace(settings, model_options={"fails_at": 3, "by": "nan"})
    with pytest.raises(AdjoinedError, match="no longer finite"):
        train(settings, tmp_path / "run", console=QUIET)
    settings = replace(settings, model_options={"fails_at": 3, "by": "SIGTERM"})
    with pytest.raises(
        KeyboardInterrupt, match=f"adjoined train --resume {tmp_path}/other --model {tmp_path}/net.py:make$"
    ):
        train(settings, tmp_path / "other", console=QUIET)


@pytest.mark.parametrize("method", ["distillation", "filter-pruning", "replay"])
@pytest.mark.parametrize(
    ("change", "flag"),
    [({"alpha": [2.0, 4.0]}, "--alpha"), ({"keep": ["nowhere"]}, "keep"), ({"budget": "10 parameters"}, "budget")],
)
def test_what_the_last_stage_would_refuse_is_refused_before_the_first(method, change, flag, short, tmp_path):
    with pytest.raises(AdjoinedError, match=flag):
        train(short.for_method(method, **change), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()
