"""timm's tasks: their checkpoints hold both networks, its script runs unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.utils import CheckpointSaver
from torch import nn

from adjoined import AdjoinedError, adjoint_loss
from adjoined.integrations.timm import MOST_IN_A_STEP, AdjoinedTask, finished, from_checkpoint, main

X, Y = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def make_model() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=3, in_chans=1)


def trained(steps: int = 3) -> tuple[AdjoinedTask, torch.optim.Optimizer]:
    torch.manual_seed(0)
    task = AdjoinedTask(make_model(), nn.CrossEntropyLoss(), updates=4, verbose=False)
    task.setup_ema(decay=0.5)
    optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        task(X, Y)["loss"].backward()
        optimizer.step()
        task.update_ema()
        task.step_update(step + 1)
    return task, optimizer


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_of_timm_holds_both_networks(tmp_path: Path, ema: bool):
    task, optimizer = trained()
    saver = CheckpointSaver(
        task.net, optimizer, args=Namespace(model="resnet10t"), checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path), task=task,
    )  # fmt: skip
    saver.save_checkpoint(0, 50.0)
    joint = (task.get_trainable_module(ema=True).module if ema else task.net).eval()
    base, small = finished(make_model(), tmp_path / "last.pth.tar", ema=ema)
    with torch.no_grad():
        p, q = joint(X)
        assert torch.equal(base(X), p)
        torch.testing.assert_close(small(X), q, rtol=1e-5, atol=1e-6)
        again = from_checkpoint(make_model(), tmp_path / "last.pth.tar", ema=ema)(X)
        assert torch.equal(again[0], p)
        assert torch.equal(again[1], q)
    assert sum(each.numel() for each in small.parameters()) < 0.1 * sum(each.numel() for each in base.parameters())


def test_a_task_resumes():
    task, _ = trained()
    torch.manual_seed(1)
    other = AdjoinedTask(make_model(), nn.CrossEntropyLoss(), updates=4, verbose=False)
    state = task.get_checkpoint_state()
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert other.done == 3
    assert torch.equal(other.eval()(X, Y)["loss"], task.eval()(X, Y)["loss"])


@pytest.mark.parametrize("counted", [False, True])
def test_a_loop_that_does_not_count_its_steps_is_told(counted: bool):
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    task = AdjoinedTask(model, updates=2 * MOST_IN_A_STEP, example_input=X[:1], verbose=False)
    heard = []
    for step in range(MOST_IN_A_STEP + 1):
        with warnings.catch_warnings(record=True, action="always") as each:
            task(X[:2], Y[:2])
        heard += [(step + 1, str(one.message)) for one in each]
        if counted:
            task.step_update(step + 1)
    assert len(heard) == (not counted)
    assert all(step == MOST_IN_A_STEP and "task.step_update(step)" in text for step, text in heard)


@pytest.mark.parametrize("done", [0, 1, 4])
def test_the_loss_is_that_of_adjoint_plus(done: int):
    task, _ = trained(0)
    task.done = done
    p, q = task.net.eval()(X)
    expected = adjoint_loss(p, q, Y, progress=done / 4, detach=True, temperature=4, small_ce=1)
    torch.testing.assert_close(task.eval()(X, Y)["loss"], expected)


def test_small_terms_do_not_reach_the_base_s_own_layers():
    """The last layer is the base's own, so its gradient is that of the base's loss alone."""
    task, _ = trained(0)
    task.done = 4
    task(X, Y)["loss"].backward()
    joint = task.net.base.get_classifier().weight.grad.clone()
    task.zero_grad()
    task.net.train()
    nn.functional.cross_entropy(task.net(X)[0], Y).backward()
    torch.testing.assert_close(joint, task.net.base.get_classifier().weight.grad)


def test_what_is_missing_is_reported():
    task = AdjoinedTask(make_model(), verbose=False)
    with pytest.raises(AdjoinedError, match="length of the training"):
        task(X, Y)
    with pytest.raises(AdjoinedError, match="example_input"):
        AdjoinedTask(nn.Sequential(nn.Conv2d(3, 8, 3)), verbose=False)


def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "x.pth.tar"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(AdjoinedError, match="cannot be read"):
        finished(make_model(), path)


def test_clipping_leaves_out_the_head_of_every_network():
    task = AdjoinedTask(make_model(), updates=1, alpha=4, verbose=False)
    names = {id(parameter): name for name, parameter in task.net.named_parameters()}
    assert [names[id(each)] for each in task.get_clip_parameters()] == list(names.values())
    left_out = set(names) - {id(each) for each in task.get_clip_parameters(exclude_head=True)}
    assert {names[each] for each in left_out} == {
        f"{network}.fc.{name}" for network in ("base", "smalls.0") for name in ("weight", "bias")
    }


def test_the_criterion_is_made_by_its_settings():
    task = AdjoinedTask(make_model(), criterion_kwargs={"smoothing": 0.25}, updates=1, verbose=False)
    assert task.criterion.smoothing == 0.25  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]


SCRIPT = """
import timm, torch
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, LogitDistillationTask
model = timm.create_model("resnet10t", num_classes=3)
TASK
scheduler, _ = create_scheduler_v2(torch.optim.SGD(model.parameters()), sched=SCHED, num_epochs=2, updates_per_epoch=3)
"""


@pytest.mark.parametrize(
    ("task", "sched", "message"),
    [("", "'cosine'", "ClassificationTask.*left out"), ("ClassificationTask(model)", "'none'", "without a scheduler")],
)
def test_a_script_that_would_train_the_base_alone_is_refused(
    tmp_path: Path,
    task: str,
    sched: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(sys, "argv", sys.argv)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("TASK", task).replace("SCHED", sched))
    with pytest.raises(SystemExit, match="2"):
        main([str(script)])
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "Traceback" not in error


@pytest.mark.parametrize("end", ["", "import sys; sys.exit(0)", "import os; os._exit(0)"])
def test_a_loop_of_its_own_is_refused_at_its_first_step(
    tmp_path: Path, end: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", sys.argv)
    script = tmp_path / "train.py"
    step = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]).step(); print('trained'); "
    for each in (step + end, "print('nothing')"):
        script.write_text(each)
        with pytest.raises(SystemExit, match="2"):
            main([str(script)])
        out, error = capsys.readouterr()
        assert "ClassificationTask, so the small network is left out" in error
        assert "trained" not in out


@pytest.mark.parametrize(("flag", "code"), [("--help", "0"), ("--unknown", "2")])
def test_help_and_arguments_are_the_script_s_own(
    tmp_path: Path, flag: str, code: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", sys.argv)
    script = tmp_path / "train.py"
    script.write_text("import argparse; argparse.ArgumentParser(prog='theirs').parse_args()")
    with pytest.raises(SystemExit, match=code):
        main([str(script), flag])
    out, error = capsys.readouterr()
    assert "usage: theirs" in out + error
    assert "small network" not in error


def test_timms_own_script_runs_unchanged(tmp_path: Path):
    script = os.environ.get("TIMM_TRAIN_SCRIPT", "")
    if not script:
        pytest.skip("timm's packages do not hold its train.py; name it in TIMM_TRAIN_SCRIPT")
    for split in ("train", "validation"):
        for label, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(16):
                Image.new("RGB", (40, 40), tuple(max(0, c - 4 * number) for c in colour)).save(folder / f"{number}.png")
    command = [
        sys.executable, "-m", "adjoined.integrations.timm", "--alpha", "4", script, "--data-dir", tmp_path / "data",
        "--model", "resnet10t", "--num-classes", "3", "--epochs", "2", "-b", "16", "--input-size", "3", "32", "32",
        "--device", "cpu", "-j", "0", "--no-prefetcher", "--lr", "0.05", "--model-ema", "--output", tmp_path / "out",
        "--experiment", "x",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for ema in (False, True):
        model = timm.create_model("resnet10t", num_classes=3)
        base, small = finished(model, tmp_path / "out" / "x" / "last.pth.tar", ema=ema)
        assert base(torch.zeros(1, 3, 32, 32)).shape == small(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
