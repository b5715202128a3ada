"""torchvision's detectors in joint training: their own losses, and the outputs of their dense head for a distance.

Shape legend: N images, A anchors over all levels, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adjoined.distances import confidence, score_kl
from adjoined.errors import AdjoinedError


class WithHead(nn.Module):
    """A detector of torchvision that in training returns its losses, and what its dense head predicts.

    Faster, Mask and Keypoint R-CNN have a dense head that proposes regions; RetinaNet, FCOS, SSD and SSDlite have one
    that predicts classes and boxes. In evaluation mode the output is the detector's own. After training, the small
    detector is `net.extract().detector`.

    Args:
        detector: the detector; it is used, not copied.

    Raises:
        AdjoinedError: the module has no dense head.

    Example:
        >>> from functools import partial
        >>> import adjoined
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> model = WithHead(ssdlite320_mobilenet_v3_large(num_classes=4))  # doctest: +SKIP
        >>> net = adjoined.adjoin(model, ([torch.rand(3, 320, 320)],), alpha=2)  # doctest: +SKIP
        >>> objective = partial(adjoined.adjoint_objective, task=own_loss, distance=head_distance)  # doctest: +SKIP
        >>> loss = objective(net(images, targets), progress=0.5)  # doctest: +SKIP
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        _head(detector)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return `losses`, `scores` and `boxes` in training; otherwise the detections.

        Args:
            images: float32 (3, H, W) each, in [0, 1].
            targets: in training, boxes and labels of every image, as the detector takes them.

        Returns:
            losses: the detector's dict of losses. scores: logits (N, A, K), one for each class independently. boxes:
            encoded boxes (N, A, 4), in units of their anchors.
        """
        if not self.training:
            return self.detector(images)
        found: list[Any] = []
        handle = _head(self.detector).register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            losses = self.detector(images, targets)
        finally:
            handle.remove()
        scores, boxes = _dense(found[0])
        if "classification" in losses and hasattr(self.detector, "neg_to_pos_ratio"):
            scores = _independent(scores)  # SSD: a softmax with a background
        return {"losses": losses, "scores": scores, "boxes": boxes}


def own_loss(output: dict[str, Any]) -> Tensor:
    """Return the sum of a detector's losses: the task of `adjoint_objective`.

    Example:
        >>> own_loss({"losses": {"classification": torch.tensor(1.0), "bbox_regression": torch.tensor(0.5)}}).item()
        1.5
    """
    return torch.stack(list(output["losses"].values())).sum()


def head_distance(p: dict[str, Any], q: dict[str, Any], *, pull: bool = False) -> Tensor:
    """Return the distance of two dense heads, each anchor weighted by the base's confidence.

    It is the Bernoulli KL of the class scores, plus the L1 distance of the encoded boxes.

    Args:
        p: output of the base network in training, as `WithHead` returns it.
        q: that of the small network.
        pull: whether the gradient also flows into `p`; never through the weights.

    Returns:
        The sum of the two weighted means over anchors.

    Example:
        >>> p = {"scores": torch.zeros(1, 2, 3), "boxes": torch.zeros(1, 2, 4)}
        >>> head_distance(p, {**p, "boxes": torch.ones(1, 2, 4)}).item()
        1.0
    """
    weights, boxes = confidence(p["scores"]), p["boxes"] if pull else p["boxes"].detach()
    apart = (boxes - q["boxes"]).abs().mean(dim=-1)
    return score_kl(p["scores"], q["scores"], pull=pull) + (apart * weights).sum() / weights.sum().clamp(min=1e-12)


def _head(detector: nn.Module) -> nn.Module:
    """Return the dense head of a detector, or of its region proposals."""
    head = getattr(getattr(detector, "rpn", detector), "head", None)
    if not isinstance(head, nn.Module):
        raise AdjoinedError(
            "the module has no dense head",
            where=type(detector).__name__,
            expected="a detector of torchvision",
            fix="For other detectors, return the head's outputs from your model and use adjoined.distances.",
        )
    return head


def _dense(output: Any) -> tuple[Tensor, Tensor]:
    """Return scores (N, A, K) and encoded boxes (N, A, 4) of a head's output."""
    if isinstance(output, dict):
        return output["cls_logits"], output["bbox_regression"]
    levels = zip(*output, strict=True)  # objectness (N, a, H, W) and boxes (N, 4 a, H, W) of each level
    each = [
        (scores.permute(0, 2, 3, 1).flatten(1), boxes.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3))
        for scores, boxes in levels
    ]
    return torch.cat([scores for scores, _ in each], dim=1).unsqueeze(2), torch.cat([boxes for _, boxes in each], dim=1)


def _independent(logits: Tensor) -> Tensor:
    """Return the log-odds of every class of a softmax but the first, which is the background."""
    log_p = logits.log_softmax(dim=-1)[..., 1:]
    return log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
