"""Aligned PPCA (Tome et al., sec. 4.1): a Gaussian and one ground-plane turn a pose, alternated.

Everything works on coordinate-major vectors ``[x_1..x_J, y_1..y_J, z_1..z_J]`` of centred poses of
unit size, z up, in float64, chunk by chunk, so memory does not grow beyond the poses themselves.
The likelihood is PPCA's own (Tipping & Bishop 1999): Eq. 1 as printed leaves out the noise variance
and has the sign of its normaliser wrong; its profile over the coefficients is the same quadratic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zoo.skeleton import Skeleton

__all__ = [
    "FitProgress",
    "Gaussian",
    "PoseSet",
    "align",
    "closed_form_ppca",
    "rotation_harmonics",
    "rotation_step",
    "turn",
]

MIN_NOISE = 1e-8
_GRID = 64
_NEWTON_STEPS = 4


@dataclass(frozen=True)
class FitProgress:
    """Where a fit stands; handed to the caller's ``progress`` function after every step.

    Attributes:
        stage: ``align`` (growing the basis), ``align-all`` (the last rounds, on all poses),
            ``mixture`` or ``mixture-all``.
        step: steps done so far in the whole fit.
        steps: upper bound of the steps of the whole fit.
        basis: basis size of this step.
        nll: negative log-likelihood in nat a pose after the step.
    """

    stage: str
    step: int
    steps: int
    basis: int
    nll: float


@dataclass(frozen=True)
class Gaussian:
    """One PPCA model on coordinate-major vectors of length 3J, float64.

    Attributes:
        mean: (3J,).
        basis: (3J, D), orthonormal columns.
        eigenvalues: (D,), variance along the columns, noise included (lambda_j), descending.
        noise: variance of every other direction (sigma^2).
        dims: d, dimension of the space that centred poses live in, 3 (J - 1).
    """

    mean: Tensor
    basis: Tensor
    eigenvalues: Tensor
    noise: float
    dims: int

    @property
    def logdet(self) -> float:
        """Log determinant of C over the d dimensions."""
        rest = self.dims - self.eigenvalues.numel()
        return float(self.eigenvalues.log().sum()) + rest * math.log(self.noise)

    @property
    def constant(self) -> float:
        """The pose-independent part of the negative log-likelihood."""
        return 0.5 * (self.logdet + self.dims * math.log(2 * math.pi))

    def precision(self) -> Tensor:
        """C^-1, (3J, 3J); on the translations (which no centred pose has) it is 1/noise."""
        inner = 1.0 / self.noise - 1.0 / self.eigenvalues
        eye = torch.eye(self.mean.numel(), dtype=self.mean.dtype)
        return eye / self.noise - (self.basis * inner) @ self.basis.T

    def mahalanobis(self, x: Tensor) -> Tensor:
        """(x - m)^T C^-1 (x - m) of aligned vectors ``x`` (N, 3J), shape (N,)."""
        centred = x - self.mean
        inner = 1.0 / self.noise - 1.0 / self.eigenvalues
        return centred.square().sum(1) / self.noise - (centred @ self.basis).square() @ inner


class PoseSet:
    """Normalised training poses, each followed (virtually) by its mirror image.

    The mirror half is computed chunk by chunk and never stored (sec. 4: flip the x axis and
    relabel left as right; alignment makes any vertical mirror plane the same).
    """

    def __init__(self, poses: Tensor, skeleton: Skeleton, mirror: bool) -> None:
        self.poses = poses  # (N, J, 3), unit size, centred
        self.skeleton = skeleton
        self.mirror = mirror

    def __len__(self) -> int:
        return self.poses.shape[0] * (2 if self.mirror else 1)

    @property
    def joints(self) -> int:
        """J."""
        return self.poses.shape[1]

    def subset(self, count: int, generator: torch.Generator) -> tuple[PoseSet, Tensor]:
        """At most ``count`` poses (with their mirrors) and their rows, in order."""
        rows = torch.randperm(self.poses.shape[0], generator=generator)[:count].sort().values
        return PoseSet(self.poses[rows], self.skeleton, self.mirror), rows

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the set and their vectors (n, 3J), float64."""
        count = self.poses.shape[0]
        flip = list(self.skeleton.flip)
        for half in range(2 if self.mirror else 1):
            for start in range(0, count, size):
                stop = min(start + size, count)
                part = self.poses[start:stop].to(torch.float64)
                if half:
                    part = part[:, flip] * part.new_tensor([-1.0, 1.0, 1.0])
                yield (
                    slice(half * count + start, half * count + stop),
                    part.transpose(1, 2).reshape(stop - start, -1),
                )


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Turns vectors (N, 3J) by ``-angle`` (N,) about z: undoes a yaw of ``angle``."""
    a, b, c = x.chunk(3, dim=1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat((cos * a + sin * b, cos * b - sin * a, c), 1)


def closed_form_ppca(
    mean: Tensor, covariance: Tensor, size: int, dims: int, floor: float = MIN_NOISE
) -> Gaussian:
    """The maximum-likelihood PPCA of a covariance (Tipping & Bishop 1999, Eq. 7-8; sec. 4.1).

    Args:
        mean: (3J,).
        covariance: (3J, 3J); its null space (translations) is left out through ``dims``.
        size: D, number of basis vectors.
        dims: d.
        floor: least noise variance.

    Returns:
        The Gaussian with ``noise`` the mean of the d - D smallest eigenvalues.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:dims], vectors.flip(1)[:, :dims]
    noise = max(float(values[size:].mean()) if size < dims else 0.0, floor)
    return Gaussian(mean, vectors[:, :size], values[:size].clamp_min(noise), noise, dims)


