"""Cameras, crops, mirroring and rigid alignment as functions of tensors.

Every function takes any leading dimensions, broadcasts them, and is differentiable. 3D is mm, 2D is
px with x right, y down and **pixel centres at integers**; the camera frame is x right, y down,
z forward. A camera's extrinsics are a rotation R (world to camera) and its centre T in the world.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.skeleton import Skeleton

__all__ = [
    "Similarity",
    "affine_apply",
    "affine_compose",
    "affine_inverse",
    "back_project",
    "camera_to_world",
    "cell_to_px",
    "center_on_root",
    "crop_affine",
    "distort",
    "flip_affine",
    "flip_image",
    "flip_intrinsics",
    "flip_joints_2d",
    "flip_joints_3d",
    "flip_labels",
    "intrinsics_for_crop",
    "nearest_rotation",
    "optimal_scale",
    "procrustes",
    "procrustes_align",
    "project",
    "project_h36m",
    "px_to_cell",
    "root_of",
    "square_box",
    "undistort",
    "world_to_camera",
]

# ---- cameras ----------------------------------------------------------------------------------


def world_to_camera(points: Tensor, rotation: Tensor, centre: Tensor) -> Tensor:
    """X_cam = R (X_world - T).

    Args:
        points: (..., N, 3) mm, world frame.
        rotation: (..., 3, 3) R, world to camera.
        centre: (..., 3) mm, T, the camera's centre in the world.

    Returns:
        (..., N, 3) mm, camera frame.
    """
    return (points - centre.unsqueeze(-2)) @ rotation.transpose(-1, -2)


def camera_to_world(points: Tensor, rotation: Tensor, centre: Tensor) -> Tensor:
    """X_world = R^T X_cam + T, the inverse of :func:`world_to_camera`."""
    return points @ rotation + centre.unsqueeze(-2)


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pinhole projection.

    Args:
        points: (..., N, 3) mm, camera frame, z > 0.
        intrinsics: (..., 3, 3) px.

    Returns:
        (..., N, 2) px.
    """
    homogeneous = points @ intrinsics.transpose(-1, -2)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def back_project(pixels: Tensor, depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points at given depths on the viewing rays of pixels, the inverse of :func:`project`.

    Args:
        pixels: (..., N, 2) px.
        depth: (..., N) mm, the z coordinate in the camera frame (not the distance).
        intrinsics: (..., 3, 3) px, last row (0, 0, 1).

    Returns:
        (..., N, 3) mm, camera frame.
    """
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    rays = homogeneous @ torch.linalg.inv(intrinsics).transpose(-1, -2)
    return rays * depth.unsqueeze(-1)


def distort(normalised: Tensor, radial: Tensor, tangential: Tensor, double: bool = False) -> Tensor:
    """Human3.6M's own lens model on normalised image coordinates (x/z, y/z).

    With r2 = x^2 + y^2 and g = 1 + k1 r2 + k2 r2^2 + k3 r2^3 + p1 y + p2 x, the result is
    (g x + p2 r2, g y + p1 r2). OpenCV's model counts the part of g that comes from p1 and p2
    twice, so it does not reproduce the data set's 2D labels; this one does.

    Args:
        normalised: (..., N, 2).
        radial: (..., 3) k1, k2, k3.
        tangential: (..., 2) p1, p2 in the data set's order.
        double: counts that part twice: OpenCV's model.

    Returns:
        (..., N, 2).
    """
    r2 = normalised.square().sum(-1, keepdim=True)
    k1, k2, k3 = (radial[..., None, i : i + 1] for i in range(3))
    p2p1 = tangential.flip(-1).unsqueeze(-2)
    tilt = (1 + double) * (p2p1 * normalised).sum(-1, keepdim=True)
    gain = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + tilt
    return gain * normalised + p2p1 * r2


def undistort(
    distorted: Tensor, radial: Tensor, tangential: Tensor, iterations: int = 20
) -> Tensor:
    """Inverse of :func:`distort` by fixed-point iteration, for lenses as mild as Human3.6M's.

    Args:
        distorted: (..., N, 2), normalised image coordinates with distortion.
        radial: (..., 3).
        tangential: (..., 2).
        iterations: steps; each gains about one decimal for Human3.6M's cameras.

    Returns:
        (..., N, 2).
    """
    undistorted = distorted
    for _ in range(iterations):
        undistorted = undistorted + distorted - distort(undistorted, radial, tangential)
    return undistorted


def project_h36m(
    points: Tensor, focal: Tensor, centre: Tensor, radial: Tensor, tangential: Tensor
) -> Tensor:
    """Projection with Human3.6M's lens distortion; reproduces its 2D labels.

    Args:
        points: (..., N, 3) mm, camera frame, z > 0.
        focal: (..., 2) px.
        centre: (..., 2) px, principal point.
        radial: (..., 3) k1, k2, k3.
        tangential: (..., 2) p1, p2.

    Returns:
        (..., N, 2) px.
    """
    normalised = distort(points[..., :2] / points[..., 2:], radial, tangential)
    return focal.unsqueeze(-2) * normalised + centre.unsqueeze(-2)


# ---- the root ---------------------------------------------------------------------------------


def root_of(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """The root of poses: the skeleton's root joint, or the middle of the hips where it has none.

    Args:
        joints: (..., J, D).
        skeleton: J joints.

    Returns:
        (..., D).
    """
    if skeleton.root in skeleton.joints:
        return joints[..., skeleton.index(skeleton.root), :]
    hips = [skeleton.index("r_hip"), skeleton.index("l_hip")]
    return joints[..., hips, :].mean(-2)


def center_on_root(joints: Tensor, skeleton: Skeleton) -> tuple[Tensor, Tensor]:
    """Poses with the root at the origin, (..., J, D), and the root that was taken off, (..., D)."""
    root = root_of(joints, skeleton)
    return joints - root.unsqueeze(-2), root


# ---- mirroring --------------------------------------------------------------------------------
# A mirrored training sample needs all of these together: image, 2D, 3D, labels and intrinsics.


def flip_labels(values: Tensor, skeleton: Skeleton, dim: int = -1) -> Tensor:
    """Swaps left and right along the joint axis ``dim`` (validity, scores, heatmaps...)."""
    order = torch.tensor(skeleton.flip, device=values.device)
    return values.index_select(dim, order)


def flip_joints_2d(joints: Tensor, skeleton: Skeleton, width: float) -> Tensor:
    """Mirrors 2D joints with their image: x -> (width - 1) - x, left and right swapped.

    Args:
        joints: (..., J, 2) px, pixel centres at integers.
        skeleton: J joints.
        width: of the image in px.
    """
    mirrored = torch.stack([(width - 1) - joints[..., 0], joints[..., 1]], -1)
    return flip_labels(mirrored, skeleton, -2)


def flip_joints_3d(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Mirrors (..., J, 3) poses: x -> -x (camera frame), left and right swapped."""
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=joints.dtype, device=joints.device)
    return flip_labels(joints * mirror, skeleton, -2)


