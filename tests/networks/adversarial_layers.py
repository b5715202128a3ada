"""Networks with layers that normalise, sort, resample or transform, and with unusual parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from constructs import Net
from zoo import conv

# ---- norms, and weights that are normalised -------------------------------------------------------------------------


class PooledBesideChannels(Net):
    """Windows of one channel and several places, with the channels among the last dimensions."""

    def mid(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x.transpose(1, 2), (1, 2))  # (N, H, C, W)
        x = F.avg_pool3d(x.unsqueeze(1), (2, 1, 1))
        return F.avg_pool2d(x.squeeze(1).permute(0, 3, 1, 2), (3, 1), 1, (1, 0)).permute(0, 3, 2, 1)  # (N, W, H, C)


class ResponseNorm(Net):
    def parts(self) -> None:
        self.one = nn.LocalResponseNorm(5)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class RootMeanSquareNorm(Net):
    def parts(self) -> None:
        self.one = nn.RMSNorm(32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.movedim(1, -1)).movedim(-1, 1)


class NormOverPicture(Net):
    def parts(self) -> None:
        self.one = nn.LayerNorm([32, 8, 8])

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class NormByHand(Net):
    """ConvNeXt's norm over channels, written out."""

    def parts(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32))

    def mid(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ResponseOfAll(Net):
    """Global response normalisation, as in ConvNeXt V2."""

    def parts(self) -> None:
        self.gamma, self.beta = nn.Parameter(torch.rand(1, 32, 1, 1)), nn.Parameter(torch.rand(1, 32, 1, 1))

    def mid(self, x: Tensor) -> Tensor:
        length = x.norm(p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * (length / (length.mean(1, keepdim=True) + 1e-6))) + self.beta + x


class NormalisedChannels(Net):
    def mid(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class WeightNorm(Net):
    def parts(self) -> None:
        self.one = parametrizations.weight_norm(conv(32, 32))

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class SpectralNorm(Net):
    def parts(self) -> None:
        self.one = parametrizations.spectral_norm(conv(32, 32))

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class StandardisedWeight(Net):
    def parts(self) -> None:
        self.one, self.norm = conv(32, 32), nn.BatchNorm2d(32)

    def mid(self, x: Tensor) -> Tensor:
        w = self.one.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.norm(F.conv2d(x, w, self.one.bias, padding=1))


class StandardisedByBatchNorm(Net):
    """timm's way: the weight goes through batch_norm as one image."""

    def parts(self) -> None:
        self.one = conv(32, 32)
        self.gain = nn.Parameter(torch.ones(32, 1, 1, 1))

    def mid(self, x: Tensor) -> Tensor:
        w = self.one.weight
        w = F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, weight=self.gain.view(-1), training=True)
        return F.conv2d(x, w.reshape_as(self.one.weight), self.one.bias, padding=1)


class CosineClassifier(Net):
    def parts(self) -> None:
        self.classes = nn.Parameter(torch.randn(5, 48))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x)).tanh().mean((2, 3))
        return self.head(x) + 10 * F.normalize(x, dim=1) @ F.normalize(self.classes, dim=1).t()


# ---- order ---------------------------------------------------------------------------------------------------------


class SortedInPairs(Net):
    """The larger of two neighbouring channels, then the smaller, as in networks of bounded slope."""

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).sort(2, descending=True)[0].view(n, c, h, w)


class LargestOfThree(Net):
    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 4, c // 4, h, w).topk(3, 1)[0].flatten(1, 2)

    reads = 24


# ---- resampling and transforms ---------------------------------------------------------------------------------------


class Deformable(Net):
    reads = 24

    def parts(self) -> None:
        from torchvision.ops import DeformConv2d

        self.offset, self.one = conv(32, 18), DeformConv2d(32, 24, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x, self.offset(x) / 10)


class DeformableWithMask(Net):
    """Modulated, with two groups of offsets."""

    reads = 24

    def parts(self) -> None:
        from torchvision.ops import DeformConv2d

        self.offset, self.mask, self.one = conv(32, 36), conv(32, 18), DeformConv2d(32, 24, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x, self.offset(x) / 10, self.mask(x).sigmoid())


class FoldedAndResampled(Net):
    """A generator: features of a linear layer become a small image, which is padded, pooled and enlarged."""

    reads = 24

    def parts(self) -> None:
        self.one = nn.Linear(32, 24 * 16)

    def mid(self, x: Tensor) -> Tensor:
        small = self.one(x.mean((2, 3))).view(len(x), -1, 4, 4)
        small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="reflect"), 3, 1)
        return F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)


class Regions(Net):
    def mid(self, x: Tensor) -> Tensor:
        from torchvision.ops import roi_align

        boxes = torch.tensor([[0, 1.0, 1.0, 6.0, 6.0], [1, 0.0, 2.0, 7.0, 5.0]], dtype=x.dtype)
        return roi_align(x, boxes, (4, 4), sampling_ratio=2)


