"""ONNX: one file with weights and metadata, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.export.targets import INPUT, OUTPUT

BATCH = "batch"
"""Name of the dynamic dimension."""

LARGEST_FILE = 2**31 - 1
"""Most bytes that protobuf allows in one file."""

CALIBRATION_BATCH = 16
"""Batch size of the calibration, which holds all activations in memory."""


def export(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as described in `Target.export`; the exporter folds BatchNorm into convolutions."""
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    if weights > LARGEST_FILE:
        raise AdjoinedError("too large for one ONNX file", where=path, expected="at most 2 GiB", got=weights)
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (example[:1].expand(2, *example.shape[1:]),),  # the exporter treats a batch size of 1 as a constant
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            verbose=False,
        )
    assert program is not None
    graph = program.model.graph
    # The exporter notes the source line of each node, which is useless in a file that is passed on.
    for each in (*graph.all_nodes(), *graph.inputs, *graph.outputs, *graph.initializers.values()):
        each.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def quantise(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], calibration: Tensor) -> None:
    """Write the network in int8, by ONNX Runtime's static quantiser in the QDQ format."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(calibration.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    whole, inferred = path.with_suffix(".fp32.onnx"), path.with_suffix(".inferred.onnx")
    try:
        export(module, example, whole, metadata)
        quant_pre_process(whole, inferred, skip_symbolic_shape=True)
        # Unsigned activations and signed weights, as the integer instructions of x86 need.
        quantize_static(
            inferred,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        whole.unlink(missing_ok=True)
        inferred.unlink(missing_ok=True)


def load(path: Path, threads: int | None, batch: int | None) -> Callable[[Tensor], Tensor]:
    """Open the file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: one per core
    if batch:
        options.add_free_dimension_override_by_name(BATCH, batch)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run