def flip_image(image: Tensor) -> Tensor:
    """Mirrors (..., H, W) images."""
    return image.flip(-1)


def flip_intrinsics(intrinsics: Tensor, width: float) -> Tensor:
    """Intrinsics (..., 3, 3) that project the mirrored pose onto the mirrored image."""
    flipped = intrinsics.clone()
    flipped[..., 0, 1] = -intrinsics[..., 0, 1]
    flipped[..., 0, 2] = (width - 1) - intrinsics[..., 0, 2]
    return flipped


def flip_affine(crop_to_image: Tensor, width: float) -> Tensor:
    """The map (..., 2, 3) from px of a mirrored crop of that width to px of the source image."""
    mirror = crop_to_image.new_tensor([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])
    return affine_compose(crop_to_image, mirror)


# ---- affine maps and crops --------------------------------------------------------------------


def _square(affine: Tensor) -> Tensor:
    """(..., 2, 3) as (..., 3, 3)."""
    row = affine.new_tensor([[0.0, 0.0, 1.0]]).expand(*affine.shape[:-2], 1, 3)
    return torch.cat([affine, row], -2)


def affine_apply(affine: Tensor, points: Tensor) -> Tensor:
    """Maps (..., N, 2) points by (..., 2, 3) affine maps."""
    return points @ affine[..., :2].transpose(-1, -2) + affine[..., 2].unsqueeze(-2)


