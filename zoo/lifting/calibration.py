"""Calibrates the lift's uncertainty on validation motion.

The posterior of :func:`zoo.lifting.posterior.posterior_std` knows the prior, the geometry and the
2D misfit. It does not know how far perspective, other bodies, the choice of the angle and motion
outside the prior carry a pose from the model. Poses that the prior was not fitted to tell: an
error added to every joint, one factor on the whole, and the radii of two probabilities.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.lifting.layer import PPCALift
from zoo.prior import Prior
from zoo.skeleton import get_skeleton

__all__ = ["Views", "calibrate", "hide_joints", "random_views"]

_GAUSSIAN_RADIUS_50 = 1.538  # median length of a 3D standard normal vector
_FLOORS_MM = tuple(2.5 * n for n in range(21))
_LEVEL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))


class Views(NamedTuple):
    """Poses seen by cameras: image points (N, J, 2) px, truth (N, J, 3) mm, camera (N, 3, 3)."""

    points: Tensor
    truth: Tensor
    camera: Tensor


def random_views(
    poses: Tensor | npt.NDArray[Any],
    *,
    perspective: bool = True,
    noise_mm: float = 0.0,
    max_pitch: float = math.radians(10.0),
    root: int = 0,
    seed: int = 0,
) -> Views:
    """Looks at poses from random sides.

    Args:
        poses: (N, J, 3) mm, world axes, z up.
        perspective: a camera of 1145 px focal length 4 to 5.5 m away that looks at the root; else
            weak perspective, 0.25 px per mm.
        noise_mm: std of the 2D noise, in mm at the person.
        max_pitch: the camera's pitch is uniform on [0, max_pitch] rad.
        root: joint the poses are made relative to.
        seed: of all random parts.

    Returns:
        The views, float64; ``truth`` is root-relative in camera axes.
    """
    world = torch.as_tensor(poses).double()
    count, generator = len(world), torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(count, dtype=torch.float64, generator=generator)
        return low + (high - low) * draw

    azimuth, pitch = uniform(0, 2 * math.pi), uniform(0, max_pitch)
    distance = uniform(4000, 5500)[:, None, None]
    zero, one = torch.zeros_like(azimuth), torch.ones_like(azimuth)
    c, s, cp, sp = azimuth.cos(), azimuth.sin(), pitch.cos(), pitch.sin()
    turn = torch.stack((c, -s, zero, s, c, zero, zero, zero, one), -1).view(-1, 3, 3)
    nod = torch.stack((one, zero, zero, zero, cp, -sp, zero, sp, cp), -1).view(-1, 3, 3)
    camera = nod @ torch.tensor(_LEVEL, dtype=torch.float64) @ turn
    truth = (world - world[:, root : root + 1]) @ camera.transpose(1, 2)
    scale = 1145.0 / (truth[..., 2:] + distance) if perspective else torch.full_like(distance, 0.25)
    noise = torch.randn(truth[..., :2].shape, dtype=torch.float64, generator=generator) * noise_mm
    return Views((truth[..., :2] + noise) * scale, truth, camera)


def hide_joints(count: int, joints: int, rate: float, seed: int = 0, keep: int = 5) -> Tensor:
    """Visibility (count, joints), float64: each joint hidden at ``rate``, ``keep`` never."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, joints, dtype=torch.float64, generator=generator)
    always = torch.rand(count, joints, generator=generator).argsort(1)[:, :keep]
    return (draw >= rate).double().scatter(1, always, 1.0)


def calibrate(
    prior: Prior,
    poses: Tensor | npt.NDArray[Any],
    *,
    limit: int = 3000,
    noise_mm: float = 8.0,
    seed: int = 0,
    **options: Any,
) -> Prior:
    """Measures the numbers that make the lift's 50 % and 90 % radii honest.

    Six groups of poses: whole, with 20 % and with 45 % of the joints hidden, without and with 2D
    noise. The added error is the one that makes the groups most alike in their standardised errors.

    Args:
        prior: the fitted prior.
        poses: (N, J, 3) mm, world axes, z up, from recordings the prior has not seen.
        limit: most poses used, for each group a sixth.
        noise_mm: std of the 2D noise of the noisy half, mm at the person.
        seed: of the views.
        options: of :class:`~zoo.lifting.layer.PPCALift`.

    Returns:
        The prior with ``calibration`` replaced: ``std_scale``, ``floor_mm``, ``radius_50``,
        ``radius_90``.

    Raises:
        zoo.errors.DataError: fewer than 30 poses.
    """
    data = torch.as_tensor(poses).double()
    if len(data) < 30:
        raise DataError(f"calibration needs at least 30 poses, not {len(data)}")
    generator = torch.Generator().manual_seed(seed)
    data = data[torch.randperm(len(data), generator=generator)[:limit]]
    skeleton = get_skeleton(prior.skeleton)
    others = torch.arange(len(skeleton)) != skeleton.index(skeleton.root)
    lift = PPCALift(dataclasses.replace(prior, calibration={}), **options)
    groups = []
    cases = [(rate, noise) for noise in (0.0, noise_mm) for rate in (0.0, 0.2, 0.45)]
    for number, (rate, noise) in enumerate(cases):
        part = data[number :: len(cases)]
        views = random_views(part, noise_mm=noise, seed=seed + number)
        weights = hide_joints(len(part), len(skeleton), rate, seed + number)
        result = lift(views.points, weights, views.camera, uncertainty=True)
        assert result.std_3d is not None
        error = (result.pose_3d - views.truth).norm(dim=2)[:, others].flatten()
        groups.append((error, result.std_3d[:, others].flatten()))

    levels = torch.tensor([0.5, 0.9], dtype=torch.float64)

    def quantiles(floor: float) -> tuple[Tensor, Tensor]:
        """Standardised errors' quantiles of each group (6, 2) and of all (2,)."""
        ratios = [error / (std.square() + floor**2).sqrt() for error, std in groups]
        return torch.stack([r.quantile(levels) for r in ratios]), torch.cat(ratios).quantile(levels)

    def unlike(floor: float) -> float:
        each, pooled = quantiles(floor)
        return float((each / pooled).log().abs().max())

    floor = min(_FLOORS_MM, key=unlike)
    _, pooled = quantiles(floor)
    scale = float(pooled[0]) / _GAUSSIAN_RADIUS_50
    numbers = {
        "std_scale": scale, "floor_mm": floor,
        "radius_50": float(pooled[0]) / scale, "radius_90": float(pooled[1]) / scale,
    }  # fmt: skip
    return dataclasses.replace(prior, calibration=numbers)
