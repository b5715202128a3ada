"""Residual networks for small images: the CIFAR family, ResNet-18/34/50 with a 3x3 stem, and one for 8x8 digits.

Shape legend: N samples, C channels, H and W height and width in pixels, K classes.

The modules are named as in torchvision (`conv1`, `layer1.0.conv2`, `fc`), so that patterns such as `keep=["layer1"]`
carry over. Every shortcut that changes the shape is a 1x1 convolution with its normalisation ("option B").
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.models.layers import conv1x1, conv3x3, initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C, H, W) to (N, width, H / stride, W / stride).

    Source: He et al., "Deep residual learning for image recognition", arXiv 1512.03385, figure 5, left.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual(x))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut: (N, C, H, W) to (N, 4 width, H / stride, W / stride).

    The 3x3 convolution has the stride, which loses less accuracy than in the first 1x1 convolution.

    Source: arXiv 1512.03385, figure 5, right.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv1x1(inputs, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1x1(width, outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + residual(x))."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """A residual network with a 3x3 stem of stride 1 and no max pool: (N, C, H, W) images to (N, K) logits.

    Args:
        block: BasicBlock or Bottleneck.
        depths: number of blocks in each stage; every stage except the first halves height and width.
        widths: channels inside the blocks of each stage; the stem has as many channels as the first stage.
        num_classes: K.
        in_channels: C.
        zero_init: start every residual branch at zero (gamma of its last normalisation), as in Goyal et al.,
            arXiv 1706.02677, section 5.1; it helps deep networks at large batches.

    Example:
        >>> network = ResNet(BasicBlock, depths=(1, 1), widths=(8, 16), num_classes=10, in_channels=1)
        >>> network.layer2[0].conv1.weight.shape
        torch.Size([16, 8, 3, 3])
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        inputs = widths[0]
        self.conv1, self.bn1 = conv3x3(in_channels, inputs), nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for name, depth, width in zip(self.stages, depths, widths, strict=True):
            strides = [1 if name == "layer1" else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(inputs, width, stride))
                inputs = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)
        if zero_init:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                    nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, float (N, K), of images (N, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def cifar_family(
    depth: int, *, num_classes: int, in_channels: int = 3, width: float = 1.0, zero_init: bool = False
) -> ResNet:
    """Return the ResNet of He et al. for CIFAR: three stages of basic blocks with 16, 32 and 64 channels.

    Args:
        depth: number of layers, 6n + 2: 8, 14, 20, 32, 44, 56, 110.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channels: 4 gives 64, 128 and 256, as in the "resnet32x4" of the distillation literature
            (whose stem keeps 32).
        zero_init: see `ResNet`.

    Raises:
        AdjoinedError: `width` leaves a stage without channels.

    Source: arXiv 1512.03385, section 4.2, here with 1x1 projections as shortcuts.

    Example:
        >>> sum(p.numel() for p in cifar_family(20, num_classes=10).parameters())
        272474
    """
    widths = _scaled((16, 32, 64), width)
    blocks = [(depth - 2) // 6] * 3
    return ResNet(BasicBlock, blocks, widths, num_classes=num_classes, in_channels=in_channels, zero_init=zero_init)


def imagenet_family(depth: int, *, num_classes: int, in_channels: int = 3, zero_init: bool = False) -> ResNet:
    """Return ResNet-18, -34 or -50 with the stem used for images of 32 pixels: one 3x3 convolution, no max pool.

    Args:
        depth: 18, 34 or 50.
        num_classes: number of logits.
        in_channels: channels of the images.
        zero_init: see `ResNet`.

    Source: arXiv 1512.03385, table 1, with the stem replaced.

    Example:
        >>> sum(p.numel() for p in imagenet_family(18, num_classes=10).parameters())
        11173962
    """
    block = Bottleneck if depth >= 50 else BasicBlock
    depths = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    widths = (64, 128, 256, 512)
    return ResNet(block, depths, widths, num_classes=num_classes, in_channels=in_channels, zero_init=zero_init)


def digits_resnet(*, num_classes: int, in_channels: int = 1, width: float = 1.0, zero_init: bool = False) -> ResNet:
    """Return a residual network for images of 8 pixels: three stages of one basic block, 32, 64 and 128 channels.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        width: factor on all channels.
        zero_init: see `ResNet`.

    Raises:
        AdjoinedError: `width` leaves a stage without channels.

    Example:
        >>> sum(p.numel() for p in digits_resnet(num_classes=10).parameters())
        308074
    """
    widths = _scaled((32, 64, 128), width)
    return ResNet(BasicBlock, [1] * 3, widths, num_classes=num_classes, in_channels=in_channels, zero_init=zero_init)


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    scaled = [round(factor * width) for width in widths]
    if min(scaled) < 1:
        raise AdjoinedError(
            "the width is too small",
            where="option width",
            expected=f"a factor that leaves at least one of the {widths[0]} channels of the first stage",
            got=factor,
        )
    return scaled


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
