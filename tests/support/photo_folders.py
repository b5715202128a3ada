"""Folders of drawn photos, and what is opened and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adjoined.data import DataSettings, ImageData, open_data
from adjoined.errors import AdjoinedError


def fill(folder: Path, count: int, suffix: str = "png", seed: int = 0) -> None:
    """Write some pictures of 24 by 20 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.{suffix}")


def three_classes(folder: Path) -> Path:
    """Fill a folder with ten photos of a cat, a dog and an eel each, and return it."""
    for seed, name in enumerate(("cat", "dog", "eel")):
        fill(folder / name, 10, seed=seed)
    return folder


def opened(folder: Path, **settings: Any) -> ImageData:
    """Return the images of a folder at 16 pixels."""
    return open_data(DataSettings(name=f"folder:{folder}", image_size=16, **settings))


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """Return the message with which a call is refused."""
    with pytest.raises(AdjoinedError) as caught:
        function(*arguments)
    return str(caught.value)
