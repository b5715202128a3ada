"""Ultralytics' YOLO11 and its small twin from one run of Ultralytics' own trainer, with a callback.

The callback makes the trainer's model adjoined, adds the small network's norms to the optimizer, and replaces the
model's loss: each network has Ultralytics' loss, and the small network is pulled towards the base. The trainer keeps
a moving average of the base's weights; the small network has the weights of the last step. Finally, Ultralytics'
exporter writes the small network as ONNX, and the file's detections are compared with PyTorch's.

Ultralytics' package is not installed with adjoined: `pip install ultralytics`. Its licence, AGPL-3.0 unless you buy
another, may affect what you build with it.

Usage:

    python examples/07_ultralytics.py
    python examples/07_ultralytics.py --epochs 20 --images 256 --model yolov8n.yaml
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import adjoined
from adjoined.distances import bins_kl, confidence, score_kl

SIDE = 96  # pixels


class Adjoined:
    """The callback of a detection trainer. After training, `small` is the small network, a plain module.

    Args:
        alpha: every layer of the small network keeps about 1/alpha of its channels.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha, self.step = alpha, 0
        self.small: Any = None

    def attach(self, yolo: Any) -> None:
        """Let the trainer of a `YOLO` call this object."""
        yolo.add_callback("on_pretrain_routine_end", self.join)
        yolo.add_callback("on_train_end", self.finish)

    def join(self, trainer: Any) -> None:
        """Make the trainer's model adjoined; the optimizer already exists."""
        model, size = trainer.model, trainer.args.imgsz
        example = torch.zeros(1, 3, size, size, device=trainer.device)
        with_sizes_only = model.register_forward_hook(one_channel)
        plan = adjoined.make_plan(model, example, alpha=self.alpha)
        with_sizes_only.remove()
        self.net = adjoined.adjoin(model, example, plan=plan)
        shared = set(model.parameters())
        private = [weight for weight in self.net.parameters() if weight not in shared]  # of norms: without decay
        next(group for group in trainer.optimizer.param_groups if group["param_group"] == "bn")["params"] += private
        self.steps = trainer.epochs * len(trainer.train_loader)
        model.loss = partial(self.loss, model, model.loss)

    def loss(self, model: Any, own: Any, batch: dict[str, Tensor], preds: Any = None) -> tuple[Tensor, Any]:
        """Return the objective of both networks, and the base's terms for the trainer's log."""
        if preds is not None:  # validation
            return own(batch, preds)
        x, items = batch["img"], []

        def task(output: Any) -> Tensor:
            loss, terms = own(batch, output)  # Ultralytics' losses are summed over the images of a batch
            items.append(terms)
            return loss.sum()

        def distance(p: Any, q: Any) -> Tensor:
            return len(x) * head_distance(p, q, bins=model.model[-1].reg_max)

        progress = min(self.step / self.steps, 1.0)  # the trainer may repeat an epoch
        self.step += 1
        loss = adjoined.adjoint_objective(self.net(x), task=task, distance=distance, progress=progress)
        return loss, items[0]

    def finish(self, trainer: Any) -> None:
        """Measure the statistics of the norms on the training images, and extract the small network."""
        self.net.measure_statistics(trainer.preprocess_batch(batch)["img"] for batch in trainer.train_loader)
        self.small = self.net.eval().extract()


def one_channel(module: Any, args: Any, out: Any) -> Any:
    """Leave one channel of the feature maps that a head returns, so that a plan does not keep them whole as outputs.

    The loss uses only their sizes.
    """
    if isinstance(out, dict):
        return {k: [x[:, :1] for x in v] if k == "feats" else one_channel(module, args, v) for k, v in out.items()}
    return type(out)(one_channel(module, args, x) for x in out) if isinstance(out, (tuple, list)) else out


