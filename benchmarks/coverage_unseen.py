# The packages are installed for this set alone (requirements-unseen.txt).
# pyright: reportMissingImports=false
"""Twenty models from packages on which the slicing engine had never been tried, chosen before any of them was sliced.

Random weights, nothing downloaded, small variants and small inputs. The packages and their versions are in
requirements-unseen.txt; results/coverage/README.md describes the first run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

Build = Callable[[], nn.Module]


def _smp_manet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.MAnet("resnet18", encoder_weights=None, classes=5)


def _smp_deeplabv3plus() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=5)


def _monai_segresnet() -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(spatial_dims=3, init_filters=16, in_channels=1, out_channels=3)


def _monai_dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    kernels, strides = [3, 3, 3], [1, 2, 2]
    return DynUNet(3, 1, 3, kernels, strides, strides[1:], filters=[16, 32, 64], res_block=True)


def _monai_basicunet() -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(spatial_dims=3, in_channels=1, out_channels=3)


def _pytorchcv(name: str, **options: Any) -> nn.Module:
    from pytorchcv.model_provider import get_model

    model: Any = get_model(name, pretrained=False, **options)
    return model


def _transformers_regnet() -> nn.Module:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 160, 384], depths=[1, 1, 4, 2], groups_width=16, layer_type="y"
    )
    return RegNetForImageClassification(config)


def _transformers_segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(id2label=dict(enumerate("abcde"))))


def _transformers_bit() -> nn.Module:
    from transformers import BitConfig, BitForImageClassification

    return BitForImageClassification(BitConfig(hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 2, 1], num_groups=8))


def _diffusers_unet() -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(sample_size=32, block_out_channels=(32, 64, 64, 128), attention_head_dim=8)


def _spandrel_rrdb() -> nn.Module:
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=32, num_blocks=3, scale=2)


def _spandrel_span() -> nn.Module:
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=32, upscale=2)


def _facenet() -> nn.Module:
    from facenet_pytorch import InceptionResnetV1

    return InceptionResnetV1(pretrained=None, classify=True, num_classes=100)


def _open_clip() -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet([1, 1, 1, 1], output_dim=128, heads=8, image_size=64, width=32)


def _kornia_hardnet() -> nn.Module:
    from kornia.feature import HardNet

    return HardNet(pretrained=False)


def _pytorchvideo_slowfast() -> nn.Module:
    from pytorchvideo.models.slowfast import create_slowfast

    pools = ((2, 4, 4), (8, 4, 4))  # frames of the two inputs, and positions after a reduction by 32
    return create_slowfast(model_depth=50, model_num_class=20, head_pool_kernel_sizes=pools)


def _images(side: int, channels: int = 3) -> Callable[[], Any]:
    return lambda: torch.zeros(1, channels, side, side)


def _volumes(side: int) -> Callable[[], Any]:
    return lambda: torch.zeros(1, 1, side, side, side)


UNSEEN: dict[str, tuple[Build, Callable[[], Any]]] = {
    "segmentation_models_pytorch/MAnet": (_smp_manet, _images(64)),
    "segmentation_models_pytorch/DeepLabV3Plus": (_smp_deeplabv3plus, _images(64)),
    "monai/SegResNet": (_monai_segresnet, _volumes(16)),
    "monai/DynUNet": (_monai_dynunet, _volumes(16)),
    "monai/BasicUNet": (_monai_basicunet, _volumes(32)),
    "pytorchcv/igcv3_wd4": (partial(_pytorchcv, "igcv3_wd4"), _images(224)),
    "pytorchcv/octresnet10_ad2": (partial(_pytorchcv, "octresnet10_ad2"), _images(224)),
    "pytorchcv/condensenet74_c8_g8": (partial(_pytorchcv, "condensenet74_c8_g8"), _images(224)),
    "pytorchcv/airnet50_1x64d_r16": (partial(_pytorchcv, "airnet50_1x64d_r16"), _images(224)),
    "pytorchcv/quartznet5x5_en_ls": (
        partial(_pytorchcv, "quartznet5x5_en_ls", from_audio=False),
        lambda: (torch.zeros(1, 64, 160), torch.tensor([160])),
    ),
    "transformers/RegNet": (_transformers_regnet, _images(64)),
    "transformers/Segformer": (_transformers_segformer, _images(64)),
    "transformers/BiT": (_transformers_bit, _images(64)),
    "diffusers/UNet2DModel": (_diffusers_unet, lambda: (torch.zeros(1, 3, 32, 32), torch.tensor([7]))),
    "spandrel/ESRGAN": (_spandrel_rrdb, _images(24)),
    "spandrel/SPAN": (_spandrel_span, _images(24)),
    "facenet_pytorch/InceptionResnetV1": (_facenet, _images(160)),
    "open_clip/ModifiedResNet": (_open_clip, _images(64)),
    "kornia/HardNet": (_kornia_hardnet, _images(32, channels=1)),
    "pytorchvideo/SlowFast": (
        _pytorchvideo_slowfast,
        lambda: ([torch.zeros(1, 3, 2, 128, 128), torch.zeros(1, 3, 8, 128, 128)],),
    ),
}
"""PACKAGE/MODEL -> how it is built, and its arguments."""
