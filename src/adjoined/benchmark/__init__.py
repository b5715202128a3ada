"""What networks cost where they run: time, memory and size, base and small networks side by side.

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
"""Those that are measured on a GPU, too."""
IN_PYTORCH = (*ON_GPU, "torch-export")
"""Those that take images in the memory format of PyTorch that is asked for."""
