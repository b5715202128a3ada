"""What the tests of the report page share: a run on a folder of images whose classes have hostile names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_runs import QUIET, TINY

from adjoined.settings import Settings
from adjoined.training import train

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
    return replace(TINY, data=f"folder:{folder}", image_size=16, augment="none", batch_size=12, log_every=1)


def hostile_run(folder: Path) -> Path:
    """Train on such a folder, and return the run folder."""
    run = folder / "a <b>run"
    train(hostile_folder(folder / "images"), run, console=QUIET)
    return run
