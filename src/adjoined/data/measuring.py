"""Other images to evaluate trained networks on, with the networks' labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from adjoined.data.folders import open_all_photos
from adjoined.data.info import DataInfo
from adjoined.data.opening import ImageData, open_source, skip_damaged
from adjoined.data.preprocessing import evaluation_transform
from adjoined.data.scanning import as_text
from adjoined.data.settings import DataSettings, check, folder_of
from adjoined.data.source import Source
from adjoined.errors import AdjoinedError
from adjoined.kinds import CLASSES, in_brief, kind_of

_FIXES = {
    "classification": "Name the folders like the classes, and remove those of other classes.",
    "segmentation": "Name the classes in classes.txt, in the same order as for the training.",
    "multilabel": "Name the labels as for the training, and remove others.",
}


def open_to_measure(settings: DataSettings, info: DataInfo, class_folders: Sequence[str] = ()) -> ImageData:
    """Open evaluation images for networks that were trained on others: all that are not marked as training images.

    These are a data set's test images or its val/ folder or, without such a part, all its images. Classes and
    labels are matched by name, and some may be missing. Split, limit and augmentation do not apply.

    Args:
        settings: the choice of images; of the others, only `root`, `eval_batch_size`, `workers` and `bad_images` apply.
        info: the data that the networks were trained on; the images are prepared like those.
        class_folders: names of the folders of these classes, if they were in folders.

    Returns:
        The images as validation images, with the labels of `info`, and no training images.

    Raises:
        AdjoinedError: as `open_data`; or a class is not among those of `info`.
    """
    check(settings)
    folder = folder_of(settings.name)
    photos = folder if kind_of(settings.name) == "folder" else None
    source = open_source(settings) if photos is None else open_all_photos(photos, channels=info.channels)
    if source.task != info.task:
        raise AdjoinedError(
            "the networks were trained for another task",
            where=f"data {settings.name}",
            expected=f"data for {info.task}",
            got=f"for {source.task}",
        )
    if source.channels != info.channels:
        raise AdjoinedError(
            "the channels of the images differ from those the networks were trained on",
            where=f"data {settings.name}",
            expected=info.channels,
            got=source.channels,
        )
    skipped = skip_damaged(source, settings, info.resize) if settings.bad_images == "skip" else ()
    images, where = source.val if source.val is not None else source.train, f"data {settings.name}"
    if info.task == "classification":
        images = images.relabelled(_matched(source, info, class_folders, where)[images.labels])
    elif info.task == "multilabel":
        images = images.relabelled(_columns(source, info, images.labels, where))
    elif source.class_names != info.class_names[: len(source.class_names)]:
        raise _strange(info, in_brief(source.class_names, info.task), where)
    none = source.train.subset(torch.zeros(len(source.train.labels), dtype=torch.bool))
    transform = evaluation_transform(info)
    return ImageData(
        info=info,
        train=source.dataset(none, transform, info.mean, info.std),
        val=source.dataset(images, transform, info.mean, info.std),
        val_name=source.val_name if source.val is not None else "all of them",
        settings=settings,
        vary=evaluation_transform,
        class_folders=source.class_folders,
        left_out=str(source.left_out),
        skipped=skipped,
    )


def _matched(source: Source, info: DataInfo, class_folders: Sequence[str], where: str) -> Tensor:
    """Return the label in `info` of each class of a source, int64 (classes,)."""
    if source.class_names == info.class_names:
        return torch.arange(len(info.class_names))
    # Two of ImageNet's classes are called crane: only their folders distinguish them.
    count = Counter(info.class_names)
    known = {name: label for label, name in enumerate(info.class_names) if count[name] == 1}
    folders = {name: label for label, name in enumerate(class_folders)}
    places = source.class_folders or source.class_names
    pairs = zip(places, source.class_names, strict=True)
    found = [folders.get(as_text(place), known.get(name)) for place, name in pairs]
    # A class without images does not matter, whatever its name.
    present = set((source.val if source.val is not None else source.train).labels.unique().tolist())
    strange = [name for label, name in enumerate(source.class_names) if found[label] is None and label in present]
    if strange:
        raise _strange(info, f"unknown: {in_brief(strange, info.task)}", where)
    return torch.tensor([-1 if label is None else label for label in found])


def _columns(source: Source, info: DataInfo, labels: Tensor, where: str) -> Tensor:
    """Return the labels of images, 0 or 1 (N, K), with the columns of `info`; a label that is missing is 0."""
    places = {name: place for place, name in enumerate(info.class_names)}
    present = [(column, name) for column, name in enumerate(source.class_names) if labels[:, column].any()]
    if strange := [name for _, name in present if name not in places]:
        raise _strange(info, f"unknown: {in_brief(strange, info.task)}", where)
    found = labels.new_zeros(len(labels), len(places))
    for column, name in present:
        found[:, places[name]] = labels[:, column]
    return found


def _strange(info: DataInfo, got: str, where: str) -> AdjoinedError:
    return AdjoinedError(
        f"the {CLASSES[info.task]} of the images differ from those the networks were trained on",
        where=where,
        expected=in_brief(info.class_names, info.task),
        got=got,
        fix=_FIXES[info.task],
    )
