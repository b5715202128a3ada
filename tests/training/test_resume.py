"""Law 6: a run that is killed anywhere and resumed ends like an uninterrupted one, bit for bit on a CPU.

The kills are real: this file, run as a program, forks a process for every run, and SIGKILL ends it. A program of its
own, because a test process has threads, which a fork does not take along.
"""

import csv
import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forked import run_forked

# Everything that has a state: momentum, averages of the weights, mixing, dropout, warm-up, the best epochs so far.
SETTINGS = {
    "epochs": 3,
    "warmup_epochs": 0.5,
    "batch_size": 64,
    "limit": 16,
    "lr": 0.05,
    "ema": 0.8,
    "mixup": 0.4,
    "log_every": 1,
    "accelerator": "cpu",
}
OTHER = {
    **SETTINGS,
    "ema": 0.0,
    "optimizer": "adamw",
    "lr": 0.005,
    "schedule": "onecycle",
    "accumulate": 2,
    "grad_clip": 1.0,
    "workers": 1,
    "checkpoint_every": 2,
    "alpha": [2.0, 4.0],
}
# Everything that comes before the first step: searched widths, ordered channels, a small network that inherits.
PRETRAINED = {
    **SETTINGS,
    "pretrained": True,
    "method": "transfer",
    "optimizer": "adamw",
    "lr": 0.002,
    "freeze": ["0", "1"],
    "layer_decay": 0.7,
    "widths": "search",
    "budget": "20 k parameters",
    "round_to": 1,
}
MODEL = """
import torch
from torch import nn

def make(num_classes, pretrained=False):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, num_classes),
    )
    if pretrained:
        weights = torch.Generator().manual_seed(7)
        for tensor in (*model.parameters(), model[1].running_mean, model[4].running_mean):
            tensor.data.add_(torch.randn(tensor.shape, generator=weights), alpha=0.1)
    return model
"""
# Two runs, each killed four times: (file, how many times this process has written it before, when to kill).
MOMENTS = [
    [
        ("settings.yaml", 0, "before the rename"),
        ("last.ckpt", 0, "before the rename"),
        ("last.ckpt", 1, "half written"),
        ("metrics.csv", 1, "after the rename"),
    ],
    [
        ("base.safetensors", 0, "after the rename"),
        ("last.ckpt", 1, "after the rename"),
        ("run.json", 1, "before the rename"),
        ("run.json", 1, "after the rename"),
    ],
]
RANDOM_KILLS = 2
SIGNALS = (signal.SIGINT, signal.SIGKILL)
STOPPED = 130
"""Exit code after Ctrl-C."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Whole runs and killed ones: what happened to it -> its folder."""
    folder = tmp_path_factory.mktemp("runs")
    seed = random.SystemRandom().randrange(10**6)
    done = run_forked(__file__, folder, seed)
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    return {name: folder / place for name, place in json.loads(done.stdout.splitlines()[-1]).items()}


def test_every_kind_of_kill_took_place(runs):
    names = [name for name in runs if not name.startswith("whole")]
    assert len(names) == len(MOMENTS) + RANDOM_KILLS + 2 + len(SIGNALS)


def test_a_killed_run_ends_with_the_weights_of_the_whole_one(runs):
    for name, folder in runs.items():
        whole = runs[_whole_of(name)]
        files = sorted(each.name for each in whole.glob("*.safetensors"))
        assert files[0] == "base.safetensors"
        assert files == sorted(each.name for each in folder.glob("*.safetensors"))
        for file in files:
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), f"{file}, {name}"
            description = file.replace("safetensors", "json")
            text = (folder / description).read_text().replace("/there/net.py", "/net.py")
            assert text == (whole / description).read_text(), f"{description}, {name}"


def test_a_killed_run_ends_with_the_history_of_the_whole_one(runs):
    for name, folder in runs.items():
        whole = _history(runs[_whole_of(name)])
        assert [row["epoch"] for row in whole] == ["1", "2", "3"]
        assert _history(folder) == whole, name


