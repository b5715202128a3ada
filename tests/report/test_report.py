"""Tables: figures are right, nothing important is cut, and the three formats say the same."""

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from adjoined.benchmark.turns import Latency
from adjoined.report import units
from adjoined.report.console import show
from adjoined.report.figures import Figures, result_table
from adjoined.report.plan import layers, plan_table
from adjoined.report.table import PLAIN_WIDTH, Table
from adjoined.slicing import Cost, cost_by_module, make_plan, measure_cost

BOX_DRAWING = re.compile("[\u2500-\u257f]")


def block(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


def network() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
    return nn.Sequential(stem, nn.Sequential(*(block(32) for _ in range(12))), nn.Flatten(), nn.Linear(32 * 36, 10))


EXAMPLE = torch.zeros(1, 3, 8, 8)


def planned(*alphas: float, full: bool = False) -> Table:
    model = network()
    plans = [make_plan(model, EXAMPLE, alpha=alpha) for alpha in alphas]
    networks = [model, *(plan.apply(model) for plan in plans)]
    return plan_table(layers(networks, [cost_by_module(n, EXAMPLE) for n in networks]), plans, title="plan", full=full)


def test_layers_add_up_to_the_whole_network():
    model = network()
    cost, whole = cost_by_module(model, EXAMPLE), measure_cost(model, EXAMPLE)
    found = layers([model], [cost])
    assert sum(layer.parameters[0] for layer in found) == whole.parameters == sum(p.numel() for p in model.parameters())
    assert sum(layer.macs[0] for layer in found) == whole.macs


def test_parameters_and_work_of_a_container_are_counted_once():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(7, 7))
            self.linear = nn.Linear(7, 7, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) @ self.scale

    model = Scaled()
    found = layers([model], [cost_by_module(model, torch.zeros(1, 7))])
    assert {layer.name: (layer.parameters, layer.macs) for layer in found} == {
        "(the model itself)": ((49,), (49,)),
        "linear": ((49,), (49,)),
    }


def test_equal_blocks_share_a_row_and_norms_stand_with_their_layer():
    shown = planned(4)
    assert [row[0] for row in shown.rows] == ["0.0, 1", "1.0-11", "3"]
    assert [row[1] for row in shown.rows] == ["32→8", "32→8", "10"]
    assert shown.rows[1][2] == units.count(12 * (32 * 32 * 9 + 3 * 32))
    assert shown.rows[1][3] == units.count(12 * (8 * 8 * 9 + 3 * 8))


def test_the_full_table_has_a_row_for_each_layer():
    assert len(planned(4, full=True).rows) == 2 + 24 + 1


def test_the_plan_says_what_stays_at_full_width_and_why():
    assert any("model output" in note and "3 (10)" in note for note in planned(4).notes)


def test_a_family_shows_the_widths_of_all_its_networks():
    shown = planned(2, 4)
    assert shown.columns == ("layers", "channels", "parameters", "α=2", "α=4")
    assert shown.rows[0][1] == "32→16/8"


@pytest.mark.parametrize("full", [False, True])
def test_plain_text_fits_the_width_and_has_no_boxes(full: bool):
    text = planned(2, 4, 8, full=full).text()
    assert max(map(len, text.splitlines())) <= PLAIN_WIDTH
    assert not BOX_DRAWING.search(text)


def test_long_names_are_shortened_and_figures_are_not():
    row = ("stages.2.blocks." * 12 + "conv", "123.45 M", "1.23 M")
    text = Table(("layers", "parameters", "small"), (row,), notes=("word " * 60,)).text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(cell in text for cell in row[1:])
    assert "…" in text
    assert ".conv" in text


def test_a_wide_table_of_plain_text_continues_below_with_whole_names():
    table = Table(("", *"abc"), (("accuracy", *("9" * 8,) * 3),))
    assert [line.split() for line in table.text(30).splitlines() if "--" not in line] == [
        ["a", "b"],
        ["accuracy", "9" * 8, "9" * 8],
        [],
        ["c"],
        ["accuracy", "9" * 8],
    ]


LATENCY = Latency(20.0, 19.0, 22.0, calls=40, batch_size=1, threads=2, device="cpu")
BASE = Figures.of("base", Cost(2_000_000, 1_900_000, 400_000_000), file_bytes=8_000_000, top1=0.99, latency=LATENCY)
SMALL = Figures.of(
    "small",
    Cost(150_000, 140_000, 30_000_000),
    file_bytes=620_000,
    top1=0.9812,
    latency=Latency(5.0, 4.9, 5.1, calls=90, batch_size=1, threads=2, device="cpu"),
)


