"""After the first run: what ties and pins channels without an operator that shows it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import LABEL, Ties, distinct, sets_of
from adjoined.slicing.flow.not_channels import pin_places
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.flow.unreached import follow_unreached, parts_that_ran
from adjoined.slicing.model.code import may_name, names_in_use
from adjoined.slicing.model.misuse import another_path
from adjoined.slicing.model.modules import and_parents, is_inside
from adjoined.slicing.plan.reasons import Kind, Reason

OUTPUT = Reason(Kind.OUTPUT, "model output")
OF_OUTPUT = Reason(Kind.OUTPUT, "a model output is a statistic over them")


def complete(
    flow: LabelFlow,
    model: nn.Module,
    outputs: list[Tensor],
    kept: list[Tensor],
    labels: dict[str, list[Tensor | None]],
    layers: set[str],
) -> dict[str, str]:
    """Tie and pin what the operators alone do not show, now that the model has run; return the unreached parts.

    `kept` is what its forward stored in attributes, such as features, or logits for another loss.

    Raises:
        AdjoinedError: values decided which layers ran.
    """
    assert isinstance(flow.ties, Ties)
    ties, findings = flow.ties, flow.findings
    for out in outputs:
        for slot in (*flow.slots(out), *flow.choices.get(out, ())):
            ties.pin(slot, OUTPUT)
    _pin_summarised(flow, [*outputs, *kept])
    for prefix, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            _pin_scripted(prefix, module.original_name, labels, ties)
        elif isinstance(module, nn.MultiheadAttention):
            _tie_heads(flow, prefix, module, labels)
    if flow.values.read_in is not None and (others := _others(model, findings)):
        raise another_path(model, flow.values.read_in, others)
    unreached = follow_unreached(model, labels, ties, findings)
    pin_places(ties, findings, labels, layers)
    _pin_unread(flow, kept)
    return unreached


def _others(model: nn.Module, findings: Findings) -> list[str]:
    """Return the modules whose weights were not read, and which code may run for another input."""
    names = names_in_use(model, {module for name, module in model.named_modules() if name in findings.ran})
    ran, never = parts_that_ran(model, findings), list[str]()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name not in findings.readers:
            owner = name.rpartition(".")[0]
            outermost = next((each for each in reversed([*and_parents(owner)]) if each not in ran), name)
            if owner not in never and may_name(model, names, outermost):
                never.append(owner)
    return never


def _pin_summarised(flow: LabelFlow, outputs: Iterable[Tensor]) -> None:
    """Pin what no layer reads but an output summarises, such as classes whose entropy or confidence is returned."""
    read = {flow.ties.find(label) for label in flow.findings.read}
    for slot in (slot for out in outputs for slot in flow.statistics.get(out, {}).values()):
        if read.isdisjoint(map(flow.ties.find, distinct(slot))):
            flow.ties.pin(slot, OF_OUTPUT)


def _pin_scripted(prefix: str, made_from: str, labels: dict[str, list[Tensor | None]], ties: Ties) -> None:
    """Pin the channels of a scripted module; `made_from` is its Python class."""
    what = f"the TorchScript module '{prefix}' (class {made_from})"
    reason = Reason(Kind.TORCH_SCRIPT, f"they belong to {what}, which cannot be resized")
    for name, vectors in labels.items():
        for vector in vectors if is_inside(name, prefix) else ():
            if vector is not None:
                ties.pin(vector, reason)


def _tie_heads(
    flow: LabelFlow, prefix: str, module: nn.MultiheadAttention, labels: dict[str, list[Tensor | None]]
) -> None:
    """Tie what torch's attention assumes to be equal: its outer and inner features, and their order in the heads."""
    heads, width = module.num_heads, module.head_dim
    inside: list[Tensor | None] = []
    packed, separate = ("in_proj_weight", "in_proj_bias"), ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    for name in (*packed, *separate, "out_proj.weight"):
        rows, *columns = labels.get(f"{prefix}.{name}", [None])
        inside += [None] if rows is None else rows.split(heads * width)
        if not name.startswith(("k_", "v_")):
            inside += columns
    vectors = [vector for vector in inside if vector is not None]
    whole = heads > 1 and not flow.slices_inside(prefix, heads, width)
    for vector in vectors:
        flow.tie(vectors[0], vector)
        flow.collapse(vector.view(heads, width), (0,) if whole else (1,))
    if whole and vectors:
        flow.findings.conv_groups[prefix] = vectors[0].view(heads, width)[:, 0].clone()
    else:
        flow.findings.crossing[prefix] = "1/√d of the heads' width d"  # which the check does not compute


def _pin_unread(flow: LabelFlow, kept: Iterable[Tensor]) -> None:
    """Pin what nothing reads to full width if an early exit may return it, or if the forward stores it."""
    ties, findings = flow.ties, flow.findings
    assert isinstance(ties, Ties)
    read = {ties.find(label) for label in findings.read | (findings.reduced - findings.decided)}
    stored = {ties.find(label) for tensor in kept for slot in flow.slots(tensor) for label in distinct(slot)}
    for root, members in sets_of(ties.roots()):
        if root not in read and len(members) > 1 and (flow.values.decide or root in stored):
            unread = torch.tensor(members, dtype=LABEL, device="cpu")
            ties.pin(unread, Reason(Kind.UNREAD, "no layer that ran reads them"))
