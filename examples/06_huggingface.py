"""Two networks from Hugging Face's trainer, saved in transformers' own format and loaded again.

It needs `pip install '.[train,huggingface]'`.

Usage:

    python examples/06_huggingface.py
    python examples/06_huggingface.py --epochs 20
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, TrainingArguments

from adjoined.integrations.huggingface import AdjoinedTrainer


class Digits(Dataset[dict[str, Tensor]]):
    """Digits of 32 x 32 pixels: the first 1,400 for training, the others for testing."""

    def __init__(self, *, train: bool) -> None:
        pixels, labels = load_digits(return_X_y=True)
        x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        self.x, self.y = torch.nn.functional.interpolate(x, scale_factor=4.0), torch.tensor(labels)
        part = slice(0, 1400) if train else slice(1400, None)
        self.x, self.y = self.x[part], self.y[part]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Two networks from Hugging Face's trainer.")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)

    torch.manual_seed(0)
    widths: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [64, 128], "depths": [1, 1]}
    config = ResNetConfig(num_channels=1, layer_type="basic", id2label=dict(enumerate("0123456789")), **widths)
    folder = tempfile.mkdtemp()
    args = TrainingArguments(
        folder,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=64,
        learning_rate=4e-3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    test = Digits(train=False)
    trainer = AdjoinedTrainer(
        ResNetForImageClassification(config),
        args,
        adjoin_settings={"alpha": 4},
        example_input={"pixel_values": test.x[:1]},
        train_dataset=Digits(train=True),
    )
    trainer.train()

    for name, network in (("base", trainer.base), ("small", trainer.extract())):
        assert isinstance(network, PreTrainedModel)
        network.save_pretrained(f"{folder}/{name}")
        again = ResNetForImageClassification.from_pretrained(f"{folder}/{name}").eval()
        size = sum(parameter.numel() for parameter in again.parameters())
        with torch.inference_mode():
            right = (again(test.x).logits.argmax(dim=1) == test.y).float().mean().item()
        print(f"{name}: {size} parameters, {100 * right:.1f} % of the test digits right")


if __name__ == "__main__":
    main()
