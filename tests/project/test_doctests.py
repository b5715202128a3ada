"""The examples in docstrings and in the documentation do what they show."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(SOURCE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "```pycon" in path.read_text(encoding="utf-8")]


def told_by(examples: list[doctest.DocTest]) -> str:
    """Return what differs from what the examples show."""
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for each in examples:
        torch.manual_seed(0)
        runner.run(each, out=failures.append)
    return "".join(failures)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    examples = [each for each in doctest.DocTestFinder().find(module) if each.examples]
    assert examples
    assert told_by(examples) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page(page: Path):
    blocks = re.findall(r"```pycon\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {"__name__": "__main__"}, page.stem, str(page), 0)
    assert told_by([examples]) == ""


def test_there_are_many():
    assert len(MODULES) > 50
    assert "slicing" in [page.stem for page in PAGES]