def rotation_harmonics(x: Tensor, model: Gaussian, precision: Tensor | None = None) -> Tensor:
    """Coefficients of f(t) = |x(t) - m|^2_{C^-1} with x(t) the pose turned back by t.

    f = A0 + A1 cos t + B1 sin t + A2 cos 2t + B2 sin 2t, exactly: the quadratic form of a vector
    that is linear in (cos t, sin t).

    Args:
        x: (N, 3J) vectors.
        model: the Gaussian.
        precision: ``model.precision()``, if at hand.

    Returns:
        (N, 5): A0, A1, B1, A2, B2.
    """
    q_matrix = model.precision() if precision is None else precision
    flat = 2 * x.shape[1] // 3
    a, b, height = x.chunk(3, dim=1)
    p, q = torch.cat((a, b), 1), torch.cat((b, -a), 1)
    q_hh, q_hz, q_zz = q_matrix[:flat, :flat], q_matrix[:flat, flat:], q_matrix[flat:, flat:]
    m_h, m_z = model.mean[:flat], model.mean[flat:]
    dz = height - m_z
    p_q, q_q = p @ q_hh, q @ q_hh
    pp, qq, pq = (p_q * p).sum(1), (q_q * q).sum(1), (p_q * q).sum(1)
    v_q = dz @ q_hz.T - m_h @ q_hh  # horizontal part of Q v, v = (-m_h, z - m_z)
    vv = ((dz @ q_zz - 2 * (m_h @ q_hz)) * dz).sum(1) + m_h @ q_hh @ m_h
    a1, b1 = 2 * (p * v_q).sum(1), 2 * (q * v_q).sum(1)
    return torch.stack((vv + (pp + qq) / 2, a1, b1, (pp - qq) / 2, pq), 1)


def _evaluate(h: Tensor, t: Tensor) -> Tensor:
    return (
        h[:, 0] + h[:, 1] * t.cos() + h[:, 2] * t.sin()
        + h[:, 3] * (2 * t).cos() + h[:, 4] * (2 * t).sin()
    )  # fmt: skip


