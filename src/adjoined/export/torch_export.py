"""torch.export: a .pt2 file that PyTorch loads without the code of the model, and without adjoined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from adjoined.export.folding import traced


def export(module: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the network as described in `Target.export`, with BatchNorm folded; metadata become extra files."""
    program = traced(module, example)
    program.example_inputs = None  # otherwise the file would contain the images
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines and paths of the user's own code
    # torch's own writer aborts the process if the disk is full; Python's raises an error.
    content = BytesIO()
    torch.export.save(program, content, extra_files=dict(metadata))
    path.write_bytes(content.getbuffer())


def load(path: Path, threads: int | None, batch: int | None) -> Callable[[Tensor], Tensor]:
    """Open the file in PyTorch, on the CPU; weights follow the memory format of the images."""
    module = torch.export.load(path).module()
    held = torch.contiguous_format

    def run(images: Tensor) -> Tensor:
        # Convolutions compute in the images' format; weights in another format would be converted at every call.
        nonlocal held
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        if layout != held:
            module.to(memory_format=layout)
            held = layout
        before = torch.get_num_threads()
        wanted = threads or before
        if wanted != before:
            torch.set_num_threads(wanted)
        try:
            with torch.no_grad():
                return module(images)
        finally:
            if wanted != before:
                torch.set_num_threads(before)

    return run
