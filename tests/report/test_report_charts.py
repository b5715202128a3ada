"""Charts: the drawing shows the figures in the right places, whatever the values."""

import math
import xml.etree.ElementTree as ET
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from adjoined.report.page import charts
from adjoined.report.page.charts import HEIGHT, LEFT, WIDTH, Axis, Chart, Line, Mark, lines, marks, widths
from adjoined.report.page.comparison import curves
from adjoined.report.page.sections import learning_curves
from adjoined.report.page.svg import Scale, element, linear_ticks, log_ticks, mark
from adjoined.settings import Settings

PLAIN = Axis("epoch", lambda value: f"{value:.6g}")
LOG = Axis("nats", lambda value: f"{value:.6g}", log=True)


def parsed(chart: Chart) -> ET.Element:
    return ET.fromstring(f"<svg>{chart.drawing}</svg>")


def places(chart: Chart) -> list[list[tuple[float, float]]]:
    """Return the points of every line."""
    drawn = [line.get("points", "") for line in parsed(chart).iter("polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in each.split())] for each in drawn]


def test_texts_and_attributes_are_escaped():
    evil = "<script>\"'&"
    drawn = ET.fromstring(element("text", evil, class_=evil))
    assert (drawn.text, drawn.get("class")) == (evil, evil)
    chart = lines(evil, [Line(evil, 0, [(1, 1), (2, 2)])], PLAIN, PLAIN)
    assert evil in "".join(parsed(chart).itertext())


def test_every_shape_of_mark_stays_around_its_place():
    for shape in range(5):
        drawn = ET.fromstring(mark(shape, 50.0, 60.0, 10))
        numbers = [float(n) for pair in drawn.get("points", "50,60").split() for n in pair.split(",")]
        assert all(abs(x - 50) <= 7 for x in numbers[::2])
        assert all(abs(y - 60) <= 7 for y in numbers[1::2])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.977, 0.981), (-3, 12345), (1e-9, 3e-9), (5, 5), (0, 7e9)])
def test_ticks_are_round_few_and_inside(low: float, high: float):
    ticks = linear_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    gaps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert gaps <= {1.0}


@pytest.mark.parametrize(("low", "high"), [(1, 1000), (0.26, 0.82), (1e-7, 1e9), (20_000, 300_000), (0.9, 1.1)])
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert all(low * (1 - 1e-6) <= tick <= high * (1 + 1e-6) for tick in ticks)


def test_equal_ratios_are_equal_distances_on_a_logarithmic_scale():
    scale = Scale(1, 10_000, 0, 100, log=True)
    assert [round(scale(10**power), 9) for power in range(5)] == [0, 25, 50, 75, 100]


def test_a_line_is_drawn_where_its_values_are():
    (drawn,) = places(lines("", [Line("base", 0, [(1, 0.0), (2, 0.5), (3, 1.0)])], PLAIN, PLAIN))
    assert drawn[0][0] == LEFT
    assert drawn[1][0] == pytest.approx((drawn[0][0] + drawn[2][0]) / 2, abs=0.01)
    assert drawn[1][1] == pytest.approx((drawn[0][1] + drawn[2][1]) / 2, abs=0.01)
    assert drawn[0][1] > drawn[2][1]  # up is more


def test_everything_drawn_is_in_the_table_and_inside_the_drawing():
    curves = [Line("base", 0, [(1, 3.0), (2, 2.0)]), Line("small", 1, [(1, 4.0), (2, 5.0), (3, 1.0)])]
    chart = lines("loss", curves, PLAIN, PLAIN)
    assert chart.table.columns == ("epoch", "base", "small")
    assert chart.table.rows == (("1", "3", "4"), ("2", "2", "5"), ("3", "–", "1"))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for line in places(chart) for x, y in line)
    assert chart.about == "base from 3 to 2; small from 4 to 1."


def test_what_has_no_place_is_left_out():
    chart = lines("", [Line("base", 0, [(1, math.nan), (2, 0.0), (3, 0.1), (4, 1.0)])], PLAIN, LOG)
    assert len(places(chart)[0]) == 2
    assert "nan" not in str(chart.drawing)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, 4000.0])