def rotation_step(harmonics: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The global minimum over t of each row's trigonometric polynomial.

    A grid of 64 angles finds the basin, guarded Newton steps the bottom.

    Args:
        harmonics: (N, 5) of :func:`rotation_harmonics`.
        start: (N,) present angles, kept where nothing better is found.

    Returns:
        Angles and minima, both (N,).
    """
    grid = torch.arange(_GRID, dtype=harmonics.dtype) * (2 * math.pi / _GRID)
    table = torch.stack(
        (torch.ones_like(grid), grid.cos(), grid.sin(), (2 * grid).cos(), (2 * grid).sin())
    )
    t = grid[(harmonics @ table).argmin(1)]
    best = _evaluate(harmonics, t)
    _, a1, b1, a2, b2 = harmonics.unbind(1)
    for _ in range(_NEWTON_STEPS):
        c1, s1, c2, s2 = t.cos(), t.sin(), (2 * t).cos(), (2 * t).sin()
        slope = b1 * c1 - a1 * s1 + 2 * (b2 * c2 - a2 * s2)
        bend = -(a1 * c1 + b1 * s1) - 4 * (a2 * c2 + b2 * s2)
        trial = t - torch.where(bend > 0, slope / bend.clamp_min(1e-30), torch.zeros_like(t))
        value = _evaluate(harmonics, trial)
        better = value < best
        t, best = torch.where(better, trial, t), torch.where(better, value, best)
    if start is not None:
        value = _evaluate(harmonics, start)
        better = value < best
        t, best = torch.where(better, start, t), torch.where(better, value, best)
    return t, best


class _Moments:
    """Running count, mean and scatter of vectors about a fixed shift."""

    def __init__(self, shift: Tensor) -> None:
        self.shift, self.count = shift, 0.0
        self.first = torch.zeros_like(shift)
        self.second = torch.zeros(shift.numel(), shift.numel(), dtype=shift.dtype)

    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        x = x - self.shift
        weighted = x if weights is None else x * weights[:, None]
        self.count += float(x.shape[0] if weights is None else weights.sum())
        self.first += weighted.sum(0)
        self.second += x.T @ weighted

    def mean_covariance(self) -> tuple[Tensor, Tensor]:
        offset = self.first / self.count
        covariance = self.second / self.count - torch.outer(offset, offset)
        return self.shift + offset, (covariance + covariance.T) / 2


def tomasi_kanade_angles(poses: PoseSet, chunk: int) -> Tensor:
    """First yaw of every pose from a rank-two factorisation of the ground-plane coordinates.

    The 2N x J matrix M of interleaved x and y rows is factored as A B with A = sqrt(N) M V S^-1
    (V, S: two leading right singular vectors and values); every 2 x 2 block of A is replaced by the
    nearest proper rotation (sec. 4.1). Returns (N,) angles.
    """
    joints = poses.joints
    gram = torch.zeros(joints, joints, dtype=torch.float64)
    for _, x in poses.chunks(chunk):
        for rows in (x[:, :joints], x[:, joints : 2 * joints]):
            gram += rows.T @ rows
    values, vectors = torch.linalg.eigh(gram)
    factor = vectors[:, -2:].flip(1) / values[-2:].flip(0).clamp_min(1e-300).sqrt()
    blocks = torch.empty(len(poses), 2, 2, dtype=torch.float64)
    for part, x in poses.chunks(chunk):
        blocks[part, 0] = x[:, :joints] @ factor
        blocks[part, 1] = x[:, joints : 2 * joints] @ factor
    if float((torch.linalg.det(blocks) < 0).double().mean()) > 0.5:
        blocks[:, :, 1] *= -1  # the sign of an eigenvector is free: take the handed one
    return torch.atan2(blocks[:, 1, 0] - blocks[:, 0, 1], blocks[:, 0, 0] + blocks[:, 1, 1])


def hip_angles(poses: PoseSet, chunk: int) -> Tensor:
    """First yaw of every pose from its hip and shoulder lines (right to left), (N,) angles."""
    index = poses.skeleton.index
    pairs = [(index("l_hip"), index("r_hip")), (index("l_shoulder"), index("r_shoulder"))]
    angles = torch.empty(len(poses), dtype=torch.float64)
    for part, x in poses.chunks(chunk):
        a, b = x[:, : poses.joints], x[:, poses.joints : 2 * poses.joints]
        dx = sum((a[:, left] - a[:, right] for left, right in pairs), torch.zeros(()))
        dy = sum((b[:, left] - b[:, right] for left, right in pairs), torch.zeros(()))
        angles[part] = torch.atan2(dy, dx)
    return angles


def align(
    poses: PoseSet,
    sizes: list[int],
    *,
    init: Literal["tk", "hips"] = "tk",
    start: tuple[Tensor, Gaussian] | None = None,
    chunk: int = 8192,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[Gaussian, Tensor]:
    """Alternates closed-form PPCA and the rotation of every pose (sec. 4.1).

    Each entry of ``sizes`` is one round {rotation step under the present Gaussian, closed-form PPCA
    of that size}; the negative log-likelihood never rises while the sizes do not fall.

    Args:
        poses: the training set.
        sizes: basis size of each round, such as ``[0]*3 + [1]*3 + ...``.
        init: Tomasi-Kanade factorisation, or the hip and shoulder lines.
        start: angles (N,) and Gaussian to continue from.
        chunk: poses a chunk.
        progress: called with the basis size and the NLL (nat a pose) after every half step.

    Returns:
        The Gaussian and the angles (N,): aligned pose = pose turned back by its angle.
    """
    dims = 3 * (poses.joints - 1)
    if start is None:
        first = tomasi_kanade_angles if init == "tk" else hip_angles
        angles = first(poses, chunk)
        model, _ = _refit(poses, angles, None, sizes[0], dims, chunk)
    else:
        angles, model = start[0].clone(), start[1]
    for size in sizes:
        rotated = model
        model, nll = _refit(poses, angles, rotated, size, dims, chunk)
        if progress is not None:
            progress(rotated.eigenvalues.numel(), nll)
            # At its optimum the mean Mahalanobis distance of a PPCA is d (unless a floor is hit).
            progress(size, model.constant + dims / 2)
    return model, angles


def _refit(
    poses: PoseSet, angles: Tensor, model: Gaussian | None, size: int, dims: int, chunk: int
) -> tuple[Gaussian, float]:
    """One pass: turns every pose under ``model`` (in place in ``angles``), then refits."""
    shift = torch.zeros(3 * poses.joints, dtype=torch.float64) if model is None else model.mean
    moments, total = _Moments(shift), 0.0
    precision = None if model is None else model.precision()
    for part, x in poses.chunks(chunk):
        if model is not None:
            harmonics = rotation_harmonics(x, model, precision)
            angles[part], value = rotation_step(harmonics, angles[part])
            total += float(value.sum()) / 2
        moments.add(turn(x, angles[part]))
    fitted = closed_form_ppca(*moments.mean_covariance(), size, dims)
    nll = math.nan if model is None else total / len(poses) + model.constant
    return fitted, nll
