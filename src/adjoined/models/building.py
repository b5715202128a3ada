"""Build a network by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from adjoined.errors import AdjoinedError, check_range
from adjoined.models import own
from adjoined.models.code import build_from_code
from adjoined.models.libraries import build_timm, build_torchvision
from adjoined.models.specs import is_code, resolve

_OWN_FLAGS = ("num_classes", "in_channels", "image_size", "pretrained")


def build(
    spec: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network named by `spec` for images of this kind.

    torchvision's GoogLeNet and Inception are built without their auxiliary heads. Random weights come from torch's
    global generator. If `spec` names a function, the function is run: see `is_code`.

    Args:
        spec: a name in the grammar of `adjoined.models.specs`: `resnet20`, `timm:NAME`, `FILE.py:FUNCTION`, ...
        num_classes: number of logits.
        in_channels: channels of the images; pretrained weights of the first convolution are summed or repeated.
        image_size: height and width of the images, in pixels, for networks whose shape depends on it.
        pretrained: start from the library's pretrained weights, which it downloads once; the last layer is new if the
            number of classes differs.
        options: further arguments for the network, such as `{"width": 2}` for resnet20.

    Returns:
        A module in train mode, on the CPU, in float32: images (N, in_channels, H, W) to logits (N, num_classes).

    Raises:
        AdjoinedError: the model or an option is unknown, the user's function fails, or weights are not available.

    Example:
        >>> network = build("resnet20", num_classes=100, options={"width": 2})
        >>> network.fc
        Linear(in_features=128, out_features=100, bias=True)
    """
    canonical, options = resolve(spec), dict(options or {})
    _check(num_classes, in_channels, options)
    source, _, name = canonical.partition(":")
    if is_code(canonical):
        offered = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        return build_from_code(canonical, offered=offered, pretrained=pretrained, options=options)
    if source == "adjoined":
        return _build_own(name, num_classes, in_channels, pretrained, options)
    build_library = build_timm if source == "timm" else build_torchvision
    try:
        return build_library(
            name,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            pretrained=pretrained,
            options=options,
        )
    except AdjoinedError:
        raise
    except Exception as error:  # the libraries raise almost anything: TypeError, AssertionError, URLError, ...
        advice = [f"Check its options: {', '.join(options)}."] * bool(options)
        advice += [
            "Its pretrained weights are downloaded once; to use a file, give a function that reads it."
        ] * pretrained
        raise AdjoinedError(
            f"{source} cannot build the network: {type(error).__name__}: {str(error).rstrip('. ')}",
            where=f"model {spec!r}",
            fix=" ".join(advice),
        ) from error


def _check(num_classes: int, in_channels: int, options: Mapping[str, Any]) -> None:
    for flag, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        check_range(value >= 1, flag, "at least 1", value)
    for option in options:
        if option in _OWN_FLAGS:
            raise AdjoinedError(
                "the data and `pretrained` determine this, not the options",
                where=f"option {option}",
                fix="Leave it out.",
            )


def _build_own(
    name: str, num_classes: int, in_channels: int, pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    builder = own.find(name)
    assert builder is not None, f"resolve let {name} through"
    if pretrained:
        raise AdjoinedError(
            "this network has no pretrained weights",
            where=f"model adjoined:{name}",
            fix="Leave `pretrained` out, or use a network of timm or torchvision.",
        )
    known = set(inspect.signature(builder).parameters) - set(_OWN_FLAGS)
    for option in options:
        if option not in known:
            raise AdjoinedError(
                "the network has no such option",
                where=f"option {option} of model adjoined:{name}",
                expected=f"one of {', '.join(sorted(known))}",
            )
    try:
        return builder(num_classes=num_classes, in_channels=in_channels, **options)
    except (TypeError, ValueError) as error:
        raise AdjoinedError(f"invalid option: {error}", where=f"model adjoined:{name}", got=options) from error
