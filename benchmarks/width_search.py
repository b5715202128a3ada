"""Do searched widths give a better small network than one alpha for all, at equal MACs?

    python benchmarks/width_search.py                                   # digits, seeds 0 to 2
    python benchmarks/width_search.py --model resnet20 --data cifar100 --data-root FOLDER --epochs 12 --seeds 2

For each seed: the base is trained alone; widths are searched on training images; then a joint network is trained from
that base, once with the uniform plan and once with the searched one, with the same images, seed and epochs.
"""

from __future__ import annotations

import argparse
import copy
from itertools import islice

import torch
from torch import Tensor, nn

from adjoined import SlicePlan, adjoin, adjoint_loss
from adjoined.data import ImageData, open_data
from adjoined.loss import sum_cross_entropy
from adjoined.models import build
from adjoined.settings import Settings
from adjoined.slicing import make_plan
from adjoined.training.loaders import training_batches
from adjoined.width_search import search_widths

HELD_OUT = 4
"""Batches on which widths are searched, of an epoch that the training does not have."""


def train(network: nn.Module, settings: Settings, images: ImageData) -> None:
    """Train a base alone, or a joint network, with SGD and a cosine schedule."""
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    for epoch in range(settings.epochs):
        network.train()
        for x, y in training_batches(settings, images, torch.device("cpu"), epoch):
            outputs = network(x)
            if isinstance(outputs, Tensor):
                loss = sum_cross_entropy([outputs], y)
            else:
                p, q = outputs
                loss = adjoint_loss(p, q, y, progress=1, small_ce=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: ImageData) -> float:
    """Return the share of validation images whose class is right."""
    network.eval()
    right = [(network(x).argmax(1) == y).float() for x, y in images.val_loader()]
    return float(torch.cat(right).mean())


def small_accuracy(base: nn.Module, plan: SlicePlan, x: Tensor, settings: Settings, images: ImageData) -> float:
    """Return the accuracy of a small network trained together with a copy of the base."""
    torch.manual_seed(settings.seed)
    net = adjoin(copy.deepcopy(base), x, plan=plan, order="l1")
    train(net, settings, images)
    net.measure_statistics(training_batches(settings, images, torch.device("cpu"), settings.epochs))
    return accuracy(net.extract(), images)


def main() -> None:
    """Train and print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", default=Settings().data_root)
    parser.add_argument("--limit", type=int, help="training images per class")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=4)
    parser.add_argument("--round-to", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    print("seed  base    uniform  searched  MACs uniform  MACs searched  widths")
    for seed in range(args.seeds):
        settings = Settings(
            model=args.model, data=args.data, data_root=args.data_root, limit=args.limit, epochs=args.epochs, seed=seed
        )
        images = open_data(settings.data_settings())
        info = images.info
        torch.manual_seed(seed)
        base = build(args.model, num_classes=info.num_classes, in_channels=info.channels, image_size=info.image_size)
        train(base, settings, images)
        batches = list(islice(training_batches(settings, images, torch.device("cpu"), settings.epochs), HELD_OUT))
        x = batches[0][0][:1]
        uniform = make_plan(base, x, alpha=args.alpha, round_to=args.round_to)
        assert uniform.cost is not None
        budget = f"{uniform.cost.macs} MACs"
        searched = search_widths(
            base, x, batches, lambda p, y: sum_cross_entropy([p], y), budget=budget, round_to=args.round_to
        )
        assert searched.cost is not None
        found = [small_accuracy(base, plan, x, settings, images) for plan in (uniform, searched)]
        print(
            f"{seed:4}  {accuracy(base, images):.2%}  {found[0]:.2%}  {found[1]:.2%}  {uniform.cost.macs}  "
            f"{searched.cost.macs}  {searched.widths}",
            flush=True,
        )


if __name__ == "__main__":
    main()
