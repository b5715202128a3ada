"""A file imports only from its own row of the table in docs/tour.md, or from rows below it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "adjoined"
TORCH_ALONE = {
    "network",
    "sharing",
    "loss",
    "penalty",
    "distances",
    "objective",
    "slicing",
    "width_search",
    "atomic",
    "errors",
    "files",
    "json_files",
    "plain",
    "printable",
}
"""Parts that a user imports with `adjoin` and `adjoint_loss`, and what they stand on."""


def part_of(module: str) -> str:
    """Return the file or folder right below `adjoined`, without its suffix; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def table() -> list[list[str]]:
    """Return the parts of the house, line by line, from the top."""
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8").split("```")[1]
    return [re.findall(r"(\w+)(?:/|\.py)", line) for line in text.splitlines()[1:]]


def imports(source: Path) -> Iterator[tuple[str, str, str]]:
    """Yield every import of a package, those inside functions too: where it stands, by which part, of which module."""
    for file in sorted(source.rglob("*.py")):
        part = file.relative_to(source).parts[0].removesuffix(".py").replace("__init__", "")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}:{node.lineno}: relative imports are not followed here"
                of_package = node.module == "adjoined"  # from adjoined import models
                names = [f"adjoined.{each.name}" for each in node.names] if of_package else [str(node.module)]
            for name in names:
                yield f"{file.relative_to(source)}:{node.lineno}", part, name


def upward(source: Path) -> list[str]:
    """Return the imports that point up; the package itself, the public names, may import anything."""
    line = {name: number for number, names in enumerate(table()) for name in names}
    return [
        f"{where} imports {name}"
        for where, part, name in imports(source)
        if part and name.split(".")[0] == "adjoined" and line.get(part_of(name), -1) < line[part]
    ]


def graph(source: Path) -> dict[str, set[str]]:
    """Return file -> the files that it imports anywhere in it, inside functions and for type checkers, too."""
    modules = {}
    for file in source.rglob("*.py"):
        parts = ("adjoined", *file.relative_to(source).with_suffix("").parts)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {each.name for each in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{each.name}" for each in node.names} & modules.keys()  # a file of a folder
                found[name] |= whole or {str(node.module)} & modules.keys()
    return found


def circle(source: Path) -> list[str]:
    """Return files that import each other in a circle; none if there is no circle."""
    try:
        TopologicalSorter(graph(source)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_two_files_import_each_other():
    assert len(graph(SOURCE)["adjoined.network"]) > 3
    assert circle(SOURCE) == []


def test_a_circle_is_found(tmp_path: Path):
    (tmp_path / "one.py").write_text("def f():\n    from adjoined.two import g")
    (tmp_path / "two.py").write_text("if TYPE_CHECKING:\n    import adjoined.three")
    (tmp_path / "three.py").write_text("from adjoined import one")
    assert set(circle(tmp_path)) == {"adjoined.one", "adjoined.two", "adjoined.three"}


def test_nobody_imports_from_inside_slicing():
    inside = [
        f"{where} imports {name}"
        for where, part, name in imports(SOURCE)
        if part != "slicing" and name.startswith("adjoined.slicing.")
    ]
    assert inside == []


def test_the_map_of_slicing_names_what_is_there():
    folder = SOURCE / "slicing"
    text = (folder / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    named = re.findall(r"^ {4}(\w[\w/]*(?:\.py|/))", text, re.MULTILINE)
    assert all((folder / name).exists() for name in named)
    parts = {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    assert parts == {name.partition("/")[0] for name in named if "/" in name}


def test_every_part_stands_in_the_table_once():
    parts = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(name for names in table() for name in names) == sorted(parts - {"__init__"})


def test_arrows_run_down_only():
    assert upward(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("comparison/rows.py", "from adjoined.commands.flags import parse", ["adjoined.commands.flags"]),
        ("runs/x.py", "def f():\n    from adjoined import training", ["adjoined.training"]),
        ("loss.py", "import adjoined.network, adjoined.methods.base as base", ["adjoined.methods.base"]),
        ("runs/x.py", "from adjoined import load", ["adjoined.load"]),
        ("commands/x.py", "from adjoined.commands.flags import parse\nimport adjoined.loss", []),
        ("__init__.py", "from adjoined.runs import load", []),
    ],
)
def test_an_arrow_that_points_up_is_found(tmp_path: Path, file: str, text: str, found: list[str]):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert [line.split(" imports ")[1] for line in upward(tmp_path)] == found


def test_the_core_imports_only_torch():
    allowed = {"adjoined", "torch", *sys.stdlib_module_names}
    seen = [(where, name.split(".")[0]) for where, part, name in imports(SOURCE) if part in TORCH_ALONE]
    assert "torch" in {name for _, name in seen}
    assert [each for each in seen if each[1] not in allowed] == []
