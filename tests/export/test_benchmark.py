"""Latency: networks take turns on one input, and are left as they were found."""

import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoined import AdjoinedError
from adjoined.benchmark.turns import LEAST_TURNS, TURNS, latency
from forked import run_forked


class Recorder(nn.Module):
    """Notes every call in a common log."""

    def __init__(self, name: str, log: list[tuple[str, bool, bool, int]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.inner = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append((self.name, self.inner.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


def test_modules_take_turns_in_inference_mode():
    log: list[tuple[str, bool, bool, int]] = []
    found = latency({"a": Recorder("a", log), "b": Recorder("b", log)}, torch.zeros(3, 1), seconds=0.02)
    turns = [name for i, (name, *_) in enumerate(log) if i == 0 or log[i - 1][0] != name]
    assert turns == ["a", "b"] * (TURNS + 1)
    assert {(training, inference) for _, training, inference, _ in log} == {(False, True)}
    # One call of each turn is not counted, and the first turn not at all.
    assert found["a"].calls < sum(name == "a" for name, *_ in log) - TURNS
    assert found["a"].calls >= TURNS


def test_slow_calls_count_from_the_first_of_a_turn(monkeypatch):
    monkeypatch.setattr("adjoined.benchmark.turns.SLOW_SECONDS", 1e-9)
    log: list[tuple[str, bool, bool, int]] = []
    found = latency({"a": Recorder("a", log)}, torch.zeros(3, 1), seconds=1e-6)
    assert found["a"].calls == LEAST_TURNS
    assert len(log) == LEAST_TURNS + 1  # and one to warm up


def test_a_summary_is_in_order_and_says_what_was_measured():
    found = latency({"linear": nn.Linear(8, 8)}, torch.zeros(3, 8), seconds=0.02)["linear"]
    assert 0 < found.lower_quartile_ms <= found.median_ms <= found.upper_quartile_ms
    assert found.iqr_ms == found.upper_quartile_ms - found.lower_quartile_ms
    assert (found.batch_size, found.threads, found.device) == (3, torch.get_num_threads(), "cpu")


def test_modes_and_threads_are_given_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(8)))
    model[1][1].eval()
    before, threads = [part.training for part in model.modules()], torch.get_num_threads()
    log: list[tuple[str, bool, bool, int]] = []
    latency({"model": model, "recorder": Recorder("r", log)}, torch.zeros(2, 8), seconds=0.01, threads=2)
    assert {used for *_, used in log} == {2}
    assert [part.training for part in model.modules()] == before
    with pytest.raises(RuntimeError):
        latency({"model": model}, torch.zeros(2, 9), seconds=0.01, threads=2)
    assert [part.training for part in model.modules()] == before
    assert torch.get_num_threads() == threads


def test_a_module_used_by_two_networks_is_given_back_its_mode():
    shared = nn.Dropout()
    latency({"a": nn.Sequential(shared), "b": nn.Sequential(shared)}, torch.zeros(1, 1), seconds=0.01)
    assert shared.training


@pytest.mark.parametrize(("modules", "seconds"), [({}, 1.0), ({"a": nn.Identity()}, 0.0)])
def test_nothing_to_measure_is_a_mistake(modules: dict[str, nn.Module], seconds: float):
    with pytest.raises(AdjoinedError, match="nothing to measure"):
        latency(modules, torch.zeros(1, 1), seconds=seconds)


def test_the_command_is_recorded_so_that_it_can_be_rerun(tmp_path: Path):
    script = tmp_path / "measure.py"
    script.write_text("from adjoined.benchmark.environment import environment\nprint(environment()['command'])\n")
    given = ["--out", "a file's name.json", "--model-options", "{width: 2}", "--alpha", "2,4", "*", "$HOME"]
    for name in (script.name, script):
        done = run_forked(name, *given, cwd=tmp_path)
        assert shlex.split(done.stdout) == ["python", "measure.py", *given]
