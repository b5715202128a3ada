"""OpenVINO: an IR of two files, .xml with the graph and the metadata and .bin with the weights."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.export.folding import traced
from adjoined.export.targets import INPUT, OUTPUT


def export(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as described in `Target.export`; `rt_info` holds the metadata under `adjoined`."""
    with _discreetly():
        _save(_convert(module, example), path, metadata)


def quantise(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], calibration: Tensor) -> None:
    """Write the network in int8, by NNCF's post-training quantisation."""
    with _discreetly():
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        logging.getLogger("nncf").setLevel(logging.WARNING)
        images = nncf.Dataset([{INPUT: each.numpy()} for each in calibration.split(1)])
        settings = nncf.AdvancedQuantizationParameters(
            # Ranges cover all images, as with the other targets. NNCF's default, the mean over images, clips values
            # that a small network needs, and its bias correction moved logits further away (docs/export.md).
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            disable_bias_correction=True,
        )
        with redirect_stdout(io.StringIO()):  # its progress bars
            model = nncf.quantize(
                _convert(module, example),
                images,
                subset_size=len(calibration),
                preset=nncf.QuantizationPreset.MIXED,  # asymmetric for asymmetric activations such as SiLU
                advanced_parameters=settings,
            )
        _save(model, path, metadata)


def _convert(module: nn.Module, example: Tensor) -> Any:
    import openvino

    model = openvino.convert_model(traced(module, example))
    (given,), (result,) = model.inputs, model.outputs
    model.reshape({given: openvino.PartialShape([-1, *example.shape[1:]])})
    given.get_tensor().set_names({INPUT})
    result.get_tensor().set_names({OUTPUT})
    return model


def _save(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    import openvino

    for key, text in metadata.items():
        model.set_rt_info(text, ["adjoined", key])
    openvino.save_model(model, path, compress_to_fp16=False)


def load(path: Path, threads: int | None, batch: int | None) -> Callable[[Tensor], Tensor]:
    """Open the files in OpenVINO, on the CPU, in float32: by default some processors compute in bfloat16."""
    settings: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = _core().read_model(path)
    if batch:
        model.reshape([batch, *model.input().partial_shape[1:]])
    request = _core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({INPUT: images.numpy()}, share_inputs=True)[OUTPUT])

    return run


@cache
def _core() -> Any:
    """Return the `Core` that opens all files; it lives as long as the process.

    Each `Core` gives the thread a signal stack, and restores the previous one when it is destroyed. If two are
    destroyed in the order of their creation, the second restores the freed stack of the first: the next signal, such
    as Ctrl-C, then causes a segmentation fault (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


@contextmanager
def _discreetly() -> Iterator[None]:
    """Disable the telemetry of OpenVINO and NNCF, which is on by default outside CI.

    This also prevents PyTorch's search for a CUDA compiler, which NNCF triggers.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
