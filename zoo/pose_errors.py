"""Errors of poses: functions of tensors, one value a pose or their mean.

3D in mm, 2D in px. Joints that are not valid do not count and may hold anything; a pose without a
valid joint contributes nothing. A prediction that is not finite at a joint that counts has an
infinite error (and is not correct). Nothing here moves roots: poses are compared as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from zoo.errors import UsageError
from zoo.geometry import optimal_scale, procrustes_align

__all__ = [
    "acceleration_error",
    "auc",
    "checked",
    "limb_ratio_error",
    "log_limb_ratios",
    "mpjpe",
    "n_mpjpe",
    "pa_mpjpe",
    "pck",
    "rigid_mpjpe",
]

Reduction = Literal["mean", "none"]


def checked(
    pred: Tensor, target: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Float32 (or wider) poses that are 0 where they do not count, the mask, and what diverged.

    Args:
        pred: (..., J, D).
        target: (..., J, D).
        valid: (..., J) bool, ``None`` = all.

    Returns:
        pred, target (..., J, D); valid (..., J) bool; broken (..., J) bool: counts, but the
        prediction is not finite.

    Raises:
        zoo.errors.UsageError: the shapes differ.
    """
    if pred.shape != target.shape:
        raise UsageError(
            f"predicted joints are {tuple(pred.shape)}, true ones {tuple(target.shape)}; "
            "they must have the same shape"
        )
    dtype = torch.promote_types(pred.dtype, torch.float32)
    if valid is None:
        valid = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    valid = valid.bool().expand(target.shape[:-1])
    finite = pred.isfinite().all(-1)
    pred = pred.to(dtype).where((valid & finite).unsqueeze(-1), 0.0)
    target = target.to(dtype).where(valid.unsqueeze(-1), 0.0)
    return pred, target, valid, valid & ~finite


