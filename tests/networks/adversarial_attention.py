"""Networks with attention: between places, between channels, over kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs import Net
from zoo import conv


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def picture(x: Tensor) -> Tensor:
    """(N, 64, C) -> (N, C, 8, 8)."""
    return x.transpose(1, 2).unflatten(2, (8, 8))


class TokenNet(Net):
    """The construct sees tokens (N, 64, C)."""

    def tokens(self, t: Tensor) -> Tensor:
        return t

    def mid(self, x: Tensor) -> Tensor:
        return picture(self.tokens(tokens(x)))


class MultiheadAttention(TokenNet):
    def parts(self) -> None:
        self.one = nn.MultiheadAttention(32, 8, batch_first=True)

    def tokens(self, t: Tensor) -> Tensor:
        return t + self.one(t, t, t)[0]


class EncoderLayer(TokenNet):
    def parts(self) -> None:
        self.one = nn.TransformerEncoderLayer(32, 8, 64, batch_first=True, dropout=0.0)

    def tokens(self, t: Tensor) -> Tensor:
        return self.one(t)


class Heads(TokenNet):
    """Eight heads of four features; queries, keys and values from one linear layer."""

    def parts(self) -> None:
        self.heads = 8
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.more()

    def more(self) -> None:
        """Make more modules."""

    def tokens(self, t: Tensor) -> Tensor:
        return t + self.join(self.split(t)[2])

    def split(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, length, _ = t.shape
        q, k, v = self.qkv(t).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def join(self, t: Tensor) -> Tensor:
        return self.out(t.transpose(1, 2).flatten(2))


class FusedHeads(Heads):
    def tokens(self, t: Tensor) -> Tensor:
        return t + self.join(F.scaled_dot_product_attention(*self.split(t)))


class WrittenHeads(Heads):
    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        return t + self.join(((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v)


class RotatedHeads(Heads):
    """Rotary positions, computed in every call."""

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        half = torch.linspace(1, 0.01, q.shape[-1] // 2)
        angles = (torch.arange(q.shape[2])[:, None] * half).repeat(1, 2)
        q, k = (x * angles.cos() + self.turned(x) * angles.sin() for x in (q, k))
        return t + self.join(F.scaled_dot_product_attention(q, k, v))

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)


class FadedHeads(Heads):
    """The features of a head fade by a fixed ramp."""

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        return t + self.join((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ (v * torch.linspace(1, 0.5, v.shape[-1])))


class BiasedHeads(Heads):
    """A table of relative positions with a bias for every head, as in Swin."""

    def more(self) -> None:
        self.table = nn.Parameter(torch.randn(127, 8))
        self.register_buffer("places", torch.arange(64)[:, None] - torch.arange(64) + 63)

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        bias = self.table[self.get_buffer("places").view(-1)].view(64, 64, -1).permute(2, 0, 1)
        return t + self.join((q @ k.transpose(-2, -1) * 0.5 + bias).softmax(-1) @ v)


class TalkingHeads(Heads):
    """Linear layers mix the heads before and after the softmax."""

    def more(self) -> None:
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        weights = self.before((q @ k.transpose(-2, -1) * 0.5).permute(0, 2, 3, 1)).softmax(-2)
        return t + self.join(self.after(weights).permute(0, 3, 1, 2) @ v)


class TalkingHeadsByConvolution(Heads):
    def more(self) -> None:
        self.before = nn.Conv2d(8, 8, 1)

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.split(t)
        return t + self.join(self.before(q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v)


class SeparateHeads(TokenNet):
    """Queries, keys and values from separate layers; a number of heads is stored."""

    def parts(self) -> None:
        self.heads = 8
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = (f(t).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return t + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SeparateHeadsByWidth(TokenNet):
    """The same with the width of a head stored, instead of their number."""

    def parts(self) -> None:
        self.width = 4
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = (f(t).unflatten(2, (-1, self.width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return t + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ChannelsAttend(Net):
    """Attention between the channels of each head, with a temperature for every head, as in Restormer."""

    def parts(self) -> None:
        self.qkv, self.out = nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1)
        self.temperature = nn.Parameter(torch.rand(4, 1, 1))

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = (t.reshape(n, 4, c // 4, h * w) for t in self.qkv(x).chunk(3, 1))
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        return x + self.out((weights @ v).reshape(n, c, h, w))


class AllChannelsAttend(Net):
    """The dual attention network's channel branch: x (x xᵀ)."""

    def mid(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return x + ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)


