"""The report page: one HTML file about one run or several."""

from adjoined.report.page.answers import Answers
from adjoined.report.page.evidence import Evidence
from adjoined.report.page.masks import MaskCase
from adjoined.report.page.render import comparison_page, run_page
from adjoined.report.page.story import RunStory, read_story

__all__ = [
    "Answers",
    "Evidence",
    "MaskCase",
    "RunStory",
    "comparison_page",
    "read_story",
    "run_page",
]