def _over_joints(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid entries of the last axis, NaN where there is none."""
    total = values.where(valid, 0.0).sum(-1)
    count = valid.sum(-1)
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def _reduce(per_pose: Tensor, reduction: Reduction) -> Tensor:
    return per_pose.nanmean() if reduction == "mean" else per_pose


def mpjpe(
    pred: Tensor, target: Tensor, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Mean per-joint position error, without any alignment; also the 2D error in px.

    Args:
        pred: (..., J, D).
        target: (..., J, D).
        valid: (..., J) bool; ``None`` = all.
        reduction: ``mean`` over the poses that have a valid joint, or ``none``.

    Returns:
        A scalar, or (...) with NaN for poses without a valid joint. The unit of the input.

    Raises:
        zoo.errors.UsageError: the shapes differ.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    errors = torch.linalg.vector_norm(pred - target, dim=-1).masked_fill(broken, torch.inf)
    return _reduce(_over_joints(errors, valid), reduction)


def n_mpjpe(
    pred: Tensor, target: Tensor, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """MPJPE after the best scale of each pose about the origin (so centre both on the root first).

    The scale is the least-squares one and not negative; see :func:`zoo.geometry.optimal_scale`.
    Arguments and result as for :func:`mpjpe`.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    scaled = optimal_scale(pred, target, valid)[..., None, None] * pred
    errors = torch.linalg.vector_norm(scaled - target, dim=-1)
    per_pose = _over_joints(errors, valid).masked_fill(broken.any(-1), torch.inf)
    return _reduce(per_pose, reduction)


def pa_mpjpe(
    pred: Tensor, target: Tensor, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """MPJPE after the best similarity of each pose (Procrustes, never a reflection).

    The similarity minimises the squared error, not this one, so a pose with one bad joint can have
    a PA-MPJPE slightly above its MPJPE. Arguments and result as for :func:`mpjpe`, D = 3.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    aligned = procrustes_align(pred, target, valid)
    errors = torch.linalg.vector_norm(aligned - target, dim=-1)
    per_pose = _over_joints(errors, valid).masked_fill(broken.any(-1), torch.inf)
    return _reduce(per_pose, reduction)


def rigid_mpjpe(
    pred: Tensor, target: Tensor, valid: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """MPJPE after the best rotation and translation of each pose: no scale, no reflection.

    As for :func:`pa_mpjpe`, the alignment minimises the squared error. Arguments and result as for
    :func:`mpjpe`, D = 3.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    aligned = procrustes_align(pred, target, valid, scale=False)
    errors = torch.linalg.vector_norm(aligned - target, dim=-1)
    per_pose = _over_joints(errors, valid).masked_fill(broken.any(-1), torch.inf)
    return _reduce(per_pose, reduction)


def pck(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    threshold: float = 150.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Percentage of correct keypoints: joints with an error below ``threshold``, in %.

    Arguments and result as for :func:`mpjpe`.
    """
    return _correct(pred, target, valid, (threshold,), reduction)


def auc(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    maximum: float = 150.0,
    step: float = 5.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Area under the PCK curve: the mean of PCK at thresholds 0, step, ..., maximum, in %.

    "Below" is strict, so the threshold 0 never scores and a perfect pose reaches 30/31 with the
    default grid. Arguments and result as for :func:`mpjpe`.
    """
    steps = round(maximum / step)
    return _correct(pred, target, valid, [step * k for k in range(steps + 1)], reduction)


def _correct(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None,
    thresholds: Sequence[float],
    reduction: Reduction,
) -> Tensor:
    pred, target, valid, broken = checked(pred, target, valid)
    errors = torch.linalg.vector_norm(pred - target, dim=-1).masked_fill(broken, torch.inf)
    share = torch.zeros_like(errors)
    for threshold in thresholds:  # a loop, so that no (..., J, 31) tensor exists
        share += (errors < threshold).to(errors.dtype)
    return _reduce(_over_joints(share * (100 / len(thresholds)), valid), reduction)


def acceleration_error(
    pred: Tensor,
    target: Tensor,
    valid: Tensor | None = None,
    fps: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Norm of the difference of second differences x[t-1] - 2 x[t] + x[t+1], over joints.

    Args:
        pred: (..., T, J, 3) mm, equally spaced frames.
        target: (..., T, J, 3) mm.
        valid: (..., T, J) bool; a joint counts at t if it is valid in the three frames.
        fps: ``None`` gives mm/frame^2, a rate gives mm/s^2.
        reduction: as for :func:`mpjpe`.

    Returns:
        A scalar, or (..., T) with NaN at the first and last frame.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    per_frame = torch.full(pred.shape[:-2], torch.nan, dtype=pred.dtype, device=pred.device)
    if pred.shape[-3] >= 3:
        difference = pred - target
        before, after = difference[..., :-2, :, :], difference[..., 2:, :, :]
        errors = torch.linalg.vector_norm(before - 2 * difference[..., 1:-1, :, :] + after, dim=-1)
        if fps is not None:
            errors = errors * fps**2
        all_three = valid[..., :-2, :] & valid[..., 1:-1, :] & valid[..., 2:, :]
        any_broken = broken[..., :-2, :] | broken[..., 1:-1, :] | broken[..., 2:, :]
        per_frame[..., 1:-1] = _over_joints(errors.masked_fill(any_broken, torch.inf), all_three)
    return _reduce(per_frame, reduction)


def log_limb_ratios(
    pred: Tensor, target: Tensor, bones: Sequence[tuple[int, int]], valid: Tensor | None = None
) -> Tensor:
    """log(predicted length / true length) of limbs, (..., L); NaN where a limb is not valid.

    Args:
        pred: (..., J, 3) mm.
        target: (..., J, 3) mm.
        bones: L pairs of joint indices.
        valid: (..., J) bool; a limb needs both ends (and a true length above 0). Predicted lengths
            below 0.001 mm count as that.
    """
    pred, target, valid, broken = checked(pred, target, valid)
    a, b = [bone[0] for bone in bones], [bone[1] for bone in bones]
    length_pred = torch.linalg.vector_norm(pred[..., a, :] - pred[..., b, :], dim=-1)
    length_true = torch.linalg.vector_norm(target[..., a, :] - target[..., b, :], dim=-1)
    counted = valid[..., a] & valid[..., b] & (length_true > 1e-3)
    ratio = length_pred.clamp(min=1e-3).log() - length_true.clamp(min=1e-3).log()
    ratio = ratio.masked_fill(broken[..., a] | broken[..., b], torch.inf)
    return ratio.where(counted, torch.nan)


def limb_ratio_error(
    pred: Tensor,
    target: Tensor,
    bones: Sequence[tuple[int, int]],
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sum over ordered limb pairs of |log(l_i/l_j of the prediction) - log(l_i/l_j)| of each pose.

    Its mean over poses is the sum over the cells of fig. 5 of Katircioglu et al. 2017, read as a
    mean of absolute values. With limbs missing, the mean over the valid pairs times the number of
    all pairs. Arguments as for :func:`log_limb_ratios`; result as for :func:`mpjpe`, no unit.
    """
    ratio = log_limb_ratios(pred, target, bones, valid)
    limbs = len(bones)
    total = torch.zeros_like(ratio[..., 0])
    pairs = torch.zeros_like(total)
    for i in range(limbs):
        other = [j for j in range(limbs) if j != i]
        both = ~ratio[..., other].isnan() & ~ratio[..., i : i + 1].isnan()
        difference = (ratio[..., other] - ratio[..., i : i + 1]).abs()
        # inf - inf: two limbs of a diverged prediction.
        difference = difference.nan_to_num(nan=torch.inf, posinf=torch.inf)
        total = total + difference.where(both, 0.0).sum(-1)
        pairs = pairs + both.sum(-1)
    full = limbs * (limbs - 1)
    per_pose = torch.where(pairs > 0, total / pairs.clamp(min=1) * full, torch.nan)
    return _reduce(per_pose, reduction)
