"""`adjoined models [PATTERN]`: the networks that `--model` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from adjoined.commands.flags import parse
from adjoined.commands.option_fields import OPTIONAL
from adjoined.commands.options import AsJson
from adjoined.commands.streams import print_json
from adjoined.errors import AdjoinedError

PURPOSE = (
    "List the models that `--model` accepts: without a pattern the built-in ones, with a pattern those of torchvision "
    "and timm as well. Nothing is built or downloaded."
)


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(AsJson):
    """Which models."""

    pattern: str = field(default="", metadata=OPTIONAL)
    """A part of the name (mobilenet, timm:convnext), or a whole name with * and ? ('timm:resnet*d'). A dot lists single
    weights of timm (resnet50.)."""


def main(argv: Sequence[str]) -> None:
    """List the models."""
    (options,) = parse("models", argv, ModelsOptions, purpose=PURPOSE)
    from adjoined.models import matching
    from adjoined.models.specs import LIBRARIES, near
    from adjoined.report.console import entries, show

    found = matching(options.pattern or "adjoined:")
    if not found:
        alike = near(options.pattern.rpartition(":")[2].strip("*?."))
        raise AdjoinedError(
            "no model matches this pattern",
            where="PATTERN",
            expected=f"part of a name, such as {', '.join(alike)}" if alike else "part of a name, such as resnet",
            got=options.pattern,
            fix="Shorten the pattern, or use * as a wildcard.",
        )
    if options.json:
        print_json([each._asdict() for each in found])
        return
    lines = entries((each.spec, each.about) for each in found)
    if options.pattern:
        show(lines)
        return
    others = " and ".join(f"{len(names())} of {each}" for each, names in LIBRARIES.items() if each != "adjoined")
    show(
        lines,
        f"And {others}:\n`adjoined models PATTERN` lists those with PATTERN in their\n"
        "names (mobilenet, timm:convnext).\nYour own: FILE.py:FUNCTION or package.module:FUNCTION.",
    )