def affine_compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The (..., 2, 3) map that applies ``inner`` first and ``outer`` to its result."""
    return outer @ _square(inner)


def affine_inverse(affine: Tensor) -> Tensor:
    """The inverse of (..., 2, 3) affine maps."""
    linear = torch.linalg.inv(affine[..., :2])
    return torch.cat([linear, -(linear @ affine[..., 2:])], -1)


def square_box(
    joints_2d: Tensor, valid: Tensor | None = None, scale: float = 1.25, min_side: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The square person box around 2D joints.

    Args:
        joints_2d: (..., J, 2) px.
        valid: (..., J) bool; joints that count. A pose without any gets centre 0 and ``min_side``.
        scale: side of the square over the longer side of the joints' box.
        min_side: smallest side in px.

    Returns:
        Centre (..., 2) px and side (...) px.
    """
    if valid is None:
        valid = torch.ones_like(joints_2d[..., 0], dtype=torch.bool)
    mask = valid.unsqueeze(-1)
    low = joints_2d.masked_fill(~mask, torch.inf).amin(-2)
    high = joints_2d.masked_fill(~mask, -torch.inf).amax(-2)
    some = valid.any(-1, keepdim=True)
    low, high = low.where(some, 0.0), high.where(some, 0.0)
    side = (scale * (high - low).amax(-1)).clamp(min=min_side)
    return (low + high) / 2, side


def crop_affine(centre: Tensor, side: Tensor, image_size: int) -> Tensor:
    """The map from px of a square crop to px of the source image.

    A pixel is a unit square around its integer centre, so the crop's pixels 0 ... S-1 cover
    [-1/2, S-1/2], and that interval is the box.

    Args:
        centre: (..., 2) px of the source image, the box's centre.
        side: (...) px of the source image, the box's side.
        image_size: S, side of the crop in its own px.

    Returns:
        (..., 2, 3).
    """
    factor = side / image_size
    zero = torch.zeros_like(factor)
    offset = centre - factor.unsqueeze(-1) * (image_size - 1) / 2
    rows = [
        torch.stack([factor, zero, offset[..., 0]], -1),
        torch.stack([zero, factor, offset[..., 1]], -1),
    ]
    return torch.stack(rows, -2)


def intrinsics_for_crop(intrinsics: Tensor, crop_to_image: Tensor) -> Tensor:
    """Intrinsics (..., 3, 3) in px of the crop, from those of the source image."""
    return torch.linalg.inv(_square(crop_to_image)) @ intrinsics


def cell_to_px(cell: Tensor, stride: float) -> Tensor:
    """Centre in crop px of heatmap cells: (cell + 1/2) stride - 1/2."""
    return (cell + 0.5) * stride - 0.5


def px_to_cell(px: Tensor, stride: float) -> Tensor:
    """Heatmap coordinate of crop px, the inverse of :func:`cell_to_px` (not rounded)."""
    return (px + 0.5) / stride - 0.5


# ---- rigid alignment --------------------------------------------------------------------------


class Similarity(NamedTuple):
    """x -> scale * R x + translation, for column vectors."""

    scale: Tensor
    """(...)"""
    rotation: Tensor
    """(..., 3, 3), determinant +1"""
    translation: Tensor
    """(..., 3)"""

    def apply(self, points: Tensor) -> Tensor:
        """Maps (..., N, 3) points."""
        rotated = points @ self.rotation.transpose(-1, -2)
        return self.scale[..., None, None] * rotated + self.translation.unsqueeze(-2)


