"""Budgets on the command line: the table of alphas, and milliseconds measured here or by the user's command."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoined.benchmark.budget import measured_by, measured_in
from adjoined.cli import main
from adjoined.errors import AdjoinedError
from mistakes import fails

X = torch.zeros(1, 3, 8, 8)
BY_SIZE = "import os, sys; print('measuring'); print(os.path.getsize(sys.argv[1]) / 1e4)"
CODE = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(1024, num_classes))
"""


def command(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", code, *arguments])


def tiny(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3), nn.Flatten()).eval()


@pytest.fixture
def plan(tmp_path: Path) -> list[str]:
    file = tmp_path / "net.py"
    file.write_text(CODE)
    return ["plan", f"{file}:make", "--classes", "10", "--channels", "3", "--input-size", "8"]


def test_the_plan_compares_alphas(plan: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*plan, "--json"]) == 0
    assert [each["alpha"] for each in json.loads(capsys.readouterr().out)["alphas"]] == [2, 4, 8, 16]
    assert main(plan) == 0
    text = capsys.readouterr().out
    assert "α=16" in text
    assert "int8" in text
    assert "Widths in multiples of 8 keep more channels than 1/α: 1/8 at α=16." in " ".join(text.split())
    assert main([*plan, "--round-to", "1"]) == 0
    assert "keep more channels" not in capsys.readouterr().out


TALKS = """
from torch import nn

class Talks(nn.Conv2d):
    def forward(self, x):
        print("shape", tuple(x.shape))
        return super().forward(x)

def make(num_classes=10):
    return nn.Sequential(Talks(3, 64, 3), nn.ReLU(), nn.Conv2d(64, num_classes, 6), nn.Flatten())
"""


def test_what_a_forward_prints_is_kept_out_of_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "net.py").write_text(TALKS)
    line = ["plan", f"{tmp_path}/net.py:make", "--channels", "3", "--input-size", "8"]
    assert main([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["model"] == line[1]
    assert "shape (1, 3, 8, 8)\n" in err
    assert main(line) == 0  # tables are for people
    assert "shape (1, 3, 8, 8)\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "benchmark", "train"])
def test_a_budget_and_alpha_contradict_each_other(command: str, plan: list[str], capsys: pytest.CaptureFixture[str]):
    line = {"plan": plan, "benchmark": ["benchmark", *plan[1:]], "train": ["train", "--dry-run"]}[command]
    assert "--alpha: --budget chooses alpha itself (got 2)" in fails(capsys, *line, "--alpha", 2, "--budget", "20 kB")


def test_a_budget_that_the_base_meets_is_reported(plan: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*plan, "--budget", "1 GB"]) == 0
    assert "At α=1 the small network is as large as the base." in capsys.readouterr().out


def test_alpha_is_bisected_by_what_a_command_prints(plan: list[str], capsys: pytest.CaptureFixture[str]):
    measured = ["--runtime", "torch-export", "--latency-command", command(BY_SIZE, "{file}")]
    assert main([*plan, "--json", "--budget", "20 ms", *measured]) == 0
    found = json.loads(capsys.readouterr().out)
    alpha, times = found["plans"][0]["alpha"], found["milliseconds"]
    assert times == sorted(times, reverse=True)
    assert times[0] > 20
    assert alpha > 1
    for each, milliseconds in zip(found["alphas"], times[1:], strict=True):
        assert (milliseconds <= 20) == (each["alpha"] >= alpha)


def test_without_a_place_for_it_the_file_is_the_last_argument():
    narrow, wide = (measured_by(command(BY_SIZE), "torch-export", X)(tiny(width)) for width in (4, 400))
    assert 0 < narrow < wide


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (command("import sys; sys.exit('no board')"), "no board"),
        (command("print('fast')"), "no milliseconds"),
        (command("print(-1)"), "no milliseconds"),
        (command("pass"), "no output"),
        ("/no/such/program", "cannot be run"),
    ],
)
def test_a_command_that_measures_nothing_is_refused(words: str, message: str):
    with pytest.raises(AdjoinedError, match=message) as caught:
        measured_by(words, "torch-export", X)(tiny())
    assert "--latency-command" in caught.value.where


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runtime", "tensorrt"], "no such runtime"),
        (["--runtime", "eager", "--latency-command", "measure"], "no file"),
        (["--runtime", "onnx", "--threads", "0"], "at least 1"),
    ],
)
def test_flags_that_measure_nothing_are_refused(
    argv: list[str], message: str, plan: list[str], capsys: pytest.CaptureFixture[str]
):
    assert message in fails(capsys, *plan, "--budget", "3 ms", *argv)


@pytest.mark.parametrize(
    "line",
    [
        "plan resnet20 --threads 1",  # with --runtime, the networks are measured without a budget, too
        "train --recipe digits --run none --threads 1",
        "train --recipe digits --run none --runtime onnx --budget '1 MB'",
        "train --recipe digits --run none --latency-command true",
    ],
)
def test_flags_of_a_measurement_that_nothing_asks_for_are_refused(line: str, capsys: pytest.CaptureFixture[str]):
    told = fails(capsys, *shlex.split(line))
    assert "no time is measured (expected a budget in milliseconds" in told
    assert ("OMP_NUM_THREADS" in told) == (line.startswith("train") and "--threads" in line)


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "eager"])
def test_milliseconds_are_measured_in_a_runtime(runtime: str):
    if runtime != "eager":
        pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    assert 0 < measured_in(runtime, X, threads=1, seconds=0.1)(tiny()) < 1e4
