"""The page, made with Gradio."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from adjoined.data.info import DataInfo
from adjoined.data.preprocessing import evaluation_transform, to_tensor
from adjoined.demo.images import LARGEST_FILE, Picture, open_image
from adjoined.demo.serving import HOST, confine, require
from adjoined.errors import AdjoinedError
from adjoined.report import units
from adjoined.report.page.render import asset
from adjoined.report.table import side_by_side
from adjoined.runs.classify import Prediction, classify

if TYPE_CHECKING:
    import PIL.Image
    from fastapi import FastAPI

CALLS = 11
"""Timed calls of each network; the median is shown."""
GUESSES = 5
"""Classes shown for each network."""
SIDE = 160
"""Height of the images on the page, pixels."""


@dataclass(frozen=True)
class DemoNetwork:
    """One network on the page."""

    name: str
    module: nn.Module
    """In evaluation mode, on the CPU."""
    parameters: int
    file_bytes: int


def page(networks: Sequence[DemoNetwork], info: DataInfo, title: str, examples: Sequence[Picture] = ()) -> FastAPI:
    """Return the page as a web application.

    Raises:
        AdjoinedError: Gradio is not installed.
    """
    require()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and when a page is made
    from fastapi import FastAPI

    gradio: Any = import_module("gradio")  # its types change with its versions
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    confine(app)
    return gradio.mount_gradio_app(
        app,
        _layout(gradio, networks, info, title, examples),
        path="/",
        server_name=HOST,
        max_file_size=LARGEST_FILE,
        theme=_theme(gradio),
        css=asset("theme.css") + asset("demo.css"),
        footer_links=[],
        ssr_mode=False,
        show_error=True,
        enable_monitoring=False,
    )


def _layout(
    gradio: Any, networks: Sequence[DemoNetwork], info: DataInfo, title: str, examples: Sequence[Picture]
) -> Any:
    """Return the elements of the page, as Gradio's blocks, and what a file or a click does."""

    def answer(path: str | None) -> list[Any]:
        if path is None:
            return ["", None, *[None for _ in networks], ""]
        try:
            image = open_image(Path(path))
        except AdjoinedError as error:
            return [_refusal(error), None, *[None for _ in networks], ""]
        return answer_to(image)

    def answer_to(image: PIL.Image.Image, truth: str | None = None) -> list[Any]:
        found = classify([each.module for each in networks], info, image, top=GUESSES, calls=CALLS)
        return ["", _as_seen(info, image), *[dict(each.guesses) for each in found], _table(networks, found, truth)]

    def click(event: Any) -> list[Any]:
        return answer_to(examples[event.index].image, examples[event.index].name)

    click.__annotations__["event"] = gradio.SelectData  # how gradio knows what to hand in
    with gradio.Blocks(title=f"adjoined demo: {title}", analytics_enabled=False) as blocks:
        gradio.HTML(_head(title, info, bool(examples)), elem_classes="adjoined")
        shown = gradio.Gallery(
            [(_enlarged(each.image), each.name) for each in examples],
            label="Validation images",
            show_label=False,
            visible=bool(examples),
            columns=6,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="pictures",
        )
        with gradio.Row():
            given = gradio.File(label="Image", file_types=["image"], type="filepath", height=SIDE, scale=2)
            seen = gradio.Image(
                label="As the networks see it",
                show_label=False,
                interactive=False,
                height=SIDE,
                format="png",
                buttons=[],
                elem_id="seen",
            )
        refused = gradio.HTML(elem_classes="adjoined", elem_id="refused")
        with gradio.Row():
            labels = [
                gradio.Label(
                    label=each.name,
                    num_top_classes=GUESSES,
                    elem_id=each.name,
                    elem_classes=["network", f"n{min(number, 3)}"],
                )
                for number, each in enumerate(networks)
            ]
        table = gradio.HTML(elem_classes="adjoined", elem_id="figures")
        answers = [refused, seen, *labels, table]
        given.change(answer, given, answers, api_name="look", show_progress="minimal")
        shown.select(click, None, answers, api_name=False, show_progress="minimal")
    return blocks


def _theme(gradio: Any) -> Any:
    """Return Gradio's theme in the colours of the report."""
    theme = gradio.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    colours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--paper)",
        "background_fill_secondary": "var(--sheet)",
        "block_background_fill": "var(--paper)",
        "block_label_background_fill": "var(--sheet)",
        "block_label_text_color": "var(--soft)",
        "border_color_primary": "var(--rule)",
        "block_border_color": "var(--rule)",
        "link_text_color": "var(--link)",
    }
    return theme.set(
        color_accent="var(--link)", **colours, **{f"{name}_dark": colour for name, colour in colours.items()}
    )


def _enlarged(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a small image with larger pixels, and a large one smaller, for display."""
    from PIL.Image import Resampling

    times = SIDE // max(image.size)
    if times > 1:
        return image.resize((times * image.width, times * image.height), Resampling.NEAREST)
    shown = image.copy()
    shown.thumbnail((2 * SIDE, 2 * SIDE))
    return shown


def _as_seen(info: DataInfo, image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the crop of the image that the networks see, at their resolution, enlarged for display."""
    from PIL.Image import Resampling
    from torchvision.transforms.v2.functional import to_pil_image

    pixels = to_pil_image(evaluation_transform(info)(to_tensor(image, info.channels)))
    times = max(1, 2 * SIDE // info.image_size)
    return pixels.resize((times * info.image_size, times * info.image_size), Resampling.NEAREST)


def _head(title: str, info: DataInfo, examples: bool) -> str:
    """Return the head of the page: the project's name, the run's, and what to do."""
    kind = "grey" if info.channels == 1 else "colour"
    about = (
        f"{'Click a validation image, or drop your own' if examples else 'Drop an image'}: the networks classify "
        f"it side by side, and the page shows the part that they see. They were trained on {info.name}, "
        f"{info.num_classes} classes, {kind} images of {info.image_size} x {info.image_size} pixels. "
        f"Images stay on this machine."
    )
    return (
        f'<p class="brand">adjoined <span>demo</span></p><h1>{html.escape(title)}</h1>'
        f'<p class="lead">{html.escape(about)}</p>'
    )


def _refusal(error: AdjoinedError) -> str:
    facts = ", ".join(f"{word} {fact}" for word, fact in (("expected", error.expected), ("got", error.got)) if fact)
    text = f"This image was not classified: {error.what}{f' ({facts})' if facts else ''}. {error.fix}"
    return f'<p class="refused" role="alert">{html.escape(text.strip())}</p>'


def _table(networks: Sequence[DemoNetwork], answers: Sequence[Prediction], truth: str | None) -> str:
    decimals = units.decimals_of(each.milliseconds for each in answers)
    milliseconds = partial(units.milliseconds, decimals=decimals)
    table = side_by_side(
        [each.name for each in networks],
        (
            ("parameters", [each.parameters for each in networks], units.count, units.times),
            ("file", [each.file_bytes for each in networks], units.size, units.times),
            ("time of a call", [each.milliseconds for each in answers], milliseconds, units.times),
        ),
    )
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns[1:])
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, *cells in table.rows
    )
    words = f"<p>True class: {html.escape(truth)}.</p>" if truth else ""
    if len(answers) > 1:
        agree = len({each.guesses[0][0] for each in answers}) == 1
        words += f"<p>The networks {'agree' if agree else 'disagree'}.</p>"
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table>{words}"
