"""The batch: every key, shape, unit and frame that flows from a datamodule to a method.

Shape letters: B batch, T frames, J joints, H/W pixels. There is always a T axis, even T = 1.
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

__all__ = ["FRAME_KEYS", "SAMPLE_ID_KEYS", "PoseBatch", "Prediction"]


class PoseBatch(TypedDict, total=False):
    """What a datamodule yields and a method reads. A key that a data set lacks is absent.

    Pixels are those of the crop: x right, y down, pixel centres at integers. The camera frame has
    x right, y down, z forward.
    """

    image: Tensor
    """(B, T, 3, H, W) float32 in [0, 1], RGB: the person crop; a method normalises inside."""
    joints_2d: Tensor
    """(B, T, J, 2) float32, px of the crop."""
    scores_2d: Tensor
    """(B, T, J) float32 in [0, 1]: a detector's confidence; 1 for annotations."""
    valid_2d: Tensor
    """(B, T, J) bool: false where the 2D joint is not annotated or not given."""
    valid_3d: Tensor
    """(B, T, J) bool: false where the 3D joint is not annotated (all false for 2D-only data)."""
    occluded: Tensor
    """(B, T, J) bool: annotated, but hidden in the image; still has loss and metric."""
    joints_3d: Tensor
    """(B, T, J, 3) float32, mm, camera frame, pelvis at the origin."""
    root_3d: Tensor
    """(B, T, 3) float32, mm, camera frame: the pelvis."""
    intrinsics: Tensor
    """(B, T, 3, 3) float32, px of the crop."""
    crop_to_image: Tensor
    """(B, T, 2, 3) float32: affine map from crop px to px of the source image."""
    world_to_camera: Tensor
    """(B, 3, 3) float32: rotation from the world (z up) to the camera frame."""
    subject: Tensor
    """(B,) int64."""
    action: Tensor
    """(B,) int64, an index into the datamodule's ``action_names``."""
    camera: Tensor
    """(B,) int64."""
    sequence: Tensor
    """(B,) int64."""
    frame: Tensor
    """(B,) int64: the clip's centre frame (index T // 2) in the source recording."""


SAMPLE_ID_KEYS = ("subject", "action", "camera", "sequence", "frame")
"""The keys that together name a sample, so that metrics count it once on N processes."""

FRAME_KEYS = frozenset(
    {"image", "joints_2d", "scores_2d", "valid_2d", "valid_3d", "occluded", "joints_3d",
     "root_3d", "intrinsics", "crop_to_image"}
)  # fmt: skip
"""The keys with a T axis, (B, T, ...); the others have one value a sample."""


class Prediction(TypedDict, total=False):
    """What a method's ``forward`` returns, the same in training and evaluation."""

    pred_3d: Tensor
    """(B, T', J, 3) float32, mm, camera frame, pelvis at the origin; T' = len(predicted frames)."""
    pred_2d: Tensor
    """(B, T', J, 2) float32, px of the crop; absent when the method does not estimate 2D."""
    std_3d: Tensor
    """(B, T', J) float32, mm: predicted standard deviation a coordinate, if there is one."""