def test_one_epoch_and_constant_values_can_be_drawn(value: float):
    every = [Line("base", 0, [(1, value)]), Line("λ", -1, [(1, value)]), Line("training", 0, [(1, value)], faint=True)]
    chart = lines("", every, PLAIN, PLAIN)
    assert "nan" not in str(chart.drawing)
    assert len(list(parsed(chart).iter("title"))) == 3  # the marks


def test_a_long_line_has_its_last_point_marked_and_a_short_one_all():
    for count, marked in ((charts.MOST_MARKED, charts.MOST_MARKED), (charts.MOST_MARKED + 1, 1)):
        chart = lines("", [Line("base", 0, [(i, i) for i in range(count)])], PLAIN, PLAIN)
        assert len(list(parsed(chart).iter("circle"))) == marked


def test_a_mark_has_its_name_beside_it_and_inside_the_chart():
    chart = marks("", [Mark("base", 0, 4e6, 0.9), Mark("small", 1, 1e6, 0.8)], LOG, PLAIN)
    beside = {text.text: text for text in parsed(chart).iter("text") if text.get("class") == "label"}
    assert beside.keys() == {"base", "small"}
    assert beside["base"].get("text-anchor") == "end"  # at the right edge
    assert beside["small"].get("text-anchor") is None


def test_names_of_near_marks_do_not_overlap():
    near = [Mark(f"network {i}", 0, 1e6 * (1 + i / 50), 0.9) for i in range(4)]
    chart = marks("", [*near, Mark("far", 1, 4e6, 0.8)], LOG, PLAIN)
    texts = [text for text in parsed(chart).iter("text") if text.get("class") == "label"]
    heights = sorted(float(text.get("y", "nan")) for text in texts if text.text != "far")
    assert all(b - a >= 12 for a, b in pairwise(heights))


def test_widths_meet_where_a_layer_is_at_full_width():
    names = ["conv1", "layer1.0", "layer1.1", "fc"]
    chart = widths("", names, [("base", [64, 128, 256, 10]), ("small", [16, 32, 64, 10])])
    base, small = places(chart)
    assert base[-1] == small[-1]
    gaps = {round(b[1] - a[1], 1) for a, b in zip(base[:6], small[:6], strict=True)}
    assert len(gaps) == 1  # a quarter everywhere: the same distance everywhere
    assert "4 layers, 3 of them narrower" in chart.about
    texts = [text.text for text in parsed(chart).iter("text")]
    assert {"conv1", "layer1", "fc"} <= set(texts)


def test_values_on_the_axes_are_whole_channels_whole_epochs_and_told_apart():
    wide = widths("", ["a", "b"], [("base", [16, 1280])])
    assert "1024" in [text.text for text in parsed(wide).iter("text")]
    history = [{"epoch": n, "val_base_top1": 0.5, "val_base_loss": 0.7065 + n / 1000} for n in (1.0, 2.0)]
    story: Any = SimpleNamespace(main="top1", history=history, names=("base",), labels=("base",), settings=Settings())
    for chart in (*learning_curves(story), *curves([story], ["run"])):
        below = [text.text for text in parsed(chart).iter("text") if text.get("text-anchor") == "middle"]
        left = [text.text for text in parsed(chart).iter("text") if text.get("text-anchor") == "end"]
        assert below == ["1", "2"]
        assert len(set(left)) == len(left) > 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 9.0])
def test_the_curve_of_lambda_stays_in_its_chart_whatever_the_factor_on_it(factor: float):
    history = [{"epoch": n + 1.0, "lambda": factor * min(1.0, n / 2)} for n in range(5)]
    story: Any = SimpleNamespace(main="top1", history=history, names=("base",), labels=("base",), settings=Settings())
    (chart,) = [each for each in learning_curves(story) if "λ" in each.title]
    ((*_, top),) = places(chart)
    assert 0 <= top[1] <= HEIGHT
    assert top[1] == min(y for _, y in places(chart)[0])
    assert (top[1] < HEIGHT / 4) == (factor >= 1)  # below 1, a chart from 0 to 1 shows that it is