class LinearAttention(TokenNet):
    def parts(self) -> None:
        self.q, self.k, self.v = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = self.q(t).relu(), self.k(t).relu(), self.v(t)
        return t + q @ (k.transpose(1, 2) @ v)


class EfficientChannelAttention(Net):
    """A 1-D convolution over the channels."""

    def parts(self) -> None:
        self.one = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def mid(self, x: Tensor) -> Tensor:
        weights = self.one(x.mean((2, 3))[:, None]).sigmoid()
        return x * weights.transpose(1, 2)[..., None]


class ConvolutionalBlockAttention(Net):
    """CBAM: channel attention from mean and maximum, then a map from mean and maximum over channels."""

    def parts(self) -> None:
        self.mlp = nn.Sequential(nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
        self.map = nn.Conv2d(2, 1, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))).sigmoid()
        return x * self.map(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class SelectiveKernel(Net):
    """Two branches, weighted channel by channel by a softmax over the branches."""

    def parts(self) -> None:
        self.branches = nn.ModuleList([conv(32, 32), conv(32, 32, 5)])
        self.down, self.up = nn.Linear(32, 16), nn.ModuleList([nn.Linear(16, 32) for _ in range(2)])

    def mid(self, x: Tensor) -> Tensor:
        outs = torch.stack([branch(x) for branch in self.branches], 1)
        hidden = self.down(outs.sum(1).mean((2, 3))).relu()
        weights = torch.stack([up(hidden) for up in self.up], 1).softmax(1)
        return (outs * weights[..., None, None]).sum(1)


class SplitAttention(Net):
    """ResNeSt: the radix is folded out of the channels of one convolution."""

    def parts(self) -> None:
        self.one, self.down, self.up = conv(32, 64, groups=2), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 64, 1)

    def mid(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        outs = self.one(x).reshape(n, 2, -1, h, w)
        weights = self.up(self.down(outs.sum(1).mean((2, 3), keepdim=True)).relu())
        return (outs * weights.view(n, 2, -1, 1, 1).softmax(1)).sum(1)


class BilinearPooling(Net):
    """x xᵀ: every element belongs to two channels."""

    def parts(self) -> None:
        self.one, self.two = conv(32, 8), nn.Linear(64, 32)

    def mid(self, x: Tensor) -> Tensor:
        y = self.one(x).flatten(2)
        return self.two((y @ y.transpose(1, 2)).flatten(1))[..., None, None]


class KernelsWeighted(Net):
    """CondConv: four kernels, added with weights of each image, all images in one grouped convolution."""

    def parts(self) -> None:
        self.route = nn.Linear(32, 4)
        self.kernels = nn.Parameter(torch.randn(4, 32, 32, 3, 3) / 10)

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weights = self.route(x.mean((2, 3))).sigmoid()
        kernel = (weights[:, :, None, None, None, None] * self.kernels).sum(1)
        out = F.conv2d(x.reshape(1, n * c, h, w), kernel.flatten(0, 1), padding=1, groups=n)
        return out.view(n, -1, h, w)


class KernelsFlat(Net):
    """The same with flat kernels and a matrix product, as in timm."""

    def parts(self) -> None:
        self.shape = (32, 32, 3, 3)
        self.route = nn.Linear(32, 4)
        self.kernels = nn.Parameter(torch.randn(4, 32 * 32 * 9) / 10)

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = (self.route(x.mean((2, 3))).sigmoid() @ self.kernels).view(n * 32, 32, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n).view(n, 32, h, w)


class ExpertsWeighted(Net):
    """Four convolutions, their results added with weights of each image."""

    def parts(self) -> None:
        self.route, self.experts = nn.Linear(32, 4), nn.ModuleList(conv(32, 32) for _ in range(4))

    def mid(self, x: Tensor) -> Tensor:
        weights = self.route(x.mean((2, 3))).softmax(1)
        return sum((weights[:, i, None, None, None] * one(x) for i, one in enumerate(self.experts)), torch.zeros(()))


class Hypernetwork(Net):
    """The kernel is made by a linear layer from a learned vector."""

    def parts(self) -> None:
        self.code, self.make = nn.Parameter(torch.randn(6)), nn.Linear(6, 24 * 32)

    reads = 24

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.make(self.code).view(24, x.shape[1], 1, 1))


