"""What a run does when something outside it fails: names, numbers, readers and disks."""

import io
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from adjoined.errors import AdjoinedError
from adjoined.runs import RunFolder
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.finite import NotFinite, not_finite_in
from adjoined.training.job import make_job
from adjoined.training.optimizers import make_optimizer, make_schedule, scale_rates
from forked import run_forked
from mistakes import fails
from tiny_runs import QUIET, TINY, with_code

ADJOINED = str(Path(sys.executable).parent / "adjoined")
QUICK = ["--recipe", "digits", "--limit", "16", "--batch-size", "32", "--augment", "none", "--accelerator", "cpu"]


def photos(root: Path, *classes: bytes, images: int = 4) -> Path:
    for number, name in enumerate(classes):
        folder = os.fsencode(root) + b"/" + name
        os.makedirs(folder)
        for index in range(images):
            pixels = np.full((8, 8, 3), 40 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsdecode(folder + b"/%d.png" % index))
    return root


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_class_whose_name_is_not_unicode_is_trained(tmp_path):
    data = photos(tmp_path / "photos", b"ant", b"b\xe9e")
    settings = replace(TINY, data=f"folder:{data}", image_size=16, model="resnet20", model_options={}, batch_size=2)
    result = train(replace(settings, epochs=1), tmp_path / "run", console=QUIET)
    names = json.loads((result.folder / "small.json").read_bytes())["data"]["class_names"]
    assert names[0] == "ant"
    names[1].encode()  # as everything that is written


def test_a_folder_whose_name_is_not_unicode_is_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    moved = run.rename(os.fsdecode(os.fsencode(run.parent) + b"/caf\xe9"))
    for argv in (["evaluate", moved], ["export", moved], ["train", "--recipe", "digits", "--run", f"{moved}2"]):
        assert "caf\\xe9" in (message := fails(capsys, *argv))
        assert "a name is not valid Unicode. Rename the folder" in message
    run = moved.rename(run)
    assert "not valid Unicode" in fails(capsys, "export", run, "--out", moved)
    assert not moved.exists()


def test_what_cannot_be_written_at_the_end_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(num_classes, name):\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(576, num_classes))"
    )
    shown = io.StringIO()
    settings = replace(TINY, model=f"{tmp_path}/net.py:make", model_options={"name": "caf\udce9"})
    with pytest.raises(AdjoinedError, match=r"not valid Unicode, so the run could not be finished.*caf\\udce9"):
        train(settings, tmp_path / "run", console=Console(file=shown))
    assert not shown.getvalue()
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_built_again_is_found_before_the_first_step(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nbuilt = []\ndef make(num_classes):\n    built.append(0)\n"
        "    n = 16 * len(built)\n"
        "    return nn.Sequential(nn.Conv2d(1, n, 3), nn.Flatten(), nn.Linear(36 * n, num_classes))"
    )
    settings = replace(TINY, model=f"{tmp_path}/net.py:make", model_options={})
    with pytest.raises(AdjoinedError, match="could not be finished"):
        train(settings, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


# ---- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing_but_the_dates(tmp_path, monkeypatch):
    """An hour back every time it is read: durations come from the monotonic clock."""
    looks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(looks))
    settings = with_code(tmp_path)
    jumped = train(settings, tmp_path / "jumped", console=QUIET)
    assert next(looks) > 0, "the clock was never read"
    monkeypatch.undo()
    plain = train(settings, tmp_path / "plain", console=QUIET)
    for name in ("base", "small"):
        one, other = ((each.folder / f"{name}.safetensors").read_bytes() for each in (jumped, plain))
        assert one == other
    rows = (tmp_path / "jumped" / "metrics.csv").read_text().splitlines()
    place = rows[0].split(",").index("seconds")
    assert all(0 <= float(row.split(",")[place]) < 600 for row in rows[1:])
    assert all(0 <= stage.seconds < 600 for stage in jumped.stages)


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": {"w": torch.tensor([1.0, float("nan")])}},
        {"state_dict": {}, "current_model_state": {"running_var": torch.tensor(float("inf"))}},
        {"optimizer_states": [{"state": {0: {"exp_avg": torch.tensor([float("nan")])}}}]},
        {"optimizer_states": [{"state": {}, "param_groups": [{"lr": float("nan")}]}]},
    ],
    ids=["weight", "buffer", "moment", "rate"],
)
def test_what_is_not_finite_in_a_checkpoint_is_found(checkpoint):
    assert not_finite_in(checkpoint)


def test_a_mask_of_infinities_is_allowed():
    state = {"mask": torch.tensor([0.0, float("-inf")]), "steps": torch.tensor(3), "w": torch.ones(2)}
    assert not not_finite_in({"state_dict": state, "optimizer_states": []}, allowed={"mask"})


BROKEN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, place):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Linear(576, num_classes)
        self.register_buffer("mask", torch.full((2,), -torch.inf))
        self.register_buffer("statistic", torch.zeros(2))
        self.steps, self.place = 0, place

    def forward(self, x):
        self.steps += self.training
        z = self.head(self.norm(self.conv(x)).relu().flatten(1))
        if self.training and self.steps == 10:  # the last step of the second epoch; its loss is finite
            if self.place == "buffer":
                self.statistic = self.statistic / 0
            elif z.requires_grad:
                z.register_hook(lambda gradient: gradient * torch.nan)
        return z

def make(num_classes, place):
    return Net(num_classes, place)