class _NearestRotation(torch.autograd.Function):
    """The rotation R that maximises tr(R^T M); repeated singular values do not hurt its gradient.

    The derivative of an SVD divides by differences of singular values, that of the polar factor
    only by their sums: with M = U S V^T (the sign of a reflection moved into S and V) and
    R = U V^T, R^T dM - dM^T R = W P + P W for the skew W = R^T dR and P = V S V^T.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(matrix)
        sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(matrix.dtype)
        fix = torch.ones_like(s)
        fix[..., 2] = sign
        s, vh = s * fix, fix.unsqueeze(-1) * vh
        ctx.save_for_backward(u, s, vh)
        return u @ vh

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        sums = s.unsqueeze(-1) + s.unsqueeze(-2)
        # A zero sum means that the rotation is not determined (all points on a line, or none).
        tiny = 10 * torch.finfo(s.dtype).eps * s[..., :1, None].abs()
        inner = u.transpose(-1, -2) @ grads[0] @ vh.transpose(-1, -2)
        skew = inner - inner.transpose(-1, -2)
        skew = torch.where(sums.abs() > tiny, skew / sums, torch.zeros_like(skew))
        return u @ skew @ vh


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation (determinant +1) that maximises tr(R^T M), for (..., 3, 3) matrices M.

    Computed in float32 at least, whatever autocast says. The gradient is exact away from
    degenerate M and zero along undetermined directions.
    """
    wide = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
    with torch.autocast(matrix.device.type, enabled=False):
        rotation: Tensor = _NearestRotation.apply(wide)
    return rotation.to(matrix.dtype)


def procrustes(
    source: Tensor, target: Tensor, weights: Tensor | None = None, scale: bool = True
) -> Similarity:
    """The similarity that maps ``source`` onto ``target`` with the least (weighted) squared error.

    Never a reflection. Poses without any weight, or with all their joints in one point, get a
    finite map.

    Args:
        source: (..., N, 3).
        target: (..., N, 3).
        weights: (..., N), bool or non-negative; ``None`` = 1. Points of weight 0 may be anything.
        scale: false finds a rigid motion.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    weights = weights.to(source.dtype)
    counted = weights.unsqueeze(-1) > 0
    source = source.where(counted, 0.0)
    target = target.where(counted, 0.0)
    total = weights.sum(-1)
    share = (weights / total.where(total > 0, 1.0).unsqueeze(-1)).unsqueeze(-1)
    source_mean = (share * source).sum(-2, keepdim=True)
    target_mean = (share * target).sum(-2, keepdim=True)
    a, b = source - source_mean, target - target_mean
    covariance = (share * b).transpose(-1, -2) @ a
    rotation = nearest_rotation(covariance)
    if scale:
        variance = (share * a.square()).sum((-1, -2))
        # tr(R^T M) is the sum of the (signed) singular values.
        gain = (rotation * covariance).sum((-1, -2))
        some = variance > torch.finfo(variance.dtype).tiny
        factor = torch.where(some, gain / variance.where(some, 1.0), 1.0)
    else:
        factor = torch.ones_like(total)
    moved = factor.unsqueeze(-1) * (source_mean @ rotation.transpose(-1, -2)).squeeze(-2)
    return Similarity(factor, rotation, target_mean.squeeze(-2) - moved)


def procrustes_align(
    source: Tensor, target: Tensor, weights: Tensor | None = None, scale: bool = True
) -> Tensor:
    """``source`` (..., N, 3) after the best similarity onto ``target``; see :func:`procrustes`."""
    return procrustes(source, target, weights, scale).apply(source)


def optimal_scale(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """The factor s >= 0 that minimises |s source - target|^2 of poses in their own origin.

    A negative factor would mirror the pose through its root, so it is clamped to 0.

    Args:
        source: (..., N, 3).
        target: (..., N, 3).
        weights: (..., N), bool or non-negative; ``None`` = 1.

    Returns:
        (...); 1 where ``source`` has no extent.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    w = weights.to(source.dtype).unsqueeze(-1)
    source, target = source.where(w > 0, 0.0), target.where(w > 0, 0.0)
    power = (w * source.square()).sum((-1, -2))
    some = power > torch.finfo(power.dtype).tiny
    factor = (w * source * target).sum((-1, -2)) / power.where(some, 1.0)
    return torch.where(some, factor, 1.0).clamp(min=0)
