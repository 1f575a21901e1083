"""Predictions of methods with 2D joints as input, from keypoint files or a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError
from zoo.geometry import affine_apply, affine_inverse, crop_affine, intrinsics_for_crop, square_box
from zoo.lift2d import MIN_SCORE
from zoo.pose import Pose
from zoo.predict import centre_frame
from zoo.skeleton import joint_map

if TYPE_CHECKING:
    from zoo.base import PoseModule
    from zoo.keypoints import Keypoints

__all__ = ["BODY_OVER_JOINTS", "predict_keypoints"]

BODY_OVER_JOINTS = 1.12
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
                some = seen[start : start + batch_size]
                given = keypoints_to_batch(some, model, model.input_spec.frames, min_score)
                poses += keypoints_to_poses(
                    some, given, model(given.batch), model, centre_frame(model)
                )
    finally:
        for module, mode in modes:
            module.training = mode
    return poses


@dataclass(frozen=True)
class KeypointBatch:
    """People as a method of keypoints sees them: joints in its crop, and the way back.

    Attributes:
        batch: (B, T, ...), a person who stands still for T frames.
        px: (B, J, 2) px of the picture, in the method's layout.
        score: (B, J), 0 where not given.
        affine: (B, 2, 3), from px of the crop to those of the picture.
    """

    batch: PoseBatch
    px: Tensor
    score: Tensor
    affine: Tensor

    def row(self, k: int) -> KeypointBatch:
        """What the records of person ``k`` need."""
        one = slice(k, k + 1)
        return KeypointBatch(PoseBatch(), self.px[one], self.score[one], self.affine[one])


def keypoints_to_batch(
    people: Sequence[Keypoints], model: PoseModule, frames: int, min_score: float = MIN_SCORE
) -> KeypointBatch:
    """The model's input, with a camera that is guessed."""
    spec = model.input_spec
    joints, scores = [], []
    for one in people:
        given = np.where(one.scores >= min_score, one.scores, 0).astype(np.float32)
        mapped, valid = joint_map(one.skeleton, model.skeleton)(one.joints_2d, given)
        joints.append(torch.from_numpy(mapped).float())
        scores.append(torch.from_numpy(valid).float())
    px, score = torch.stack(joints), torch.stack(scores)  # (B, J, 2), (B, J)
    centre, side = square_box(px, score > 0, spec.crop_scale * BODY_OVER_JOINTS)
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
    return KeypointBatch(batch, px, score, affine)


def keypoints_to_poses(
    people: Sequence[Keypoints], given: KeypointBatch, prediction: Prediction, model: PoseModule,
    at: int,
) -> list[Pose]:  # fmt: skip
    """The frame ``at`` of (B, T', ...) predictions as records, in px of the pictures."""
    px, score, affine = given.px, given.score, given.affine
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
