"""Export base and small networks of well-known models to every target, and compare each file with PyTorch.

Each model has its own process, and finished models are skipped: rerun the command to continue after a stop.

Usage:
    python benchmarks/exports.py --data /path/to/imagenette224 --out benchmarks/results/exports.json
    python benchmarks/exports.py --models resnet18 --size 64          # random images
    python benchmarks/exports.py --table benchmarks/results/exports.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from environment import measuring
from torch import Tensor, nn

from adjoined import AdjoinedError, make_plan
from adjoined.benchmark.environment import command_line, environment
from adjoined.export import TARGETS, write
from adjoined.json_files import read_json, write_json
from adjoined.models import build, resolve
from adjoined.report import units
from adjoined.report.table import Table

MODELS = (
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
    "googlenet",
)
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "torchvision")


@measuring()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--size", type=int, default=224, help="image side, pixels")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--images", type=int, default=16, help="images to compare on")
    parser.add_argument(
        "--calibrate", type=int, default=32, help="images that the norms measure; the first are compared"
    )
    parser.add_argument("--data", type=Path, help="a folder of images; none: random numbers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--table", type=Path, help="only print the Markdown table of a file of results")
    args = parser.parse_args()
    if args.table:
        print(table(read_json(args.table, "results of this script")["files"]).markdown(), end="")
    elif args.one:
        measure(args.one, args)
    else:
        for model in args.models:
            subprocess.run([sys.executable, *sys.argv, "--one", model], check=True)


def measure(model: str, args: argparse.Namespace) -> None:
    """Export one model, base and small, and add each file's figures to the results as soon as they are known."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kept = read_json(args.out, "results of this script")["files"] if args.out.exists() else []
    done = {(each["model"], each["network"], each["target"]) for each in kept}
    if all((model, network, target) in done for network in ("base", "small") for target in args.targets):
        return
    # A network with random weights can give extreme logits for an image that its norms have not measured: of 16 such
    # images EfficientNet-B0 gave one a logit of 363, where PyTorch itself differed from float64 by 1.9e-4.
    images = load(args.data, max(args.images, args.calibrate), args.size)
    base = build(resolve(f"torchvision:{model}"), num_classes=1000, image_size=args.size).eval()
    small = make_plan(base, images[:1], alpha=args.alpha).apply(base).eval()
    for network, module in (("base", base), ("small", small)):
        calibrate(module, images[: args.calibrate])
        compared = images[: args.images]
        for target in args.targets:
            if (model, network, target) in done:
                continue
            figures = one_file(module, compared, target)
            kept.append(
                {"model": model, "network": network, "target": target, "calibrated_on": args.calibrate} | figures
            )
            print(json.dumps(kept[-1]), flush=True)
            here = environment()
            content = {
                **here,
                "command": command_line(sys.argv[:-2]),  # without --one MODEL
                "versions": here["versions"] | {name: version(name) for name in PACKAGES},
                "seed": 0,
                "size": args.size,
                "alpha": args.alpha,
                "images": "real" if args.data else "random",
                "files": kept,
            }
            write_json(args.out, content)


def one_file(module: nn.Module, images: Tensor, target: str) -> dict[str, Any]:
    """Export to one target; return the figures of the file, or the error."""
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = write(module, Path(folder) / f"net{TARGETS[target].suffix}", [(images, images)], to=target)
        except AdjoinedError as error:
            return {"error": str(error)}
    return {"bytes": done.bytes, "cpu_seconds": round(time.process_time() - begin, 1), **done.difference.to_json()}


def calibrate(module: nn.Module, images: Tensor) -> None:
    """Measure the statistics of every BatchNorm on images: with the initial ones the signal fades layer by layer."""
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        module(images)
    module.eval()


def load(folder: Path | None, count: int, size: int) -> Tensor:
    """Return images, float32 (count, 3, size, size), normalised; real ones are spread over the folder."""
    if folder is None:
        return torch.randn(count, 3, size, size)
    from torchvision.transforms.v2.functional import center_crop, resize

    from adjoined.data import load_image
    from adjoined.data.preprocessing import normalise, to_tensor

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = paths[:: len(paths) // count][:count]
    pixels = [center_crop(resize(to_tensor(load_image(path), 3), [size]), [size]) for path in chosen]
    return normalise(torch.stack(pixels), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def table(files: list[dict[str, Any]]) -> Table:
    """Return a row for each model and network: of each target the relative difference, size and time."""
    names = list(dict.fromkeys(each["target"] for each in files))
    found = {(each["model"], each["network"], each["target"]): each for each in files}
    rows = [
        (f"{model}, {network}", *(_cell(found.get((model, network, name))) for name in names))
        for model, network in dict.fromkeys((each["model"], each["network"]) for each in files)
    ]
    return Table(("", *(TARGETS[name].title for name in names)), tuple(rows))


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return units.ABSENT
    if "error" in figures:
        return "failed"
    return f"{figures['relative']:.1e}, {units.size(figures['bytes'])}, {figures['cpu_seconds']:.0f} s"


if __name__ == "__main__":
    main()
