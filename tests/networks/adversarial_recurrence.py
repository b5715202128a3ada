"""Networks with recurrent layers and cells."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from constructs import Net
from zoo import conv


class Recurrent(Net):
    """A recurrent layer over the rows of the picture."""

    layer: type[nn.RNNBase] = nn.LSTM
    options: ClassVar[dict[str, object]] = {}

    def parts(self) -> None:
        self.one = self.layer(32, 24, batch_first=True, **self.options)
        self.reads = 48 if self.options.get("bidirectional") else 24

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.mean(3).transpose(1, 2))[0].transpose(1, 2)[..., None]


class LongShortTermMemory(Recurrent):
    pass


class GatedRecurrentUnit(Recurrent):
    layer = nn.GRU


class ElmanNetwork(Recurrent):
    layer = nn.RNN


class TwoLayersBothWays(Recurrent):
    options: ClassVar[dict[str, object]] = {"bidirectional": True, "num_layers": 2}


class LastState(Net):
    """The last hidden state of a recurrent layer that takes time first."""

    reads = 24

    def parts(self) -> None:
        self.one = nn.GRU(32, 24)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.mean(3).permute(2, 0, 1))[1][-1][..., None, None]


class MemoryCell(Net):
    reads = 24

    def parts(self) -> None:
        self.one = nn.LSTMCell(32, 24)

    def mid(self, x: Tensor) -> Tensor:
        state = None
        for column in x.mean(3).unbind(2):
            state = self.one(column, state)
        assert state is not None
        return state[0][..., None, None]


class GatedCell(Net):
    reads = 24

    def parts(self) -> None:
        self.one = nn.GRUCell(32, 24)

    def mid(self, x: Tensor) -> Tensor:
        state = None
        for column in x.mean(3).unbind(2):
            state = self.one(column, state)
        assert state is not None
        return state[..., None, None]


class ConvolutionalMemory(Net):
    """A ConvLSTM cell: four gates from one convolution over input and state."""

    reads = 24

    def parts(self) -> None:
        self.hidden = 24
        self.gates = conv(32 + 24, 4 * 24)

    def mid(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), self.hidden, *x.shape[2:], dtype=x.dtype)
        for _ in range(3):
            i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h
