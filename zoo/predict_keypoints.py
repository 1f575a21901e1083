"""Predictions of methods with 2D joints as input, from keypoint files or a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from zoo.batch import PoseBatch
from zoo.errors import UsageError
from zoo.geometry import affine_apply, affine_inverse, crop_affine, intrinsics_for_crop, square_box
from zoo.lift2d import MIN_SCORE
from zoo.pose import Pose
from zoo.skeleton import joint_map

if TYPE_CHECKING:
    from zoo.base import PoseModule
    from zoo.keypoints import Keypoints

__all__ = ["predict_keypoints"]

_BODY_OVER_JOINTS = 1.12
"""A person's box over that of their joints: hands, feet and hair reach further."""
_FOCAL_OVER_SIDE = 8.0
"""Of an unknown camera: px of focal length over the side of the person's crop."""


def predict_keypoints(
    model: PoseModule,
    people: Sequence[Keypoints],
    *,
    batch_size: int = 256,
    min_score: float = MIN_SCORE,
) -> list[Pose]:
    """3D poses from 2D joints, by a method with keypoints as input.

    Joints of another layout go through :func:`zoo.skeleton.joint_map`. A method of clips gets every
    pose T times: a person who stands still. People without a single joint are left out.

    Args:
        model: the method; its modes and device stay as they are.
        people: of :func:`zoo.keypoints.read_keypoints` or :func:`zoo.detect.detect`.
        batch_size: people per forward pass.
        min_score: joints below this score are missing.

    Returns:
        Poses in the order of ``people``.

    Raises:
        zoo.errors.UsageError: the method takes pictures.
    """
    if model.input_spec.kind != "keypoints":
        raise UsageError(f"{model.zoo_name or type(model).__name__} takes pictures, not keypoints")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    poses: list[Pose] = []
    try:
        with torch.inference_mode():
            seen = [one for one in people if (one.scores >= max(min_score, 1e-6)).any()]
            for start in range(0, len(seen), batch_size):
                poses += _predict(model, seen[start : start + batch_size], min_score)
    finally:
        for module, mode in modes:
            module.training = mode
    return poses


def _predict(model: PoseModule, people: Sequence[Keypoints], min_score: float) -> list[Pose]:
    spec, frames = model.input_spec, model.input_spec.frames
    joints, scores = [], []
    for one in people:
        given = np.where(one.scores >= min_score, one.scores, 0).astype(np.float32)
        mapped, valid = joint_map(one.skeleton, model.skeleton)(one.joints_2d, given)
        joints.append(torch.from_numpy(mapped).float())
        scores.append(torch.from_numpy(valid).float())
    px, score = torch.stack(joints), torch.stack(scores)  # (B, J, 2), (B, J)
    centre, side = square_box(px, score > 0, spec.crop_scale * _BODY_OVER_JOINTS)
    affine = crop_affine(centre, side, spec.image_size)
    crop = torch.where((score > 0)[..., None], affine_apply(affine_inverse(affine), px), 0.0)
    camera = torch.eye(3).repeat(len(people), 1, 1)
    camera[:, 0, 0] = camera[:, 1, 1] = _FOCAL_OVER_SIDE * side
    camera[:, :2, 2] = centre

    def clip(value: Tensor) -> Tensor:
        """(B, ...) to (B, T, ...)."""
        return value[:, None].expand(len(people), frames, *value.shape[1:]).contiguous()

    batch = PoseBatch(
        joints_2d=clip(crop),
        scores_2d=clip(score),
        valid_2d=clip(score > 0),
        intrinsics=clip(intrinsics_for_crop(camera, affine)),
        crop_to_image=clip(affine),
    )
    batch = cast(PoseBatch, {k: cast(Tensor, v).to(model.device) for k, v in batch.items()})
    prediction = model(batch)
    predicted = model.predicted_frames
    at = min(range(len(predicted)), key=lambda k: abs(predicted[k] - frames // 2))
    cut = {k: cast(Tensor, v)[:, at].float().cpu() for k, v in prediction.items()}
    poses = []
    for k, one in enumerate(people):
        # What the method says about 2D, else the joints it was given.
        shown = px[k].where((score[k] > 0)[:, None], torch.nan)
        if "pred_2d" in cut:
            shown = affine_apply(affine[k], cut["pred_2d"][k])
        pose = Pose(
            joints_3d=cut["pred_3d"][k].numpy(),
            joints_2d=shown.numpy(),
            scores_2d=score[k].numpy(),
            std_3d=cut["std_3d"][k].numpy() if "std_3d" in cut else None,
            box=one.box,
            skeleton=model.skeleton.name,
            joint_names=model.skeleton.joints,
            origin=model.skeleton.root,
            person=one.person,
            frame_index=one.frame,
            source=one.image,
        )
        poses.append(replace(pose, method=getattr(model, "zoo_name", "") or type(model).__name__))
    return poses
