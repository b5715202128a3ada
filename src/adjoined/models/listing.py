"""The networks whose names match a pattern, with a short description of each."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from adjoined.models import own
from adjoined.models.libraries import timm_weights, torchvision_has_weights, torchvision_segmentation_names
from adjoined.models.specs import LIBRARIES
from adjoined.models.usual import usual_input


class Listed(NamedTuple):
    """A network by name."""

    spec: str
    """The name, as `adjoined.models.build` takes it."""
    about: str
    """A sentence on a built-in network; of a library's, its usual images and whether weights are offered."""
    pretrained: bool
    """Whether its library offers pretrained weights."""


def matching(pattern: str) -> list[Listed]:
    """Return the networks that a pattern names, library by library. Nothing is built or downloaded.

    Args:
        pattern: a part of the name, with or without its library, or a whole name with `*` and `?`; capitals do not
            matter. With a dot it also matches the single weights of timm's networks, `NETWORK.TAG`.

    Example:
        >>> [each.spec for each in matching("resnet110")], [each.spec for each in matching("torchvision:resnet1?")]
        (['adjoined:resnet110'], ['torchvision:resnet18'])
        >>> matching("timm:resnet18.a1*")
        [Listed(spec='timm:resnet18.a1_in1k', about='224 px, pretrained', pretrained=True)]
    """
    asked = pattern.lower()
    whole = asked if set(asked) & set("*?") else f"*{asked}*"
    names = {library: list_names() for library, list_names in LIBRARIES.items()}
    if "." in asked:
        names["timm"] = [*names["timm"], *timm_weights()]
    specs = [(library, name) for library, known in names.items() for name in known]
    return [
        _listed(library, name)
        for library, name in specs
        if fnmatchcase(name.lower(), whole) or fnmatchcase(f"{library}:{name}".lower(), whole)
    ]


def _listed(library: str, name: str) -> Listed:
    spec = f"{library}:{name}"
    if library == "adjoined":
        return Listed(spec, own.about(name), pretrained=False)
    if library == "timm":
        pretrained = any(each == name or each.startswith(f"{name}.") for each in timm_weights())
    else:
        pretrained = torchvision_has_weights(name)
    weights = "pretrained" if pretrained else "no pretrained weights"
    if library == "torchvision" and name in torchvision_segmentation_names():
        return Listed(spec, f"for classes of pixels, {weights}", pretrained)
    return Listed(spec, f"{usual_input(spec).size} px, {weights}", pretrained)
