"""What the tests of the report page share: a page taken apart, and a run whose classes have hostile names."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from adjoined.cli import main
from adjoined.settings import Settings
from adjoined.training import train
from tiny_runs import QUIET, TINY

HOSTILE = ("<script>alert(1)<", '" onmouseover="alert(2)', "{{ 7 * 7 }} & <style>")
"""Names of classes that would run code, close an attribute, or be computed, if a page let them."""


def hostile_folder(folder: Path) -> Settings:
    """Return settings for images of three classes, noise of different brightness, 16 pixels."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 10)):
        for i, name in enumerate(HOSTILE):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120 + 60 * i, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return replace(TINY, data=f"folder:{folder}", image_size=16, batch_size=12, log_every=1)


def hostile_run(folder: Path) -> Path:
    """Train on such a folder, and return the run folder."""
    run = folder / "a <b>run"
    train(hostile_folder(folder / "images"), run, console=QUIET)
    return run


VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """A page taken apart: tags with their attributes, texts by tag, and whether every tag is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags, self.open, self.texts = text, [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def written(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def page_of(*argv: object, out: Path) -> Page:
    assert main(["report", *map(str, argv), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8"))