class DepthwiseFromImage(Net):
    """A depthwise kernel for every image, made from the image."""

    def parts(self) -> None:
        self.make = nn.Linear(32, 32 * 9)

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.make(x.mean((2, 3))).view(n * c, 1, 3, 3)
        return F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n * c).view(n, c, h, w)


class Involution(Net):
    """A kernel for every place, shared by the channels of each of four groups."""

    def parts(self) -> None:
        self.make = nn.Conv2d(32, 4 * 9, 1)

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.make(x).view(n, 4, 9, h, w)[:, :, None]
        return (F.unfold(x, 3, padding=1).view(n, 4, c // 4, 9, h, w) * kernel).sum(3).view(n, c, h, w)


class AttentionPool(Net):
    """CLIP: one query, the mean; several matrices handed to torch's own function."""

    def parts(self) -> None:
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.heads = 8

    def mid(self, x: Tensor) -> Tensor:
        t = x.flatten(2).permute(2, 0, 1)
        return F.multi_head_attention_forward(
            t.mean(0, keepdim=True), t, t, t.shape[-1], self.heads, None,
            torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None, False, 0.0, self.out.weight, self.out.bias,
            need_weights=False, use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )[0].squeeze(0)[..., None, None]  # fmt: skip


class GroupedQueries(TokenNet):
    """Eight heads of queries share two of keys and values, repeated by torch."""

    def parts(self) -> None:
        self.width = 4
        self.q, self.kv, self.out = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 32)

    def tokens(self, t: Tensor) -> Tensor:
        q, k, v = (each.unflatten(2, (-1, self.width)).transpose(1, 2) for each in (self.q(t), *self.kv(t).chunk(2, 2)))
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


class EncoderDecoder(Net):
    """DETR: torch's own transformer, whose queries are parameters; positions are halves, of rows and columns."""

    def parts(self) -> None:
        self.one = nn.Transformer(32, 8, 1, 1, 48, dropout=0.0, batch_first=True)
        self.queries = nn.Parameter(torch.randn(10, 32))
        self.rows, self.columns = nn.Parameter(torch.randn(8, 16)), nn.Parameter(torch.randn(8, 16))

    def mid(self, x: Tensor) -> Tensor:
        places = torch.cat([self.columns[None].expand(8, -1, -1), self.rows[:, None].expand(-1, 8, -1)], 2)
        found = self.one(tokens(x) + places.flatten(0, 1), self.queries.expand(len(x), -1, -1))
        return found.transpose(1, 2)[..., None]


class DeformableHeads(TokenNet):
    """Each of four heads reads its values at three places of its own, and weighs them."""

    def parts(self) -> None:
        self.heads = 4
        self.values, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
        self.offsets, self.weights = nn.Linear(32, 4 * 3 * 2), nn.Linear(32, 4 * 3)

    def tokens(self, t: Tensor) -> Tensor:
        n, count, _ = t.shape
        values = self.values(t).view(n, count, self.heads, -1).permute(0, 2, 3, 1).reshape(n * self.heads, -1, 8, 8)
        grid = self.offsets(t).view(n, count, self.heads, 3, 2).tanh().transpose(1, 2).flatten(0, 1)
        weights = self.weights(t).view(n, count, self.heads, 3).softmax(-1).transpose(1, 2).flatten(0, 1)
        read = (F.grid_sample(values, grid, align_corners=False) * weights[:, None]).sum(-1)
        return t + self.out(read.reshape(n, -1, count).transpose(1, 2))