def test_a_killed_run_ends_with_the_checkpoints_of_the_whole_one(runs):
    for name, folder in runs.items():
        whole = runs[_whole_of(name)] / "checkpoints"
        files = sorted(each.name for each in whole.iterdir())
        assert files == ["best", "last.ckpt"]
        assert files == sorted(each.name for each in (folder / "checkpoints").iterdir()), name
        ours, theirs = (torch.load(each / "last.ckpt", weights_only=True) for each in (folder / "checkpoints", whole))
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"):
            assert _equal(ours.get(part), theirs.get(part)), f"{part}, {name}"
        weights = sorted((whole / "best").glob("*.safetensors"))
        assert len(weights) > 1
        for file in weights:
            assert (folder / "checkpoints" / "best" / file.name).read_bytes() == file.read_bytes(), name


def test_nothing_is_left_over(runs):
    for name, folder in runs.items():
        record = json.loads((folder / "run.json").read_text())
        assert record["finished"], name
        assert not list(folder.rglob("*.part")), name


def _whole_of(name: str) -> str:
    _, comma, kind = name.partition(", ")
    return f"whole{comma}{kind}"


def _history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def _equal(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return ours == theirs


# ---- the program -----------------------------------------------------------------------------------------------------


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    from adjoined.settings import Settings

    (folder / "net.py").write_text(MODEL)
    model = {"model": f"{folder / 'net.py'}:make"}
    settings, other, pretrained = (Settings.from_dict({**each, **model}) for each in (SETTINGS, OTHER, PRETRAINED))
    dice = random.Random(seed)
    places = {}

    def new(name: str) -> Path:
        places[name] = f"run{len(places)}"
        return folder / places[name]

    seconds = _whole(settings, new("whole"))
    _whole(other, new("whole, other"))
    longer = _whole(pretrained, new("whole, pretrained"))
    for moments in MOMENTS:
        place = new("; ".join(f"{file} {times} {when}" for file, times, when in moments))
        for moment in moments:
            assert _run(settings, place, lambda at=moment: _die_at(*at)) == -signal.SIGKILL, moment
        assert _run(settings, place) == 0
    place = new("run and model moved")
    assert _run(settings, place, lambda: _die_at("last.ckpt", 1, "after the rename")) == -signal.SIGKILL
    there = folder / "there"
    there.mkdir()
    (there / "net.py").write_text(MODEL)
    places["run and model moved"] = str(place.rename(there / "its new name").relative_to(folder))
    assert _run(replace(settings, model=f"{there / 'net.py'}:make"), there / "its new name") == 0
    for number in range(RANDOM_KILLS):
        after = dice.uniform(0.05, 0.9) * seconds
        _killed_after(after, settings, folder / places.setdefault(f"random {number}", f"run{len(places)}"))
    _killed_after(seconds / 2, other, new("random, other"))
    for by in SIGNALS:
        _killed_after(dice.uniform(0.3, 0.9) * longer, pretrained, new(f"{by.name}, pretrained"), by)
    print(json.dumps(places))


def _whole(settings, folder: Path) -> float:
    began = time.monotonic()
    assert _run(settings, folder) == 0
    return time.monotonic() - began


def _killed_after(seconds: float, settings, folder: Path, by: signal.Signals = signal.SIGKILL) -> None:
    while (ended := _run(settings, folder, kill_after=seconds, by=by)) == 0:  # it was faster than the whole run
        folder.rename(folder.with_name(f"{folder.name}-too-fast-{seconds}"))
        seconds /= 2
    assert ended == (STOPPED if by is signal.SIGINT else -by)
    assert _run(settings, folder) == 0


def _run(
    settings,
    folder: Path,
    prepare=lambda: None,
    kill_after: float | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> int:
    """Train in a separate process, and return how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            from rich.console import Console

            from adjoined.commands.latency_flags import LatencyOptions
            from adjoined.commands.measured_first import measure_first
            from adjoined.runs import RunFolder
            from adjoined.training import train

            prepare()
            if (folder / "settings.yaml").exists() and settings.widths == "search":
                settings = replace(RunFolder(folder).read_settings(), model=settings.model)
            settings, _ = measure_first(settings, LatencyOptions())
            train(settings, folder, resume=folder.exists(), console=Console(quiet=True))
            code = 0
        except KeyboardInterrupt:
            code = STOPPED
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, by)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(file: str, times: int, when: str) -> None:
    """Arrange that this process kills itself around a certain rename."""
    rename, written = os.replace, 0

    def put(source, target) -> None:
        nonlocal written
        this = Path(target).name == file and not Path(target).parent.name.endswith(".part")  # not the rehearsal's
        its_time = this and written == times
        written += this
        if its_time and when != "after the rename":
            if when == "half written":
                os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if its_time:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = put


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
