"""BatchNorm folded into the preceding convolutions, for targets that do not do it themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

_aten = torch.ops.aten
_CONVOLUTIONS = {
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
    _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding,
}  # fmt: skip


def program_of(module: nn.Module, example: Tensor, largest: int | None = None) -> ExportedProgram:
    """Return the exported program of a network.

    Args:
        module: the network, in evaluation mode, on the CPU; it is not changed.
        example: images in the module's format, (N, C, H, W), N >= 1.
        largest: largest batch size; None for any batch size.
    """
    # torch.export treats a batch size of 1 as a constant. Tools that reserve memory look at the example's size.
    batch = example[:1].repeat(largest or 2, 1, 1, 1)
    shapes = None if largest == 1 else ({0: Dim("batch", min=1, max=largest)},)
    with torch.no_grad():
        return torch.export.export(module, (batch,), dynamic_shapes=shapes)


def traced(module: nn.Module, example: Tensor, largest: int | None = None) -> ExportedProgram:
    """Return the program of a network as `program_of` does, with BatchNorm folded into preceding convolutions."""
    graph_module = program_of(module, example, largest).module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    fold_batch_norm(graph_module)
    return program_of(graph_module, example, largest)


def fold_batch_norm(module: GraphModule) -> int:
    """Fold every BatchNorm that directly follows a convolution into it, in place; return how many were folded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> program = torch.export.export(net, (torch.zeros(2, 3, 5, 5),))
        >>> fold_batch_norm(program.module(check_guards=False))
        1
    """
    folded = 0
    for norm in list(module.graph.nodes):
        if norm.target is not _aten.batch_norm.default:
            continue
        convolution, scale, shift, mean, var, training, _, eps, _ = norm.args
        if training or not _folds(convolution):
            continue
        inputs, weight, bias, *rest = (*convolution.args, None)[: max(3, len(convolution.args))]
        kernel, offset = _value(module, weight), _value(module, bias)
        mean, var, scale, shift = (_value(module, each) for each in (mean, var, scale, shift))
        fused = fuse_conv_bn_weights(kernel, offset, mean, var, eps, scale, shift)
        with module.graph.inserting_before(convolution):
            new = [
                _insert(module, f"folded_{norm.name}_{kind}", value)
                for kind, value in zip(("weight", "bias"), fused, strict=True)
            ]
        convolution.args = (inputs, *new, *rest)
        norm.replace_all_uses_with(convolution)
        module.graph.erase_node(norm)
        folded += 1
    module.graph.eliminate_dead_code()
    _forget_unused(module)
    module.recompile()
    return folded


def _folds(node: Any) -> bool:
    """Whether this is a convolution with unshared weights, whose output only the BatchNorm reads."""
    if not isinstance(node, Node) or node.target not in _CONVOLUTIONS or len(node.users) > 1:
        return False
    return all(isinstance(each, Node) and each.op == "get_attr" for each in node.args[1:3] if each is not None)


def _value(module: GraphModule, node: Node | None) -> Any:
    """Return the tensor that a node stands for, in float64, so that folding rounds only once; None stays."""
    if node is None:
        return None
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name).detach().double()


def _insert(module: GraphModule, name: str, value: Tensor) -> Node:
    module.register_buffer(name, value.detach().float())
    return module.graph.get_attr(name)


def _forget_unused(module: GraphModule) -> None:
    """Remove the tensors that no node reads any more: they would be written to the file."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path in {name for name, _ in (*module.named_parameters(), *module.named_buffers())} - used:
        owner, _, name = path.rpartition(".")
        delattr(module.get_submodule(owner), name)
