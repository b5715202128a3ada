"""The study of few digits: its cells are comparisons that run, and its table tells differences seed by seed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
few_digits = __import__("few_digits")
sys.path.pop(0)


def test_a_cell_runs_and_leaves_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(few_digits, "METHODS", ["standard", "adjoint", "adjoint+"])
    monkeypatch.setitem(few_digits.CELLS, "epochs-10", (0.5, 2))
    results = tmp_path / "results"
    few_digits.main(["--only", "epochs-10", "--seeds", "1", "--out", str(tmp_path / "runs"), "--results", str(results)])
    assert sorted(each.name for each in results.iterdir()) == ["epochs-10.csv", "table.md"]
    found = few_digits.read(results / "epochs-10.csv")
    assert set(found) == {("standard", "base"), ("adjoint", "base"), ("adjoint", "small"), ("adjoint+", "base"),
                          ("adjoint+", "small")}  # fmt: skip
    gained = 100 * (found["adjoint", "base"][0] - found["standard", "base"][0])
    assert f"| `adjoint` | {gained:+.1f} |" in (results / "table.md").read_text()


def test_gains_are_paired_by_seed():
    runs = {("a", "base"): {0: 0.5, 1: 0.9}, ("b", "base"): {0: 0.51, 1: 0.91, 2: 0.1}}
    assert few_digits.gain(runs, "b", "base", "a") == "+1.0 ± 0.0"  # seed 2 has no counterpart
    assert few_digits.gain(runs, "a", "base", "a") == few_digits.gain(runs, "c", "base", "a") == "–"


@pytest.mark.parametrize("cell", list(few_digits.CELLS))
def test_every_cell_differs_from_the_first_in_one_thing(cell):
    width, epochs = few_digits.CELLS[cell]
    assert (width == 1.0) or (epochs == 40)
