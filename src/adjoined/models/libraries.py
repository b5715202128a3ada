"""Networks of torchvision and timm, with any number of classes and input channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from adjoined.errors import AdjoinedError

# Only `pretrained` may choose what these load: options may come from an untrusted file.
_FORBIDDEN = {
    "torchvision": {"weights", "weights_backbone", "progress"},
    "timm": {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "in_chans"},
}


@cache
def torchvision_names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    from torchvision import models

    return models.list_models(module=models)


@cache
def torchvision_segmentation_names() -> list[str]:
    """Return the names of torchvision's segmentation networks."""
    from torchvision import models

    return models.list_models(module=models.segmentation)


@cache
def timm_names() -> list[str]:
    """Return the names of timm's networks, without weight tags."""
    import timm

    return timm.list_models()


@cache
def torchvision_has_weights(name: str) -> bool:
    """Return whether torchvision offers pretrained weights for this network. Nothing is downloaded."""
    from torchvision.models import get_model_weights

    return len(get_model_weights(name)) > 0


@cache
def timm_weights() -> list[str]:
    """Return the names of timm's pretrained weights, `NETWORK.TAG` each."""
    import timm

    return timm.list_models(pretrained=True)


def build_torchvision(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None, pretrained: bool, options: Mapping
) -> nn.Module:
    """Build torchvision's network `name`; arguments and errors as in `adjoined.models.build`.

    Segmentation networks return their logits, without the dict around them. GoogLeNet and Inception come without their
    auxiliary heads, and renormalise RGB images as their pretrained weights expect, even without them, so that a network
    is rebuilt identically for weights of any origin.
    """
    from torchvision import models

    _refuse_forbidden("torchvision", options)
    known: dict[str, Any] = {"weights": "DEFAULT"} if pretrained else {"num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        known["transform_input"] = in_channels == 3
        if not pretrained:  # with weights, torchvision sets both itself and accepts no other value
            known |= {"aux_logits": False, "init_weights": True}
    if image_size is not None and name.startswith("vit_"):
        known["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit"):
        known["input_size"] = (image_size, image_size)
    if name in torchvision_segmentation_names():
        known |= {"weights": "DEFAULT" if pretrained else None, "weights_backbone": None}
    model = models.get_model(name, **{**known, **options})
    if name in torchvision_segmentation_names():
        _fit_segmentation(model, num_classes)
    elif pretrained:
        _drop_auxiliary_heads(model)
        _fit_head(model, num_classes)
    if in_channels != 3:
        _fit_stem(model, in_channels, pretrained=pretrained)
    return model


def build_timm(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None, pretrained: bool, options: Mapping
) -> nn.Module:
    """Build timm's network `name`; arguments and errors as in `adjoined.models.build`."""
    import timm

    _refuse_forbidden("timm", options)
    config = timm.get_pretrained_cfg(name)
    # Only networks with a fixed input size accept the argument img_size.
    fixed = image_size is not None and config is not None and config.fixed_input_size
    size = {"img_size": image_size} if fixed else {}
    model = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **{**size, **options}
    )
    if not pretrained or config is None or config.num_classes != num_classes:
        _calm_new_head(model)
    return model


def _calm_new_head(model: nn.Module) -> None:
    """Narrow a last layer whose first logits would be large.

    timm draws the last layer of MobileNets and EfficientNets from a range of 1/sqrt(classes), which suits a thousand
    classes. With three, the logits of the first step have a standard deviation of 6, and training from scratch loses
    epochs until they have shrunk. Such weights get the standard deviation of torch's own initialisation.
    """
    head: object = getattr(model, "get_classifier", lambda: None)()
    if not isinstance(head, nn.Linear):
        return
    with torch.no_grad():
        spread, largest = head.weight.std().item(), head.in_features**-0.5
        if spread > largest:
            head.weight.mul_(largest / math.sqrt(3) / spread)


def _refuse_forbidden(library: str, options: Mapping) -> None:
    for option in sorted(_FORBIDDEN[library] & set(options)):
        raise AdjoinedError(
            "this option is not supported",
            where=f"option {option}",
            fix="Use `pretrained` for the library's weights; the data determine the channels.",
        )


def _fit_segmentation(model: nn.Module, num_classes: int) -> None:
    """Make a segmentation network of torchvision return its logits alone, for these classes."""
    _drop_auxiliary_heads(model)
    model.register_forward_hook(_logits_alone)
    published = 21  # classes of torchvision's weights
    for name, layer in list(model.named_modules()):
        last = isinstance(layer, nn.Conv2d) and name.startswith("classifier") and layer.out_channels == published
        if isinstance(layer, nn.Conv2d) and last and num_classes != published:
            _replace(model, name, _convolution_like(layer, layer.in_channels, num_classes))


def _logits_alone(_module: nn.Module, _inputs: object, output: Any) -> Any:
    return output["out"] if isinstance(output, dict) else output


def _drop_auxiliary_heads(model: nn.Module) -> None:
    modules = ("AuxLogits", "aux1", "aux2", "aux_classifier")
    for name, absent in (*((each, None) for each in modules), ("aux_logits", False)):
        if hasattr(model, name):
            setattr(model, name, absent)


def _fit_head(model: nn.Module, num_classes: int) -> None:
    """Replace the last layer by a new one if it does not have `num_classes` outputs."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    name, head = layers[-1]
    if isinstance(head, nn.Linear) and head.out_features != num_classes:
        _replace(model, name, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))
    elif isinstance(head, nn.Conv2d) and head.out_channels != num_classes:  # squeezenet's classifier is a convolution
        _replace(model, name, _convolution_like(head, head.in_channels, num_classes))


def _fit_stem(model: nn.Module, in_channels: int, *, pretrained: bool) -> None:
    """Replace the first convolution by one for `in_channels`, preserving the variance of its outputs."""
    from timm.models import adapt_input_conv

    name, stem = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    fitted = _convolution_like(stem, in_channels, stem.out_channels)
    with torch.no_grad():
        if pretrained:
            fitted.weight.copy_(adapt_input_conv(in_channels, stem.weight, base_chans=stem.in_channels))
        else:
            fitted.weight.normal_(std=stem.weight.std().item() * math.sqrt(stem.in_channels / in_channels))
        if fitted.bias is not None and stem.bias is not None:
            fitted.bias.copy_(stem.bias)
    _replace(model, name, fitted)


def _convolution_like(conv: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        stride=conv.stride,  # pyright: ignore[reportArgumentType]
        padding=conv.padding,  # pyright: ignore[reportArgumentType]
        dilation=conv.dilation,  # pyright: ignore[reportArgumentType]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
