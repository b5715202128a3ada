"""The report page of a run that holds figures of `adjoined export` and `adjoined benchmark`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adjoined.benchmark.explain import NOISY
from adjoined.benchmark.result import read_benchmark
from adjoined.cli import main
from adjoined.report import units
from mistakes import fails
from report_runs import Page, page_of


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("made") / "run"))
    assert main(["export", str(run), "--to", "torch-export", "--images", "32"]) == 0
    sizes = ["--runtimes", "eager,torch-export", "--batch-sizes", "1,2"]
    line = [*sizes, "--devices", "cpu", "--threads", "1", "--seconds", "0.1"]
    assert main(["benchmark", str(run), *line]) == 0
    return run


def cells(page: Page, caption: str) -> list[list[str]]:
    """Return the rows of the table with this caption, without its head."""
    found = re.findall(r"<table.*?</table>", page.text, re.DOTALL)
    (table,) = [each for each in found if f"<caption>{caption}</caption>" in each]
    rows = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_every_figure_on_the_page_is_that_of_the_files(made: Path, tmp_path: Path):
    page = page_of(made, "--images", 0, out=tmp_path / "page.html")
    assert {"Benchmark", "Exports"} <= set(page.written("h2"))
    content = json.loads((made / "benchmark.json").read_bytes())
    rows = {(row["runtime"], row["network"], row["batch_size"]): row for row in content["rows"]}
    speedups = {(each["runtime"], each["batch_size"]): each for each in content["speedups"]}
    titles = {"eager": "PyTorch", "torch-export": "torch.export"}
    for batch, images in ((1, "1 image"), (2, "2 images")):
        expected = []
        decimals = units.decimals_of(row["median_ms"] for key, row in rows.items() if key[2] == batch)
        for runtime, title in titles.items():
            line, noisy = [title], False
            for row in (rows[runtime, name, batch] for name in ("base", "small")):
                spread = row["upper_quartile_ms"] - row["lower_quartile_ms"]
                noisy |= spread > NOISY * row["median_ms"]
                line += [units.milliseconds(row["median_ms"], decimals), units.milliseconds(spread, decimals)]
                line.append(units.rate(batch / row["median_ms"] * 1000))
            each = speedups[runtime, batch]
            ratio = f"{each['speedup']:.2f}x{' ?' if noisy else ''}"
            expected.append([*line, ratio, f"{each['mac_ratio']:.1f}x"])
        assert cells(page, f"a call with {images} on cpu, 1 thread") == expected
    base, small = (network["macs"] for network in content["networks"])
    sizes = {row[0]: row[1:] for row in cells(page, f"{made}: images of 1 x 8 x 8, alpha 4")}
    assert sizes["MACs"] == [units.count(base), units.count(small), f"{base / small:.1f}x"]
    for explanation in content["explanations"]:
        assert explanation in page.written("p")
    assert f"Measured by: {content['environment']['command']}" in page.written("p")

    files = json.loads((made / "export" / "export.json").read_bytes())["files"]
    assert [each["file"] for each in files] == ["base.pt2", "small.pt2"]
    for row, each in zip(cells(page, "Exported files"), files, strict=True):
        assert each["bytes"] == (made / "export" / each["file"]).stat().st_size
        relative = f"{each['difference']['relative']:.1e}"
        assert row == [each["file"], units.size(each["bytes"]), "normalised", relative, "0 of 32", units.ABSENT]


def test_a_benchmark_is_read_as_it_was_written(made: Path):
    assert read_benchmark(made / "benchmark.json").to_json() == json.loads((made / "benchmark.json").read_bytes())


def _without_a_row(content: Any) -> None:
    content["rows"] = [row for row in content["rows"] if row["network"] == "small"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content.pop("rows"), "rows: a value does not fit"),
        (lambda content: content["rows"][0].pop("median_ms"), "missing required field `median_ms`"),
        (
            lambda content: content["rows"][0].update(median_ms="<b>1</b>"),
            "`str` - at `$.rows[0].latency.median_ms`",
        ),
        (lambda content: content["rows"][0].update(runtime="abacus"), "unknown runtime 'abacus'"),
        (lambda content: content["networks"].clear(), "it has no networks"),
        (lambda content: content.update(version=2), "written by a newer version"),
        (lambda content: content["environment"].pop("versions"), "missing required field `versions`"),
        (_without_a_row, "a speed-up compares base in eager fp32, which has no time"),
        (lambda content: content.update(rows=3), "rows: a value does not fit"),
        (lambda content: content.update(explanations=[3]), "Expected `str`, got `int` - at `$.explanations[0]`"),
        (lambda content: content["networks"][1]["activation_bytes"].clear(), "activation_bytes of other batch sizes"),
        (lambda content: content.update(alpha=["4"]), "Expected `float`, got `str` - at `$.alpha[0]`"),
    ],
)
def test_a_damaged_benchmark_is_reported_in_one_line(
    damage: Callable[[Any], None], said: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    content = json.loads((run / "benchmark.json").read_bytes())
    damage(content)
    (run / "benchmark.json").write_text(json.dumps(content))
    line = fails(capsys, "report", run)
    assert said in line
    assert ("Update adjoined" if "newer" in said else "Run `adjoined benchmark` again.") in line
    assert not (run / "report.html").exists()
