"""Random but plausible people for the conformance kit: batches and poses without a data set."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from zoo.base import InputSpec
from zoo.batch import SAMPLE_ID_KEYS, PoseBatch
from zoo.errors import UsageError
from zoo.skeleton import Skeleton

__all__ = ["random_batch", "random_poses"]

# Where the joints of a standing adult are, in mm: x to the person's right, y ahead, z up. Sides are
# mirrored from the right one.
_REST: dict[str, tuple[float, float, float]] = {
    "pelvis": (0, 0, 0), "hip": (130, 0, 0), "knee": (140, 20, -440), "ankle": (145, 0, -870),
    "heel": (145, -60, -920), "big_toe": (150, 170, -920), "small_toe": (200, 150, -920),
    "spine": (0, 0, 240), "thorax": (0, 0, 490), "neck": (0, 10, 510), "nose": (0, 90, 600),
    "head": (0, 20, 650), "head_top": (0, 0, 710), "eye": (30, 80, 640), "ear": (70, 0, 630),
    "shoulder": (150, 0, 470), "elbow": (190, 0, 190), "wrist": (200, 60, -60),
}  # fmt: skip


def _walk(skeleton: Skeleton) -> list[int]:
    """Joint indices, parents first."""
    order: list[int] = []
    while len(order) < len(skeleton):
        ready = [
            j
            for j, p in enumerate(skeleton.parents)
            if j not in order and (p < 0 or p in order)
        ]  # fmt: skip
        order.extend(ready)
    return order


def _rest_pose(skeleton: Skeleton) -> Tensor:
    """(J, 3) mm: the standing adult in the joints of ``skeleton``."""
    rows: list[list[float]] = []
    for index, joint in enumerate(skeleton.joints):
        side = {"l_": -1.0, "r_": 1.0}.get(joint[:2], 1.0)
        base = joint[2:] if joint[:2] in ("l_", "r_") else joint
        # A joint that no table knows stands somewhere of its own, so that no bone has length 0.
        x, y, z = _REST.get(base, (40.0 + 10 * index, 30.0, 100.0 + 20 * index))
        rows.append([side * x, y, z])
    return torch.tensor(rows)


def _rotations(vectors: Tensor) -> Tensor:
    """(..., 3) axis-angle in rad to (..., 3, 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1)
    return cast(Tensor, torch.linalg.matrix_exp(rows.reshape(*vectors.shape, 3)))


def _people(count: int, frames: int, skeleton: Skeleton, rng: torch.Generator) -> Tensor:
    """(N, T, J, 3) mm, world frame (z up), root at the origin: people who move a little."""
    joints = len(skeleton)
    start = torch.randn(count, 1, joints, 3, generator=rng) * 0.3
    start[:, :, skeleton.index(skeleton.root)] *= 0.3  # the body as a whole stands
    drift = torch.randn(count, 1, joints, 3, generator=rng) * 0.1
    when = torch.arange(frames).view(1, frames, 1, 1) / max(frames - 1, 1)
    turn = _rotations(start + drift * when)  # (N, T, J, 3, 3)
    heading = torch.zeros(count, 1, 3)
    heading[..., 2] = torch.rand(count, 1, generator=rng) * 2 * torch.pi
    facing = _rotations(heading).expand(count, frames, 3, 3)
    stature = 1 + 0.08 * torch.randn(count, 1, 1, generator=rng)

    rest = _rest_pose(skeleton)
    whole: dict[int, Tensor] = {}
    place: dict[int, Tensor] = {}
    for j in _walk(skeleton):
        parent = skeleton.parents[j]
        frame = whole[parent] if parent >= 0 else facing
        whole[j] = frame @ turn[:, :, j]
        bone = rest[j] - (rest[parent] if parent >= 0 else 0)
        place[j] = (place[parent] if parent >= 0 else 0) + stature * (whole[j] @ bone)
    pose = torch.stack([place[j] for j in range(joints)], dim=2)
    return pose - pose[:, :, [skeleton.index(skeleton.root)]]


def _cameras(count: int, rng: torch.Generator) -> Tensor:
    """(N, 3, 3) world-to-camera rotations of upright cameras all around, looking a little down."""
    azimuth = torch.rand(count, generator=rng) * 2 * torch.pi
    pitch = torch.rand(count, generator=rng) * 0.3
    ahead = torch.stack(
        (azimuth.cos() * pitch.cos(), azimuth.sin() * pitch.cos(), -pitch.sin()), dim=-1
    )
    right = torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0]).expand(count, 3))
    right = right / right.norm(dim=-1, keepdim=True)
    return torch.stack((right, torch.linalg.cross(ahead, right), ahead), dim=1)


