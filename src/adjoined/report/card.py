"""The model card of a run: its networks, how accurate they are, how to load them and how they were trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adjoined.printable import counted, markdown, markdown_code
from adjoined.report.figures import Figures, result_table

if TYPE_CHECKING:
    from adjoined.data import DataInfo
    from adjoined.settings import Settings

MOST_CLASSES = 20
"""Largest number of class names that the card lists."""


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Args:
        name: name of the run, the title of the card.
        place: what `adjoined.load` takes: `hub:OWNER/NAME`, or a folder.
        figures: figures of every network, the base first.
        info: the data, and how images are prepared.
        settings: training settings.
        images: a phrase that names the images on which accuracy was measured.
        versions: versions of the libraries used for training.
        code: the name of the user's own function that builds the model, "" for a library's model.
        license: identifier for the metadata; "" leaves it out.
        files: names of the files beside the card.
        teacher: the model of the base network, if it is another one than in the settings; "" if it is the same.
        own_loop: whether the networks were trained in the author's own loop, which the settings do not describe.
    """

    name: str
    place: str
    figures: Sequence[Figures]
    info: DataInfo
    settings: Settings
    images: str
    versions: Mapping[str, str]
    code: str
    license: str
    files: Sequence[str]
    teacher: str = ""
    own_loop: bool = False

    def markdown(self) -> str:
        """Return the card: metadata in YAML, then text in Markdown."""
        base, *smalls = self.figures
        files = "\n".join(f"- {markdown_code(name)}" for name in self.files)
        parts = [
            f"---\n{self._metadata()}\n---",
            f"# {markdown(self.name)}",
            self._summary(),
            result_table(base, smalls).markdown(),
            f"Accuracies: {markdown(self.images)}.",
            f"## How to load\n\n{self._loading()}\n\n{self._about_images()}",
            f"## How it was trained\n\n{self._training()}",
            f"## Files\n\n{files}",
        ]
        return "\n\n".join(part.strip() for part in parts) + "\n"

    def _metadata(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        task, data = "image-classification", self.info.name
        accuracies = [
            EvalResult(
                task_type=task,
                dataset_type=data,
                dataset_name=data,
                metric_type="accuracy",
                metric_name=f"top-1 accuracy of {network.name}",
                metric_value=round(network.top1, 6),
            )
            for network in self.figures
            if network.top1 is not None
        ]
        return ModelCardData(
            model_name=self.name if accuracies else None,
            license=self.license or None,
            library_name="adjoined",
            pipeline_tag=task,
            tags=["adjoined", task, "model-compression", "pytorch"],
            eval_results=accuracies or None,
        ).to_yaml()

    def _summary(self) -> str:
        base, *smalls = self.figures
        settings = self.settings
        if not smalls:
            return f"{markdown(settings.model)}, trained alone on {markdown(self.info.name)} with `adjoined`."
        kinds = [each.name.partition(" ") for each in smalls]  # "small α=2" in a family
        named = [f"{kind} network{f' ({alpha})' if alpha else ''}" for kind, _, alpha in kinds]
        narrow = " and ".join(
            f"a {markdown(name)} with {base.parameters / each.parameters:.1f} times fewer parameters"
            for name, each in zip(named, smalls, strict=True)
        )
        model, data = markdown(settings.model), markdown(self.info.name)
        base_model, whose = (markdown(self.teacher), f"layers of {model}") if self.teacher else (model, "base's layers")
        return (
            f"A base network ({base_model}) and {narrow}, trained on {data} with `adjoined` (adjoined networks, arXiv "
            f"2006.05624). A small network has the {whose} with fewer channels. Each is a plain PyTorch network "
            f"in its own file."
        )

    def _loading(self) -> str:
        handed_in = f", model={self.code!r}" if self.code else ""
        code = "\n".join(
            f"{name.replace('-', '_')} = adjoined.load({self.place!r}, {name!r}"
            f"{'' if self.teacher and name == 'base' else handed_in})"
            for name in dict.fromkeys(network.name.partition(" ")[0] for network in self.figures)
        )
        return f"After `pip install 'adjoined[hub]'`:\n\n```python\nimport adjoined\n\n{code}\n```"

    def _about_images(self) -> str:
        info = self.info
        names = ", ".join(map(markdown, info.class_names[:MOST_CLASSES]))
        more = f" and {info.num_classes - MOST_CLASSES} more" if info.num_classes > MOST_CLASSES else ""
        own = " The author's own code builds the model and is not among the files: pass the model to `load`."
        return (
            f"A network takes float32 (N, {info.channels}, {info.image_size}, {info.image_size}) and returns logits "
            f"(N, {info.num_classes}). Images are resized so that the shorter side has {info.resize} pixels, "
            f"centre-cropped to {info.image_size} x {info.image_size}, divided by 255, and normalised with mean "
            f"{_numbers(info.mean)} and standard deviation {_numbers(info.std)}. Loading never runs code from files."
            f"{own if self.code else ''}\n\nClasses: {names}{more}."
        )

    def _training(self) -> str:
        settings = self.settings
        versions = ", ".join(markdown(f"{name} {version}") for name, version in self.versions.items())
        if self.own_loop:
            return f"In the author's own training loop.\n\nVersions: {versions}."
        return (
            f"Method {settings.method}, {counted(settings.epochs, 'epoch')}, batches of {settings.batch_size}, "
            f"{settings.optimizer} with a learning rate of {settings.lr:g}, seed {settings.seed}. All settings are in "
            f"`settings.yaml`: with the same data, `adjoined train --config settings.yaml` repeats the run."
            f"\n\nVersions: {versions}."
        )


def _numbers(values: Sequence[float]) -> str:
    return json.dumps([round(value, 4) for value in values])
