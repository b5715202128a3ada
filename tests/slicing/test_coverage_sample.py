"""A fast sample of the coverage table: families of timm with awkward constructs, measured as the table is."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

SAMPLE = [
    "timm/starnet/starnet_s050", "timm/edgenext/edgenext_xx_small", "timm/mobilenetv3/mobilenetv3_small_050",
]  # fmt: skip
SLOW = [
    "timm/resnest/resnest14d", "timm/dla/dla46x_c", "timm/cspnet/cs3darknet_focus_s",
    "torchvision/classification/shufflenet_v2_x0_5", "torchvision/detection/ssdlite320_mobilenet_v3_large",
]  # fmt: skip


@pytest.fixture(scope="module")
def coverage(monkeypatch_module: pytest.MonkeyPatch) -> Any:
    monkeypatch_module.syspath_prepend(str(BENCHMARKS))
    import coverage_measure
    import coverage_models
    import coverage_table

    return coverage_measure, coverage_models, coverage_table


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_model_is_narrowed_throughout_agrees_with_the_masked_base_and_trains(coverage: Any, name: str):
    measure, models, table = coverage
    record = measure.measure(models.find(name), 4.0, round_to=1)
    found = record["alpha 4"]
    assert found["result"] == "ok", found
    assert found["left"] <= table.BOUNDS["alpha 4"]
    assert not [group for group in found["wide"] if table.is_choice(group)]
    if not found["unaligned"]:
        assert found["how"] == "masked base"
        assert found["error_vs_masked"] <= table.STRICT


def test_the_list_of_families_is_that_of_the_library(coverage: Any):
    import timm

    _, models, _ = coverage
    families = models.timm_families()
    assert set(families) <= set(timm.list_modules())
    assert all(name in timm.list_models(module=family) for family, name in families.items())
    assert len(families) > 60
    assert "vision_transformer" not in families  # cuts its image into patches, and convolves no more


def test_tables_are_written_between_their_marks(coverage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, _, table = coverage
    page = tmp_path / "coverage.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    good = {"result": "ok", "left": 0.2, "macs_left": 0.1, "wide": [], "unaligned": [], "seconds": 1.0}
    good |= {"memory": 1.5, "error_vs_masked": 1e-16, "how": "masked base"}
    bad = {"result": "failed", "stage": "check", "error": "AdjoinedError: it does not compute what ..."}
    late = {"result": "failed", "stage": "process", "error": "time limit of 600 s"}
    lines = [
        f'{{"model": "timm/a/b", "parameters": 1000000, "alpha 2": {_json(good)}, "alpha 4": {_json(bad)}}}',
        f'{{"model": "timm/c/d", "alpha 2": {_json(late)}, "alpha 4": {_json(late)}}}',
    ]
    (tmp_path / "timm.jsonl").write_text("\n".join(lines) + "\n")
    table.write_table(tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| timm | 2 | 2 | 1 of 2 (50 %) | 1 of 2 (50 %) | 0 | 1e-16 |" in text
    assert "| timm | 2 | 4 | 0 of 2 (0 %) | 0 of 2 (0 %) | 1 |" in text  # a failure of the check is a wrong result
    assert "failed (check)" in text
    assert "time limit of 600 s" in text


def test_a_failure_names_its_stage(coverage: Any):
    from coverage_models import Subject

    measure, *_ = coverage
    sizes = {"build": lambda: 1 // 0, "count": lambda: torch.nn.Conv2d(9, 8, 3)}
    for stage, build in sizes.items():
        found = measure.measure(Subject("x", build, lambda: torch.zeros(1, 3, 8, 8)), 2.0)["alpha 2"]
        assert (found["result"], found["stage"]) == ("failed", stage)
        assert "Error: " in found["error"]


def test_a_child_that_dies_and_one_that_hangs_are_told_apart(coverage: Any, tmp_path: Path):
    import coverage
    from coverage_models import Subject

    def record(build: Any, limit: float) -> str:
        asked = argparse.Namespace(limit=limit, rival=False, round_to=1)
        return coverage._in_a_process(Subject("x", build, lambda: None), 2.0, asked)["alpha 2"]["error"]

    assert record(lambda: os._exit(3), 60) == "process ended with exit code 3"
    assert record(lambda: time.sleep(60), 0.5) == "time limit of 0.5 s"


def _json(value: object) -> str:
    import json

    return json.dumps(value)
