"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

project = "adjoined"
author = "the adjoined contributors"
project_copyright = "the adjoined contributors, MIT licence"
release = version = installed("adjoined")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` where reStructuredText would ask for ``name``
add_module_names = False
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]

html_theme = "pydata_sphinx_theme"
html_title = f"adjoined {release}"
html_static_path = ["_static"]
html_css_files = ["adjoined.css"]
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_sidebars = {"**": ["globaltoc.html"]}
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}

# Formulas are written as MathML, which browsers show by themselves: the pages load nothing from elsewhere.


def _mathml(translator: Any, node: nodes.Element, *, block: bool) -> None:
    # docutils takes the 12 of \frac12 for one number.
    formula = re.sub(r"frac(\d)(\d)", r"frac{\1}{\2}", node.astext())
    try:
        text = tex2mathml(formula, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        text = translator.encode(node.astext())
    translator.body.append(f'<div class="formula">{text}</div>' if block else text)
    raise nodes.SkipNode


def _inline(translator: Any, node: nodes.Element) -> None:
    _mathml(translator, node, block=False)


def _block(translator: Any, node: nodes.Element) -> None:
    _mathml(translator, node, block=True)


# In the repository, pages link to its folders and other pages; the site has the documentation alone.


def _name_places(app: Sphinx, page: str, content: list[str]) -> None:
    """Write a link to a folder or page of the repository, outside of the documentation, as its path."""
    folder = (Path(app.srcdir) / page).parent

    def named(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        inside = target.is_relative_to(app.srcdir)
        if inside or not target.exists() or (target.is_file() and target.suffix != ".md"):
            return link[0]
        path = target.relative_to(Path(app.srcdir).parent).as_posix()
        return f"{link[1]} (`{path}`)" if link[1].strip("`") not in path else f"`{path}`"

    content[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)\)", named, content[0])


def setup(app: Sphinx) -> None:
    """Register how formulas and links to the repository are written."""
    app.connect("source-read", _name_places)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
