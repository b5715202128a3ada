"""Time one call of each exported detector of `detector.py` in ONNX Runtime and OpenVINO.

`detector.py --export FOLDER` writes the files. Calls of base and small network alternate; use an idle machine.

Usage:

    python examples/detector_files.py
    python examples/detector_files.py build/detectors --threads 2 --seconds 20
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from adjoined.benchmark.turns import Latency, take_turns

OUTPUTS = ("scores", "boxes")
Run = Callable[[Tensor], dict[str, Tensor]]


def exported(network: nn.Module, images: Tensor) -> ExportedProgram:
    """Return a network as torch exports it, for any number of images of this size."""
    return torch.export.export(network, (images[:2],), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}})


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an exported network for ONNX Runtime."""
    torch.onnx.export(program, f=path, dynamo=True, output_names=OUTPUTS, verbose=False)


def open_onnx(path: Path, threads: int = 0) -> Run:
    """Return a function from images to outputs; 0 threads: as many as ONNX Runtime chooses."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings)
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(OUTPUTS, {name: images.numpy()})
        return dict(zip(OUTPUTS, map(torch.from_numpy, found), strict=True))

    return run


def write_openvino(program: ExportedProgram, path: Path) -> None:
    """Write an exported network for OpenVINO, in float32."""
    import openvino

    model = openvino.convert_model(program)
    for output, name in zip(model.outputs, OUTPUTS, strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def open_openvino(path: Path, threads: int = 0) -> Run:
    """Return a function from images to outputs; 0 threads: as many as OpenVINO chooses."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}  # some processors choose bfloat16
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> dict[str, Tensor]:
        found = request.infer([images.numpy()])
        return {name: torch.from_numpy(found[name].copy()) for name in OUTPUTS}

    return run


RUNTIMES = {"ONNX Runtime": (".onnx", write_onnx, open_onnx), "OpenVINO": (".xml", write_openvino, open_openvino)}
"""Name of a runtime -> suffix of its files, how they are written, and how they are opened."""


def latencies(folder: Path, names: Sequence[str], threads: int, seconds: float) -> dict[str, dict[str, Latency]]:
    """Return, for every runtime, the time of one call with one image of each network in the folder."""
    found = {}
    for runtime, (suffix, _, open_it) in RUNTIMES.items():
        runs = {name: open_it(folder / f"{name}{suffix}", threads) for name in names}
        image = torch.zeros(1, 3, 96, 96)
        times = take_turns(runs, image, seconds=seconds / len(RUNTIMES))
        found[runtime] = {name: Latency.of(each, image, threads) for name, each in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of one call of both detectors, in every runtime.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/detectors"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="time to spend")
    options = parser.parse_args()
    names = ("base", "small")
    paths = [options.folder / f"{name}{suffix}" for name in names for suffix, _, _ in RUNTIMES.values()]
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}; `detector.py --export FOLDER` writes them")
    os.environ.setdefault("CI", "true")  # turns off OpenVINO's telemetry
    print("one image, median [quartiles]; other work on this machine affects the times")
    threads = f"{options.threads} thread" + "s" * (options.threads != 1)
    for runtime, times in latencies(options.folder, names, options.threads, options.seconds).items():
        for name, each in times.items():
            quartiles = f"[{each.lower_quartile_ms:.3f} to {each.upper_quartile_ms:.3f}]"
            print(f"{runtime}, {threads}, {name}: {each.median_ms:.3f} ms {quartiles}")
        print(f"{runtime}: {times['base'].median_ms / times['small'].median_ms:.2f} times faster")


if __name__ == "__main__":
    main()
