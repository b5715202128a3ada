"""The examples run, say what they promise, and their usage lines are commands that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from adjoined.cli import main

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def run(path: Path, *arguments: str) -> str:
    line = [sys.executable, str(path), *arguments]
    done = subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def usage(path: Path) -> list[str]:
    found = re.search(r"Usage:\n\n(.*?)\n\"\"\"", path.read_text(), re.DOTALL)
    assert found, f"{path.name} has no block `Usage:`"
    return [line.strip() for line in found[1].splitlines()]


def test_there_are_examples_and_each_says_how_to_run_it():
    names = ["01_plain_loop.py", "02_lightning.py", "03_own_model.py", "04_segmentation.py"]
    assert [path.name for path in EXAMPLES] == names
    for path in EXAMPLES:
        assert f"python examples/{path.name}" in usage(path)


@pytest.mark.parametrize("path", EXAMPLES[:2], ids=lambda path: path.name)
def test_both_networks_learn_and_the_small_one_is_small(path: Path):
    lines = run(path, "--epochs", "2").splitlines()
    found = [
        re.fullmatch(r"(base|small): (\d+) parameters, (.+) % of the test digits right", line) for line in lines[-2:]
    ]
    base, small = [(int(match[2]), float(match[3])) for match in found if match]
    assert base[0] > 13 * small[0]
    assert min(base[1], small[1]) > 25  # guessing would be 10 %


def test_two_networks_that_tell_pixels_apart():
    lines = run(EXAMPLES[3], "--epochs", "2").splitlines()
    pattern = r"(base|small): (\d+) parameters, (.+) % of the test pixels right, mean IoU (.+)"
    found = [re.fullmatch(pattern, line) for line in lines[-2:]]
    base, small = [(int(match[2]), float(match[4])) for match in found if match]
    assert base[0] > 13 * small[0]
    assert min(base[1], small[1]) > 0.25  # all background would be a quarter of its share, under 0.22


def test_a_network_of_ones_own_is_sliced():
    out = run(EXAMPLES[2])
    assert "gives the same logits: True" in out


def test_the_own_network_can_be_planned_as_its_usage_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(EXAMPLES[0].parents[1])
    (line,) = [line for line in usage(EXAMPLES[2]) if line.startswith("adjoined plan ")]
    assert main(line.split()[1:]) == 0
    assert "64→16" in capsys.readouterr().out
