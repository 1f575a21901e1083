"""Pose vectors with missing joints, and the losses of the stages.

Shape letters: N poses, P = 3 J coordinates. All losses are sums over dimensions and means over the
poses that have a label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.layers import masked_sample_mean

__all__ = ["autoencoder_loss", "latent_loss", "pose_loss", "pose_vectors"]


def pose_vectors(joints: Tensor, valid: Tensor, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Poses as vectors with something harmless in the gaps.

    Args:
        joints: (N, J, 3), any unit; anything where not valid.
        valid: (N, J) bool.
        fill: (P,) what stands in for missing joints, same unit.

    Returns:
        (N, P) and (N, P) bool.
    """
    known = valid[..., None].expand_as(joints).flatten(1)
    return torch.where(known, joints.flatten(1), fill), known


def pose_loss(predicted: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Eq. 4, 7 and 8: ||prediction - pose||^2 over the annotated coordinates.

    Args:
        predicted: (N, P).
        target: (N, P).
        known: (N, P) bool.
    """
    return masked_sample_mean((predicted - target).square(), known)


def latent_loss(predicted: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Eq. 3: ||f_cnn(x) - h_L||^2; a pose with gaps counts by the share of it that is known.

    Args:
        predicted: (N, D).
        target: (N, D) codes of the clean poses.
        known: (N, P) bool, of the poses.
    """
    terms = (predicted - target).square().sum(dim=1)
    share = known.to(terms.dtype).mean(dim=1)
    return masked_sample_mean((terms * share)[:, None], known.any(dim=1, keepdim=True))


def autoencoder_loss(
    errors: Tensor, penalty: Tensor, known: Tensor, of_codes: bool = False
) -> dict[str, Tensor]:
    """Eq. 2 of a whole autoencoder or of one layer.

    Args:
        errors: (N, P) squared errors of poses, or (N, D) of a lower layer's code.
        penalty: (N,) lambda ||J||^2.
        known: (N, P) bool, of the poses.
        of_codes: the errors are those of a code: masked by pose, not by coordinate.

    Returns:
        ``loss`` and its parts ``reconstruction`` and ``contractive``.
    """
    labelled = known.any(dim=1, keepdim=True)
    mask = labelled.expand_as(errors) if of_codes else known
    reconstruction = masked_sample_mean(errors, mask)
    contractive = masked_sample_mean(penalty[:, None], labelled)
    return {
        "loss": reconstruction + contractive,
        "reconstruction": reconstruction,
        "contractive": contractive,
    }