"""


@pytest.mark.parametrize("place", ["buffer", "weight"])
@pytest.mark.parametrize("method", [pytest.param("standard", marks=pytest.mark.slow), "adjoint"])
def test_weights_that_explode_in_the_last_step_never_replace_a_good_checkpoint(place, method, tmp_path):
    (tmp_path / "net.py").write_text(BROKEN)
    code = {"model": f"{tmp_path}/net.py:make", "model_options": {"place": place}}
    settings = replace(TINY, **code).for_method(method)
    with pytest.raises(NotFinite, match=r"epoch 2, step 10: .*last good.*--resume.*--lr 0.01"):
        train(settings, tmp_path / "run", console=QUIET)
    run = RunFolder(tmp_path / "run")
    last = torch.load(run.last, weights_only=True)
    assert last["global_step"] == 5
    assert not not_finite_in(last, allowed={name for name in last["state_dict"] if name.endswith("mask")})
    assert not run.finished
    result = train(replace(settings, lr=0.01), run.path, resume=True, console=QUIET)  # the remedy that is named
    assert all(np.isfinite(network.loss) for network in result.networks)
    assert json.loads(run.record.read_text())["sittings"][-1]["changed"] == {"lr": {"from": 0.1, "to": 0.01}}
    assert run.read_settings().lr == 0.01


@pytest.mark.parametrize("change", [{}, {"schedule": "onecycle"}, {"optimizer": "adamw", "warmup_epochs": 1.0}])
def test_another_rate_on_resume_is_the_schedule_of_that_rate(change):
    settings = replace(TINY, epochs=4, lr=0.1, **change)
    network = make_job(settings).network

    def made(settings: Settings):
        optimizer = make_optimizer(settings, network)
        return optimizer, make_schedule(settings, optimizer, 20)

    def rates(optimizer, schedule, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    before, after = made(settings), made(replace(settings, lr=0.02))
    rates(*before, 7)
    kept = {"optimizer_states": [before[0].state_dict()], "lr_schedulers": [before[1].state_dict()]}
    scale_rates(kept, 0.2)
    resumed = made(replace(settings, lr=0.02))
    resumed[0].load_state_dict(kept["optimizer_states"][0])
    resumed[1].load_state_dict(kept["lr_schedulers"][0])
    assert rates(*resumed, 13) == pytest.approx(rates(*after, 20)[7:])


def test_one_value_per_channel_names_the_batch_size(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 8), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, num_classes))"
    )
    settings = replace(TINY, model=f"{tmp_path}/net.py:make", model_options={}, batch_size=1, epochs=1)
    with pytest.raises(AdjoinedError, match=r"--batch-size 1: .*one value per channel"):
        train(settings, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_display_settings_may_change_on_resume(tmp_path):
    settings = replace(with_code(tmp_path), model_options={"fails_at": 8, "by": "SIGINT"})
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", console=QUIET)
    told_anew = replace(settings, log_every=1, checkpoint_every=2, eval_batch_size=64)
    assert train(told_anew, tmp_path / "run", resume=True, console=QUIET).networks


# ---- readers and disks -----------------------------------------------------------------------------------------------


class Gone(io.TextIOBase):
    """A stream whose reader has gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "console"),
    [
        (BrokenPipeError(32, "Broken pipe"), None),
        (OSError(28, "No space left on device"), {}),
        (ValueError("closed"), {"force_terminal": True}),
    ],
    ids=["pipe", "disk", "closed"],
)
def test_output_that_cannot_be_written_never_stops_a_run(error, console, tmp_path, monkeypatch):
    gone: Any = Gone(error)
    monkeypatch.setattr(sys, "stdout", gone)
    monkeypatch.setattr(sys, "stderr", gone)
    shown = None if console is None else Console(file=gone, **console)
    assert train(replace(with_code(tmp_path), epochs=1), tmp_path / "run", console=shown).networks


PIPED = """
import os, subprocess, sys

from adjoined.cli import main

reader = subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE)
os.dup2(reader.stdin.fileno(), 1)
reader.stdin.close()
sys.exit(main())
"""


def test_a_closed_pipe_does_not_end_the_command(tmp_path):
    done = run_forked("-c", PIPED, "train", *QUICK, "--epochs", "3", "--run", "run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert RunFolder(tmp_path / "run").finished
    assert "the run is complete: run" in done.stderr


def test_tensorboard_on_a_full_disk_does_not_stop_a_run(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    assert train(replace(TINY, epochs=1), tmp_path / "run", console=QUIET).networks
    assert "no more TensorBoard files" in capsys.readouterr().err


def test_a_run_folder_that_vanishes_ends_in_one_line(tmp_path):
    settings = replace(TINY, epochs=3)
    with pytest.raises(AdjoinedError) as caught:
        train(settings, tmp_path / "run", console=QUIET, announce=lambda _: shutil.rmtree(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert f"{tmp_path / 'run'}: the run's folder was renamed, moved or removed" in str(caught.value)


def test_a_run_writes_nothing_into_another_that_has_started_in_its_place(tmp_path):
    """`mv run old; adjoined train --run run` while the first is still training, as it does for minutes in an epoch."""
    run, old, other = (tmp_path / name for name in ("run", "old", "other"))
    settings = with_code(tmp_path)
    train(replace(settings, epochs=1, seed=1), other, console=QUIET)
    record = json.loads((other / "run.json").read_bytes())
    record["sittings"][0]["host"] = "elsewhere"
    (other / "run.json").write_text(json.dumps(record))
    shutil.rmtree(other / "checkpoints")  # its first epoch has not ended
    files = {each.relative_to(other): each.read_bytes() for each in other.rglob("*") if each.is_file()}

    def replaced(_):
        run.rename(old)
        other.rename(run)

    with pytest.raises(AdjoinedError, match=r"another process has started .* resume it where it is now"):
        train(settings, run, console=QUIET, announce=replaced)
    assert {each: (run / each).read_bytes() for each in files} == files
    train(settings, old, console=QUIET, resume=True)
    assert RunFolder(old).finished
