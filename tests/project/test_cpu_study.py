"""The CPU study: the estimate covers the real runs, and every contender exists."""

import sys
from pathlib import Path

import pytest

from adjoined.commands.compare import Comparison
from adjoined.commands.flags import parse, typed
from adjoined.commands.train import recipe_defaults
from adjoined.comparison.variants import read_variants
from adjoined.methods import METHODS
from adjoined.settings import PLACE_ONLY, Settings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
cpu_study = __import__("cpu_study")
sys.path.pop(0)

PARTS = {
    "methods": cpu_study.ALL,
    "settings": cpu_study.SETTINGS,
    "equal-cost": cpu_study.EQUAL_COST,
    "longer": cpu_study.LONGER,
    "regularisers": cpu_study.REGULARISERS,
}


@pytest.mark.parametrize("name", PARTS)
def test_the_estimate_is_of_the_settings_of_the_command(name, tmp_path):
    part = cpu_study.Part(name, PARTS[name], 12, 100, 0.5, unequal=name in ("equal-cost", "longer"))
    command, *argv = part.argv("data", tmp_path, 2)
    assert command == "compare"
    defaults = recipe_defaults(typed(argv, Comparison, Settings))
    asked, settings = parse("compare", argv, Comparison, Settings, purpose="", defaults=defaults, config=True)
    assert set(settings.differences(part.settings("data"))) <= PLACE_ONLY
    assert asked.methods == PARTS[name]
    assert len(read_variants(asked.methods, settings, unequal=asked.unequal)) == len(PARTS[name])


def test_every_method_is_in_the_study():
    # transfer starts from pretrained weights, which this study has none of.
    assert {each.partition(":")[0] for each in cpu_study.ALL} == METHODS.keys() - {"transfer"}