def _paint(joints_2d: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """(B, T, 3, H, W) in [0, 1]: a noisy ground with a coloured blob at every joint."""
    batch, frames, joints, _ = joints_2d.shape
    axis = torch.arange(size)
    sigma = max(size / 24, 1.0)
    near_x = torch.exp(-(((axis - joints_2d[..., :1]) / sigma) ** 2) / 2)  # (B, T, J, W)
    near_y = torch.exp(-(((axis - joints_2d[..., 1:]) / sigma) ** 2) / 2)  # (B, T, J, H)
    colour = torch.rand(joints, 3, generator=torch.Generator().manual_seed(7))
    blobs = torch.einsum("btjh,btjw,jc->btchw", near_y, near_x, colour)
    ground = torch.rand(batch, frames, 3, size, size, generator=rng) * 0.3
    return (ground + blobs).clamp(0, 1)


def _make(
    spec: InputSpec, skeleton: Skeleton, batch_size: int, rng: torch.Generator, missing: float
) -> dict[str, Tensor]:
    """Every key but the image, with each joint unannotated with probability ``missing``."""
    size, frames, joints = spec.image_size, spec.frames, len(skeleton)
    rotation = _cameras(batch_size, rng)
    pose = _people(batch_size, frames, skeleton, rng) @ rotation[:, None].mT  # camera frame, mm
    root = torch.randn(batch_size, 1, 3, generator=rng) * torch.tensor([300.0, 200.0, 0.0])
    root[..., 2] = 3500 + 2000 * torch.rand(batch_size, 1, generator=rng)
    root = root + torch.linspace(0, 100, frames).view(1, frames, 1)  # (B, T, 3): strolling

    # The source camera, then the square crop, whose left edge (x = -1/2 there) is at the corner.
    focal_px, centre_px = 1145.0, 512.0
    absolute = pose + root[:, :, None]
    source = absolute[..., :2] / absolute[..., 2:] * focal_px + centre_px
    low, high = source.amin((1, 2)), source.amax((1, 2))  # (B, 2): one box a clip
    scale = size / (spec.crop_scale * (high - low).amax(-1))
    corner = (low + high) / 2 - (size / 2 / scale)[:, None]
    shift = -corner * scale[:, None] - 0.5

    intrinsics = torch.zeros(batch_size, 3, 3)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal_px * scale
    intrinsics[:, :2, 2] = centre_px * scale[:, None] + shift
    intrinsics[:, 2, 2] = 1
    to_image = torch.zeros(batch_size, 2, 3)
    to_image[:, 0, 0] = to_image[:, 1, 1] = 1 / scale
    to_image[:, :, 2] = -shift / scale[:, None]

    shape = (batch_size, frames, joints)
    valid_2d = torch.rand(shape, generator=rng) >= missing
    valid_3d = torch.rand(shape, generator=rng) >= missing
    valid_3d[..., skeleton.index(skeleton.root)] = True
    counter = torch.arange(batch_size)
    return {
        "joints_2d": source * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 2),
        "scores_2d": (0.5 + 0.5 * torch.rand(shape, generator=rng)) * valid_2d,
        "valid_2d": valid_2d,
        "valid_3d": valid_3d,
        "occluded": (torch.rand(shape, generator=rng) < 0.2) & valid_2d,
        "joints_3d": pose * valid_3d[..., None],
        "root_3d": root,
        "intrinsics": intrinsics[:, None].repeat(1, frames, 1, 1),
        "crop_to_image": to_image[:, None].repeat(1, frames, 1, 1),
        "world_to_camera": rotation,
        "subject": torch.ones_like(counter),
        "action": counter % 2,
        "camera": counter % 4,
        "sequence": torch.zeros_like(counter),
        "frame": counter,
    }


def random_batch(
    spec: InputSpec,
    skeleton: Skeleton,
    batch_size: int = 2,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PoseBatch:
    """A complete batch of plausible people: what a datamodule would yield for ``spec``.

    Random joint rotations of a standing adult, seen by a calibrated camera 3.5-5.5 m away and cut
    out as ``spec`` asks. About a tenth of the joints is not annotated (their 3D and scores are
    zero), a fifth is occluded. Where there are two samples or more, the last one is 2D-only:
    ``valid_3d`` all false, ``joints_3d`` and ``root_3d`` zero.

    Args:
        spec: what the method wants to be fed; ``image`` is there for ``kind="image"`` only.
        skeleton: joints of the batch.
        batch_size: B.
        seed: the same seed gives the same batch, whatever the device.
        device: where the tensors go.

    Returns:
        A :class:`~zoo.batch.PoseBatch` with every key.

    Raises:
        zoo.errors.UsageError: the skeleton's root is none of its joints (``coco_17``).
    """
    if skeleton.root not in skeleton.joints:
        raise UsageError(f"{skeleton.name} has no joint {skeleton.root!r} to centre poses on")
    rng = torch.Generator().manual_seed(seed)
    batch = _make(spec, skeleton, batch_size, rng, missing=0.1)
    if spec.kind == "image":
        batch["image"] = _paint(batch["joints_2d"], spec.image_size, rng)
    if batch_size > 1:
        for key in ("valid_3d", "joints_3d", "root_3d"):
            batch[key][-1] = 0
    return cast(PoseBatch, {k: v.to(device) for k, v in batch.items()})


def random_poses(spec: InputSpec, skeleton: Skeleton, count: int = 96, seed: int = 1) -> PoseBatch:
    """What ``datamodule.training_poses()`` gives to ``fit_statistics``: poses without pictures.

    Args:
        spec: for the size of the crop that ``joints_2d`` is in.
        skeleton: joints of the poses.
        count: N.
        seed: the same seed gives the same poses.

    Returns:
        ``joints_3d`` (N, 1, J, 3) mm, ``root_3d``, ``valid_3d``, ``joints_2d`` px, ``valid_2d``,
        ``intrinsics``, ``world_to_camera`` and the ids. Seven of eight poses are complete; the
        others miss joints.
    """
    rng = torch.Generator().manual_seed(seed)
    still = InputSpec(kind="keypoints", image_size=spec.image_size, crop_scale=spec.crop_scale)
    poses = _make(still, skeleton, count, rng, missing=0.0)
    spoilt = torch.arange(count) % 8 == 7
    lost = torch.rand(count, 1, len(skeleton), generator=rng) < 0.3
    lost[..., skeleton.index(skeleton.root)] = False
    poses["valid_3d"] &= ~(lost & spoilt.view(-1, 1, 1))
    poses["joints_3d"] *= poses["valid_3d"][..., None]
    keep = {"joints_3d", "root_3d", "valid_3d", "joints_2d", "valid_2d", "intrinsics"}
    keep |= {"world_to_camera", *SAMPLE_ID_KEYS}
    return cast(PoseBatch, {key: value for key, value in poses.items() if key in keep})
