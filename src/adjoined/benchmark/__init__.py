"""Benchmarks of networks: time, memory and size of base and small networks side by side.

Nothing is imported here, so that the command line knows the runtimes without torch.
"""

from __future__ import annotations

RUNTIMES = {
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "torch-export": "torch.export",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}
"""Ways to run a network: name -> title."""
ON_GPU = ("eager", "compiled")
"""Runtimes that are also measured on a GPU."""
IN_PYTORCH = (*ON_GPU, "torch-export")
"""Runtimes that accept images in the requested PyTorch memory format."""