def head_distance(p: dict[str, Tensor], q: dict[str, Tensor], bins: int) -> Tensor:
    """Return the distance of two heads' outputs: `scores` (N, K, A) and `boxes` (N, 4 * bins, A)."""

    def parts(output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores, boxes = (output[name].transpose(1, 2) for name in ("scores", "boxes"))
        return scores, boxes.unflatten(2, (4, bins))

    (p_scores, p_sides), (q_scores, q_sides) = parts(p), parts(q)
    return score_kl(p_scores, q_scores) + bins_kl(p_sides, q_sides, confidence(p_scores))


def with_model(yolo: Any, model: Any) -> Any:
    """Return a `YOLO` that predicts and exports with this model."""
    model.args, model.task = yolo.model.args, yolo.model.task
    for module in model.modules():
        if hasattr(module, "forward_split"):  # only the exporter calls it, so slicing has not seen what it reads
            module.c = module.cv1.conv.out_channels // 2
    yolo.model = model
    return yolo


def draw(folder: Path, count: int) -> Path:
    """Write images of bright and dark squares with their boxes, as Ultralytics reads them; return their YAML file."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            side, label = int(random.integers(16, 40)), int(random.integers(2))
            left, top = (int(each) for each in random.integers(0, SIDE - side, 2))
            pixels[top : top + side, left : left + side] = (30, 230)[label]
            Image.fromarray(pixels).save(folder / "images" / part / f"{number}.png")
            box = [(left + side / 2) / SIDE, (top + side / 2) / SIDE, side / SIDE, side / SIDE]
            (folder / "labels" / part / f"{number}.txt").write_text(" ".join(map(str, [label, *box])))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [dark, bright]\n")
    return folder / "data.yaml"


def apart(one: Any, two: Any) -> float:
    """Return how far any detection is, in pixels, from the nearest one of its class in the other list of results."""
    distance = 0.0
    for first, second in zip(one, two, strict=True):
        # Sorted by score, nearly equal detections may change places.
        placed = [torch.cat([1e6 * each.boxes.cls[:, None], each.boxes.xyxy], dim=1) for each in (first, second)]
        gaps = torch.cdist(*placed, p=torch.inf)
        assert len(placed[0]) == len(placed[1]), "other detections"
        distance = max(
            [distance, *gaps.amin(dim=0).tolist(), *gaps.amin(dim=1).tolist()] if gaps.numel() else [distance]
        )
    return distance


def main() -> None:
    parser = argparse.ArgumentParser(description="A YOLO and its small twin from one run.")
    parser.add_argument("--model", default="yolo11n.yaml", help="a detector whose boxes are bins: yolov8, yolo11")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=16, help="images to train on")
    parser.add_argument("--alpha", type=float, default=2.0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("YOLO_CONFIG_DIR", str(folder))
        from ultralytics import YOLO  # pyright: ignore[reportMissingImports] - no dependency

        data, callback = draw(folder / "data", options.images), Adjoined(options.alpha)
        yolo = YOLO(options.model)
        callback.attach(yolo)
        yolo.train(
            data=str(data),
            epochs=options.epochs,
            imgsz=SIDE,
            batch=8,
            device="cpu",
            workers=0,
            plots=False,
            project=name,
            verbose=False,
        )
        for title, network in (("base", yolo.trainer.model), ("small", callback.small)):
            print(f"{title}: {sum(weight.numel() for weight in network.parameters())} parameters")
        small = with_model(YOLO(options.model), callback.small)
        small.model.pt_path = str(folder / "small.pt")  # the exporter writes beside it
        written = YOLO(small.export(format="onnx", imgsz=SIDE, simplify=False), task="detect")
        images = sorted((folder / "data" / "images" / "val").iterdir())[:8]
        settings = {"imgsz": SIDE, "conf": 1e-4, "verbose": False}
        here, there = (each.predict(images, **settings) for each in (small, written))
        found = sum(len(each.boxes) for each in here)
        print(f"small.onnx: {found} detections, boxes at most {apart(here, there):.1g} pixels apart")


if __name__ == "__main__":
    main()