def test_results_are_compared_each_in_its_own_way():
    rows = {row[0]: row[1:] for row in result_table(BASE, [SMALL]).rows}
    assert rows["parameters"] == ("2.00 M", "150.00 k", "13.3x")
    assert rows["parameters without the last linear"] == ("1.90 M", "140.00 k", "13.6x")
    assert rows["MACs"] == ("400.00 M", "30.00 M", "13.3x")
    assert rows["file"] == ("8.00 MB", "620.00 kB", "12.9x")
    assert rows["top-1 accuracy"] == ("99.00 %", "98.12 %", "-0.88 points")
    assert rows["latency, batch 1"] == ("20.00 ms", "5.00 ms", "4.0x")
    assert "top-5 accuracy" not in rows


def test_a_ratio_of_unsteady_latencies_is_marked_and_its_networks_are_named():
    assert BASE.latency is not None
    unsteady = replace(BASE, latency=replace(BASE.latency, upper_quartile_ms=2 * BASE.latency.median_ms))
    shown = result_table(unsteady, [SMALL])
    assert shown.rows[-1][-1] == "4.0x ?"
    assert "the inter-quartile range of base is more than 25 %" in shown.notes[-1]
    assert "?" not in result_table(BASE, [SMALL]).text()


def test_a_column_has_the_same_decimals():
    for numbers in ([2.4518, 0.0231, 0.0], [1234.5, 7.0], [1e-9, 3.0]):
        assert len({len(cell.partition(".")[2]) for cell in units.column(numbers)}) == 1
    rows = result_table(BASE, [SMALL]).rows
    assert len({len(row[-1].partition(".")[2]) for row in rows if row[-1].endswith("x")}) == 1


def test_a_run_of_the_base_alone_has_a_table_too():
    shown = result_table(BASE, [])
    assert shown.columns == ("", "base")
    assert all(len(row) == 2 for row in shown.rows)


@pytest.mark.parametrize("shown", [result_table(BASE, [SMALL], title="a title"), planned(4)], ids=["result", "plan"])
def test_the_three_formats_say_the_same(shown: Table):
    terminal = io.StringIO()
    Console(file=terminal, width=140, force_terminal=True, color_system=None).print(shown)
    cells = [cell for row in shown.rows for cell in row]
    assert len(cells) > 6
    for face in (shown.text(), shown.markdown(), terminal.getvalue()):
        assert all(cell in face for cell in cells)
        assert shown.title in face


def test_markdown_is_a_table():
    lines = Table(("", "a|b"), (("x", "1"),)).markdown().splitlines()
    assert lines == ["|  | a\\|b |", "| :-- | --: |", "| x | 1 |"]


def test_a_file_gets_plain_text_and_a_terminal_gets_rich(monkeypatch: pytest.MonkeyPatch):
    plain = io.StringIO()
    show(result_table(BASE, [SMALL]), "a line [with] brackets", file=plain)
    assert plain.getvalue().endswith("\n\na line [with] brackets\n")
    assert "\x1b" not in plain.getvalue()

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for width in (40, 60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        terminal = Terminal()
        show(result_table(BASE, [SMALL, SMALL]), "a line [with] brackets", file=terminal)
        shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
        assert BOX_DRAWING.search(shown)
        assert max(map(len, shown.splitlines())) <= width
        for first, *figures in result_table(BASE, [SMALL, SMALL]).rows:
            assert all(part in shown for part in (*first.split(), *figures))
        assert "a line [with] brackets" in shown


def test_a_table_wider_than_the_terminal_continues_below_with_the_same_names():
    table = Table(("", *"abc"), (("one", *("9" * 8,) * 3), ("two", *("5" * 8,) * 3)), notes=("A note.",))
    terminal = io.StringIO()
    Console(file=terminal, width=24, color_system=None).print(table)
    heads = [line.split() for line in terminal.getvalue().splitlines()]
    assert [line for line in heads if line and not line[0].startswith("─")] == [
        ["a", "b"],
        ["one", "9" * 8, "9" * 8],
        ["two", "5" * 8, "5" * 8],
        ["c"],
        ["one", "9" * 8],
        ["two", "5" * 8],
        ["A", "note."],
    ]


def test_numbers_keep_their_scale_at_the_borders():
    assert [units.count(n) for n in (999, 1000, 999_999, 10**15)] == ["999", "1.00 k", "1.00 M", "1000.00 T"]
    assert units.times(1, 0) == units.times(None, 1) == units.ABSENT
