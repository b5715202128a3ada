"""Wide residual networks, with norm and activation before each convolution.

Shape legend: N samples, C channels, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.models.layers import conv1x1, conv3x3, initialise


class PreActivationBlock(nn.Module):
    """Twice norm, ReLU and 3x3 convolution, beside a shortcut: (N, C, H, W) to (N, width, H / stride, W / stride).

    If the shape changes, the shortcut is a 1x1 convolution of the activated input.

    Source: He et al., "Identity mappings in deep residual networks", arXiv 1603.05027, figure 4e.
    """

    def __init__(self, inputs: int, width: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, width, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width)
        self.dropout = nn.Dropout(dropout)
        self.projects = stride != 1 or inputs != width
        self.shortcut = conv1x1(inputs, width, stride) if self.projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut(x) + residual(x)."""
        activated = F.relu(self.bn1(x))
        out = self.conv1(activated)
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + self.shortcut(activated if self.projects else x)


class WideResNet(nn.Module):
    """A wide residual network: (N, C, H, W) images to (N, K) logits.

    Args:
        depth: number of layers, 6n + 4.
        factor: k, the factor on the 16, 32 and 64 channels of the three stages.
        num_classes: K.
        in_channels: C.
        dropout: probability of dropping an activation between the two convolutions of a block.

    Source: Zagoruyko and Komodakis, "Wide residual networks", arXiv 1605.07146, table 1.

    Example:
        >>> sum(p.numel() for p in WideResNet(28, 10, num_classes=10).parameters())
        36479194
    """

    def __init__(
        self, depth: int, factor: int, *, num_classes: int, in_channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inputs = 16
        self.conv1 = conv3x3(in_channels, inputs)
        stages = []
        for width, first_stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
            blocks = []
            for stride in [first_stride] + [1] * ((depth - 4) // 6 - 1):
                blocks.append(PreActivationBlock(inputs, width, stride, dropout))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, float (N, K), of images (N, C, H, W)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x))).flatten(1))
