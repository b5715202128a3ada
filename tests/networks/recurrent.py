"""Recurrent layers and cells, tables of words, and kernels for each image, between convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOUND = torch.zeros(2, 3, 9)


class Recurrent(nn.Module):
    """A recurrent layer over time; with `reads`, the padding in front is a number that a buffer holds."""

    steps: Tensor

    def __init__(self, kind: type[nn.RNNBase], reads: bool = False, **options: int) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv1d(3, 16, 3), kind(16, 32, batch_first=True, **options)
        features = (options.get("proj_size") or 32) * (2 if options.get("bidirectional") else 1)
        self.head, self.reads = nn.Linear(features, 5), reads
        self.register_buffer("steps", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (int(self.steps), 0)) if self.reads else x
        return self.head(self.layer(self.stem(x).relu().transpose(1, 2))[0].mean(1))


class Packed(Recurrent):
    """Sequences of different lengths."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().transpose(1, 2)
        packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1], x.shape[1] - 2], batch_first=True)
        return self.head(nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0].mean(1))


class Cell(nn.Module):
    """A recurrent cell, step by step, from the state that torch gives it, or from zeros of the cell's own width."""

    def __init__(self, kind: type[nn.RNNCellBase], given: bool = False) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Conv1d(3, 16, 3), kind(16, 24), nn.Linear(24, 5)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        pair = isinstance(self.cell, nn.LSTMCell)
        zeros = x.new_zeros(len(x), self.cell.hidden_size)
        state = ((zeros, zeros) if pair else zeros) if self.given else None
        for step in self.stem(x).relu().unbind(2):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0] if pair else state)


class ImageCell(nn.Module):
    """A ConvLSTM on pictures: its gates read a picture beside the state, or each by a layer of its own."""

    def __init__(self, apart: bool = False) -> None:
        super().__init__()
        self.width, self.apart = 16, apart
        self.gates = nn.Conv2d(3 if apart else 3 + 16, 64, 3, padding=1)
        self.again = nn.Conv2d(16, 64, 3, padding=1, bias=False) if apart else nn.Identity()
        self.head = nn.Linear(16, 5)

    def forward(self, clip: Tensor) -> Tensor:
        hidden = cell = clip.new_zeros(len(clip), self.width, *clip.shape[-2:])
        for x in clip.unbind(1):
            gates = self.gates(x) + self.again(hidden) if self.apart else self.gates(torch.cat([x, hidden], 1))
            forget, let_in, let_out, new = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
            hidden = let_out.sigmoid() * cell.tanh()
        return self.head(hidden.mean((2, 3)))


class Letters(nn.Module):
    """A recurrent network by hand: a linear layer reads a letter beside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 32
        self.step, self.head = nn.Linear(10 + 32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(len(x), self.width, dtype=x.dtype)
        for letter in x.unbind(1):
            hidden = self.step(torch.cat([letter, hidden], 1)).tanh()
        return self.head(hidden)


class Words(nn.Module):
    """Features of words before a convolution: of each word, or of all of them together."""

    def __init__(self, together: bool = False) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(50, 32) if together else nn.Embedding(50, 32, padding_idx=0)
        self.conv, self.head = nn.Conv1d(32, 24, 3, padding=1), nn.Linear(24, 5)

    def forward(self, words: Tensor) -> Tensor:
        features = self.table(words)
        features = features[..., None] if features.ndim == 2 else features.transpose(1, 2)
        return self.head(self.conv(features).relu().mean(2))


class ModulatedUpsampling(nn.Module):
    """StyleGAN2's: a transposed convolution whose groups are the images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.style, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 16), nn.Conv2d(24, 5, 1)
        self.weight = nn.Parameter(torch.randn(24, 16, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        n, c, h, w = x.shape
        weight = self.weight * (self.style(x.mean((2, 3))) + 1)[:, None, :, None, None]
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        weight = weight.transpose(1, 2).flatten(0, 1)
        x = F.conv_transpose2d(x.reshape(1, n * c, h, w), weight, stride=2, groups=n)
        return self.head(x.view(n, -1, *x.shape[2:]).relu())


class Tracker(nn.Module):
    """SiamFC's: the features of each image are searched for those of another one, the kernel of its own group."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1))
        self.head = nn.Conv2d(1, 2, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        wanted, x = self.features(pictures[:, :, :4, :4]), self.features(pictures)
        n, c, h, w = x.shape
        return self.head(F.conv2d(x.reshape(1, n * c, h, w), wanted, groups=n).transpose(0, 1))
