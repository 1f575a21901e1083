"""What Tome et al. 2017 hands to the lift: cameras without azimuth, the prior as it is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.lifting.bank import camera_tilt, view_rotation
from zoo.prior import Prior

__all__ = ["stored_prior", "upright_camera"]


def upright_camera(world_to_camera: Tensor, step: float) -> Tensor:
    """The camera without its azimuth, its pitch rounded to ``step`` rad: (..., 3, 3), float64.

    The azimuth cannot be told from a turn of the person, and few distinct pitches make few tables.
    """
    roll, pitch, _ = camera_tilt(world_to_camera.double())
    pitch = (pitch / step).round() * step
    cos, sin, zero = roll.cos(), roll.sin(), torch.zeros_like(roll)
    rows = (cos, -sin, zero, sin, cos, zero, zero, zero, torch.ones_like(roll))
    turn = torch.stack(rows, -1).reshape(*roll.shape, 3, 3)
    return turn @ view_rotation(torch.zeros_like(pitch), pitch)


def stored_prior(prior: Prior, components: int) -> Prior:
    """The prior as a checkpoint holds it.

    Its numbers are rounded to single precision, which weight files keep, so that a model that is
    read back predicts the same. It has exactly so many components: missing ones are copies of
    weight zero.
    """
    index = torch.tensor([*range(prior.components), *[0] * components])[:components]
    weights = torch.cat((prior.weights, prior.weights.new_zeros(components)))[:components]
    rows = (prior.mean[index], prior.basis[index], prior.variances[index], prior.noise[index])
    mean, basis, variances, noise, shares = (v.float().double() for v in (*rows, weights))
    numbers = torch.tensor([prior.size_mm, *prior.calibration.values()]).tolist()
    calibration = dict(zip(prior.calibration, numbers[1:], strict=True))
    return Prior(mean, basis, variances, noise, shares, prior.skeleton, numbers[0], calibration)
