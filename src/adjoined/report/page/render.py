"""Render a run's story as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from adjoined.printable import printable
from adjoined.report.benchmark import benchmark_tables
from adjoined.report.page import comparison, findings, sections
from adjoined.report.page.charts import HEIGHT, WIDTH, look, place
from adjoined.report.page.evidence import Evidence
from adjoined.report.page.masks import MaskCase
from adjoined.report.page.story import RunStory
from adjoined.report.table import Table


def run_page(
    story: RunStory,
    evidence: Evidence | None = None,
    results: Table | None = None,
    masks: Sequence[MaskCase] = (),
) -> str:
    """Return the page of one run.

    Without `evidence`, the sections on predictions are left out.
    """
    context: dict[str, Any] = {
        "title": sections.title(story),
        "story": story,
        "facts": sections.facts(story),
        "tiles": sections.tiles(story.figures),
        "networks": [(label, look(place(label))) for label in story.labels],
        "results": results,
        "curves": sections.learning_curves(story),
        "trade_offs": sections.trade_offs([(each.name, place(each.name), each) for each in story.figures]),
        "paper_loss": sections.is_paper_loss(story.settings),
        "penalty": sections.penalty_chart(story),
        "benchmark": benchmark_tables(story.benchmark) if story.benchmark else [],
        "exports": sections.export_tables(story.exports),
        "settings": sections.settings_tables(story),
        "commands": sections.commands(story),
        "commit": sections.commit(story),
        "evidence": evidence,
        "masks": masks,
    }
    if evidence:
        charts, errors = findings.calibration_charts(evidence)
        context |= {
            "widths": findings.width_chart(evidence),
            "matrices": findings.matrices(evidence),
            "pairs": findings.confused_pairs(evidence),
            "by_class": findings.class_table(evidence),
            "calibration": charts,
            "errors": errors,
        }
        if len(evidence.answers.classes) > 1:
            context |= {"agreement": findings.agreement_table(evidence), "galleries": findings.galleries(evidence)}
    return _render("run.html", context)


def comparison_page(stories: Sequence[RunStory]) -> str:
    """Return the page of several runs side by side."""
    return _render("comparison.html", comparison.contents(stories))


def _render(name: str, context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Class names, paths and commands are untrusted text: everything is escaped except what svg.py has escaped already.
    environment = Environment(
        loader=PackageLoader("adjoined.report.page", "assets"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = asset("theme.css") + asset("page.css"), asset("page.js")
    # The browser may load nothing and may run only the page's own script.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(name).render(
        {
            **context,
            "style": Markup(style),
            "script": Markup(script),
            "policy": policy,
            "width": WIDTH,
            "height": HEIGHT,
            "version": version("adjoined"),
            "written": f"{datetime.now(UTC):%d %B %Y, %H:%M %Z}",
        }
    )


def _printable(value: object) -> object:
    """Return an untrusted text as the page shows it."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def asset(name: str) -> str:
    """Return the text of a file of the page, such as its style."""
    return files("adjoined.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
