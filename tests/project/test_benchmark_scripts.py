"""A measurement is saved even if nobody reads what the script prints."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def test_a_closed_pipe_does_not_cost_the_figures(tmp_path: Path):
    out = tmp_path / "new" / "step.json"
    small = ["--model", "resnet8", "--size", "16", "--batch", "2", "--rounds", "2", "--threads", "1"]
    argv = [sys.executable, str(SCRIPTS / "train_step.py"), *small, "--out", str(out)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        assert script.stderr is not None
        script.stdout.close()  # before the first line
        errors = script.stderr.read()
    assert script.returncode == 0, errors
    assert "BrokenPipe" not in errors
    result = json.loads(out.read_text())
    assert [case["model"] for case in result["cases"]] == ["resnet8"]
    assert result["cores"] > 0


def test_every_script_that_measures_keeps_its_figures():
    """Those without are exempt for a reason: they print last, write first, or are an `adjoined` command."""
    exempt = {"coverage_plans.py", "cpu_study.py", "few_digits.py", "own_weights.py", "picture.py", "width_search.py"}
    programs = {path.name: path.read_text() for path in SCRIPTS.glob("*.py") if "\ndef main(" in path.read_text()}
    assert exempt < programs.keys()
    assert {name for name, text in programs.items() if "measuring()\ndef main(" not in text} == exempt
