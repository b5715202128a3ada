"""A measurement is saved even if nobody reads what the script prints."""

import json
from pathlib import Path

from forked import run_forked

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
UNREAD = """
import os, runpy, sys

reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_closed_pipe_does_not_cost_the_figures(tmp_path: Path):
    out = tmp_path / "new" / "step.json"
    small = ["--model", "resnet8", "--size", "16", "--batch", "2", "--rounds", "2", "--threads", "1"]
    done = run_forked("-c", UNREAD, SCRIPTS / "train_step.py", *small, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "BrokenPipe" not in done.stderr
    result = json.loads(out.read_text())
    assert [case["model"] for case in result["cases"]] == ["resnet8"]
    assert result["cores"] > 0


def test_every_script_that_measures_keeps_its_figures():
    """Those without are exempt for a reason: they print last, write first, or are an `adjoined` command."""
    exempt = {"coverage_plans.py", "cpu_study.py", "few_digits.py", "own_weights.py", "picture.py", "width_search.py"}
    programs = {path.name: path.read_text() for path in SCRIPTS.glob("*.py") if "\ndef main(" in path.read_text()}
    assert exempt < programs.keys()
    assert {name for name, text in programs.items() if "measuring()\ndef main(" not in text} == exempt
