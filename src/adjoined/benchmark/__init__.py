"""What networks cost where they run: time, memory and size, base and small networks side by side.

Nothing is imported here, so that the command line knows the runtimes without torch.
"""

from __future__ import annotations

RUNTIMES = {
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}
"""Ways to run a network: name -> title."""
ON_GPU = ("eager", "compiled")
"""Those that are measured on a GPU, too."""
