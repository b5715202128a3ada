"""Damaged and hostile files: every reader answers with what it read or with an AdjoinedError, within bounds."""

import shutil
import sys
from pathlib import Path

import pytest

from adjoined import AdjoinedError
from adjoined.export.record import record
from adjoined.json_files import write_json

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
fuzz = __import__("fuzz")
sys.path.pop(0)

COUNT = 1000
ROW = {"median_ms": 1.0, "lower_quartile_ms": 0.9, "upper_quartile_ms": 1.1, "calls": 9, "batch_size": 1, "threads": 1}
FIGURES = {"parameters": 9, "parameters_without_last": 8, "macs": 7, "file_bytes": 99, "moved_bytes": 5, "operators": 3}


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> Path:
    """A run with every file that a reader reads."""
    folder = tmp_path_factory.mktemp("fuzz")
    made = Path(shutil.copytree(finished, folder / "tiny"))
    networks = [
        {"name": name, **FIGURES, "activation_bytes": {"1": 10}, "odd_layers": []} for name in ("base", "small")
    ]
    environment = {
        "command": "x", "python": "3", "versions": {}, "processor": "x", "cores": 2, "threads": 1, "gpu": None,
        "malloc": {},
    }  # fmt: skip
    place = {"runtime": "eager", "device": "cpu"}
    speedup = {"speedup": 2.0, "lower_quartile": 1.9, "upper_quartile": 2.1, "mac_ratio": 4.0, "against": "fp32"}
    write_json(
        made / "benchmark.json",
        {
            "format": "adjoined-benchmark", "version": 1, "subject": "tiny", "alpha": [4.0], "input": [1, 8, 8],
            "networks": networks, "environment": environment, "explanations": ["one"],
            "rows": [{**place, "precision": "fp32", "network": name, **ROW} for name in ("base", "small")],
            "speedups": [{**place, "precision": "fp32", "network": "small", "batch_size": 1, **speedup}],
            "missing": [{**place, "runtime": "onnx", "why": "not installed"}],
        },
    )  # fmt: skip
    sizes = {"parameters": 9, "parameters_without_last": 8, "macs": 7}
    named = [{"figures": {"name": name, **sizes, "top1": 0.5, "latency": {**ROW, "device": "cpu"}}} for name in "bs"]
    write_json(made / "result.json", {"networks": named})
    (made / "export").mkdir()
    record(made / "export", {"file": "small.onnx", "network": "small", "target": "onnx", "int8": False, "bytes": 9})
    return fuzz.prepared(made, folder)


def test_every_file_can_be_read_before_it_is_damaged(run):
    assert all((run / reader.file).is_file() for reader in fuzz.READERS)
    for reader in fuzz.READERS:
        if reader.name == "data-files.txt.gz":  # read only to tell what has changed
            with pytest.raises(AdjoinedError, match="not those that the run started with"):
                reader.read(run)
        else:
            reader.read(run)


def test_nothing_but_success_or_one_error_within_bounds(run):
    tallies = fuzz.fuzz(run, COUNT, seed=0)
    assert sum(tally.files for tally in tallies.values()) == COUNT
    assert {name: dict(tally.faults) for name, tally in tallies.items() if tally.faults} == {}
    for name, tally in tallies.items():
        assert tally.files > 20, name
        assert tally.refused > tally.files / 10, name
        assert tally.largest < fuzz.MOST_BYTES, name
