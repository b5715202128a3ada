"""The README's picture is what its script draws from the file of the measurement."""

import sys
from pathlib import Path

import pytest

from adjoined.benchmark.result import read_benchmark

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
picture = __import__("picture")
sys.path.pop(0)


def test_the_picture_is_drawn_from_the_file():
    assert picture.TARGET.read_text(encoding="utf-8") == picture.drawn(read_benchmark(picture.SOURCE))


@pytest.mark.parametrize("figure", ["54.9", "9.86", "13.6x"])
def test_it_shows_the_figures_of_the_results(figure: str):
    assert figure in picture.TARGET.read_text(encoding="utf-8")
    assert figure in (picture.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