class GridSampled(Net):
    """A spatial transformer: the grid comes from the picture."""

    def parts(self) -> None:
        self.flow = conv(32, 2)

    def mid(self, x: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, 8, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        return F.grid_sample(x, grid + self.flow(x).movedim(1, -1).tanh() / 8, align_corners=False)


class FourierFilter(Net):
    """A global filter: a learned complex weight for every channel and frequency."""

    def parts(self) -> None:
        self.one = nn.Parameter(torch.randn(32, 8, 5, 2))

    def mid(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.one), s=x.shape[-2:])


class FourierMixing(Net):
    """A Fourier neural operator: complex matrices mix the channels at the lowest frequencies."""

    reads = 24

    def parts(self) -> None:
        self.one = nn.Parameter(torch.randn(32, 24, 3, 3, dtype=torch.cfloat))

    def mid(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros(len(x), self.one.shape[1], 8, 5, dtype=spectrum.dtype)
        out[:, :, :3, :3] = torch.einsum("nixy,ioxy->noxy", spectrum[:, :, :3, :3], self.one.to(spectrum.dtype))
        return torch.fft.irfft2(out, s=(8, 8))


class TransposedInGroups(Net):
    """Groups of a transposed convolution, two layers deep."""

    reads = 16

    def parts(self) -> None:
        self.one, self.norm = nn.ConvTranspose2d(32, 32, 2, stride=2, groups=4), nn.BatchNorm2d(32)
        self.two = nn.ConvTranspose2d(32, 16, 2, stride=2, groups=16)

    def mid(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)).relu())


class TransposedDepthwise(Net):
    """The usual bilinear upsampling by a depthwise transposed convolution."""

    def parts(self) -> None:
        self.one = nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1, groups=32, bias=False)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class Quantised(Net):
    """Vector quantisation: the nearest of 16 learned vectors replaces each place."""

    def parts(self) -> None:
        self.codes = nn.Parameter(torch.randn(16, 32))

    def mid(self, x: Tensor) -> Tensor:
        t = x.movedim(1, -1)
        nearest = self.codes[torch.cdist(t.flatten(0, 2), self.codes).argmin(1)].view_as(t)
        return (t + (nearest - t).detach()).movedim(-1, 1) + nearest.movedim(-1, 1)


class LocalDescriptors(Net):
    """NetVLAD: differences to 16 centres, added up with soft assignments."""

    def parts(self) -> None:
        self.assign, self.centres = nn.Conv2d(32, 16, 1), nn.Parameter(torch.randn(16, 32))
        self.back = nn.Linear(16 * 32, 32)

    def mid(self, x: Tensor) -> Tensor:
        share = self.assign(x).flatten(2).softmax(1)
        differences = x.flatten(2)[:, None] - self.centres[None, :, :, None]
        return self.back((differences * share[:, :, None]).sum(-1).flatten(1))[..., None, None]


class ChannelMixing(Net):
    """Einsums of several forms."""

    def parts(self) -> None:
        self.mix, self.each = nn.Parameter(torch.randn(40, 32) / 6), nn.Parameter(torch.randn(40, 8, 8))
        self.groups = nn.Parameter(torch.randn(8, 5, 4))

    def mid(self, x: Tensor) -> Tensor:
        x = torch.einsum("nchw,dc->nhwd", x, self.mix)
        x = torch.einsum("nhwd,dhw->ndhw", x, self.each)
        x = torch.einsum("ngchw,gcd->ngdhw", x.unflatten(1, (8, -1)), self.groups)
        return x.flatten(1, 2)


class BilinearLayer(Net):
    def parts(self) -> None:
        self.one = nn.Bilinear(32, 32, 16)

    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return self.one(pooled, pooled.tanh())[..., None, None]


class ComplexConvolution(Net):
    """Real and imaginary parts are the two halves of the channels."""

    reads = 48

    def parts(self) -> None:
        self.real, self.imaginary = conv(32, 24), conv(32, 24)

    def mid(self, x: Tensor) -> Tensor:
        z = torch.complex(x, x.flip(3))
        z = torch.complex(self.real(z.real) - self.imaginary(z.imag), self.real(z.imag) + self.imaginary(z.real))
        return torch.cat([z.real, z.imag], 1)


class GraphConvolution(Net):
    """ST-GCN: a convolution for each of three kinds of edges, summed over the neighbours; columns are the nodes."""

    def parts(self) -> None:
        self.one, self.edges = nn.Conv2d(32, 3 * 32, 1), nn.Parameter(torch.randn(3, 8, 8))

    def mid(self, x: Tensor) -> Tensor:
        return torch.einsum("nkchw,kwv->nchv", self.one(x).unflatten(1, (3, -1)), self.edges)
