"""Precomputed least squares of the lift (Tome et al., Eq. 4), one bank a camera pitch.

For component k and ground-plane angle r, Eq. 4 is linear in z = (s, b) with b = s a (footnote 3):

    |y - A z|^2 + |D z|^2,   A = C P E R_r [mu, e_1 .. e_D],   D = diag(0, sigma_1 .. sigma_D),

with C the centring over joints (a free 2D translation), P the orthographic projection and sigma_j
= noise std / prior std times ``gain``. With G = (A^T A + D^2)^-1 the solution is z = G A^T y and
the cost a quadratic form y^T Q y, Q = C - A G A^T. All of it is known before any pose is seen.

Camera without roll and azimuth: x right, y down, z forward; a positive pitch looks down. The image
vector is interleaved, [x_1, y_1, x_2, y_2, ...]. Shape letters: B poses, J joints, D basis size,
M components, R angles, K = M R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Bank", "build_bank", "centred_coordinates", "project", "stack_model", "view_rotation"]

_CHUNK_FLOATS = 2**17  # a chunk's cost table stays in the cache
_LANES = 16


def stack_model(mean: Tensor, basis: Tensor) -> Tensor:
    """(M, 1 + D, J, 3): the mean and the basis of each component."""
    return torch.cat((mean[:, None], basis), 1)


def project(points: Tensor, angle: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Model points (..., J, 3), z up, turned by ``angle`` about z, seen at ``pitch``.

    Returns:
        x right, y down, z forward, each (..., J); ``angle`` and ``pitch`` must broadcast to that.
    """
    x, y, up = points.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    right, depth = cos * x - sin * y, sin * x + cos * y
    c, s = pitch.cos(), pitch.sin()
    return right, -c * up - s * depth, c * depth - s * up


def view_rotation(angle: Tensor, pitch: Tensor) -> Tensor:
    """(..., 3, 3): rows right, down, forward in the model's axes; :func:`project` as a matrix."""
    eye = torch.eye(3, dtype=angle.dtype, device=angle.device)
    return torch.stack(project(eye, angle[..., None], pitch[..., None]), -2)


def centred_coordinates(joints: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(2J - 2, 2J): orthonormal rows that span the image vectors without translation."""
    eye = torch.eye(joints, dtype=dtype)
    rows = torch.linalg.qr(torch.cat((torch.ones(joints, 1, dtype=dtype), eye[:, 1:]), 1)).Q
    return torch.kron(rows.T[1:].contiguous(), torch.eye(2, dtype=dtype))


def _circulant(n: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the products ``y_i y_{(i+s) mod n}``, s = 0 .. n/2, (n/2 + 1, n)."""
    i = torch.arange(n).expand(n // 2 + 1, n)
    return i, (i + torch.arange(n // 2 + 1)[:, None]) % n


@dataclass
class Bank:
    """The tables of one pitch; ``dtype`` is that of the poses.

    Attributes:
        pitch: rad.
        joints, components, angles: J, M, R.
        view: (R, 3, 3): rows right, down, forward in the model's axes.
        solve: (K, 2J, 3 + D): (s, b, 2D centre of the model) = y @ solve.
        scale_row: (2J - 2, K): the scale of every candidate is ``y' @ scale_row``.
        scale_var: (K,): G_00.
        scale_column: (2J, K): the same row of ``solve`` for whole image vectors.
        half: (K, 2J, 1 + D) float64: C A F with F F^T = G, so that Q = C - half half^T.
        reduce: (2J, 2J - 2): y' = y @ reduce.
        factors: per component (P, r) and (r, R): products of y' to costs, of numerical rank r.
    """

    pitch: float
    joints: int
    components: int
    angles: int
    view: Tensor
    solve: Tensor
    scale_row: Tensor
    scale_var: Tensor
    scale_column: Tensor
    half: Tensor
    reduce: Tensor
    factors: list[tuple[Tensor, Tensor]]

    @cached_property
    def cost_rows(self) -> Tensor:
        """(K, 2J, 2J): Q; built on first use, for only missing joints need it."""
        reduce = self.reduce.to(self.half.dtype)
        return (reduce @ reduce.T - self.half @ self.half.transpose(1, 2)).to(self.solve.dtype)

    @cached_property
    def cost_matrix(self) -> Tensor:
        """(2J, 2J, K): Q, candidates innermost."""
        return self.cost_rows.permute(1, 2, 0).contiguous()

    @property
    def chunk(self) -> int:
        """Poses whose tables fit in the cache."""
        return max(32, _CHUNK_FLOATS // (self.components * self.angles))

    def costs(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Unconstrained costs and scales (B, K) of image vectors ``y`` (B, 2J), all seen."""
        reduced = y @ self.reduce
        n = reduced.shape[1]
        # The cost is linear in the products y_i y_j. Taken along circular shifts they are windows
        # of one padded row, so a single strided multiply makes them all.
        padded = torch.cat((reduced, reduced[:, : n // 2]), 1)
        windows = padded.as_strided((len(y), n // 2 + 1, n), (padded.stride(0), 1, 1))
        products = y.new_empty(len(y), (n // 2 + 1) * n)
        torch.mul(windows, reduced[:, None], out=products.view(windows.shape))
        parts = [products @ left @ right for left, right in self.factors]
        cost = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return cost, reduced @ self.scale_row

    def capped(self, cost: Tensor, scale: Tensor, least: Tensor) -> Tensor:
        """Adds, in place, what the cap ``scale >= least`` (B, 1) costs: deficit^2 / G_00."""
        deficit = (least - scale).clamp_min_(0.0)
        return cost.addcmul_(deficit.square_(), (1.0 / self.scale_var).expand_as(cost))


def build_bank(
    model: Tensor, penalty: Tensor, pitch: float, angles: Tensor, dtype: torch.dtype,
    seen: Tensor | None = None,
) -> Bank:  # fmt: skip
    """Builds the tables in float64 and stores them in ``dtype``.

    Args:
        model: (M, 1 + D, J, 3) of :func:`stack_model`, unit size.
        penalty: (M, D), the diagonal sigma_j of Eq. 4.
        pitch: rad.
        angles: (R,) rad.
        dtype: of the stored tables.
        seen: (J,) bool, the joints that are there in every pose; ``None``: all. Coordinates of the
            others are multiplied by zero.

    Returns:
        The bank, on the model's device.
    """
    device = model.device
    m, joints = model.shape[0], model.shape[2]
    tilt = model.new_tensor(pitch)
    right, down, _ = project(model[:, None], angles[None, :, None, None], tilt)
    a = torch.stack((right, down), -1).flatten(0, 1).flatten(2).transpose(1, 2)  # (K, 2J, 1+D)
    weight = torch.cat((torch.zeros_like(penalty[:, :1]), penalty), 1).square()
    there = torch.arange(joints, device=device) if seen is None else seen.nonzero()[:, 0]
    pick = torch.eye(joints, dtype=a.dtype, device=device)[:, there]  # (J, visible)
    both = torch.eye(2, dtype=a.dtype, device=device)
    reduce = torch.kron(pick, both) @ centred_coordinates(len(there)).to(device).T
    centring = reduce @ reduce.T
    normal = a.transpose(1, 2) @ centring @ a
    normal = normal + torch.diag_embed(weight).repeat_interleave(len(angles), 0)
    gram = torch.linalg.inv(normal)
    solve = gram @ a.transpose(1, 2) @ centring
    average = torch.kron(pick.mean(1)[None], both)  # (2, 2J): mean over the visible joints
    shift = average - average @ a @ solve
    half = centring @ a @ torch.linalg.cholesky(gram)
    rows, cols = _circulant(reduce.shape[1])
    inner = reduce.T @ half
    form = torch.eye(reduce.shape[1], dtype=a.dtype, device=device) - inner @ inner.transpose(1, 2)
    small = form[:, rows.flatten(), cols.flatten()]  # (K, P)
    # Off-diagonal pairs occur once for shifts below n/2 and twice at n/2.
    steps = torch.arange(rows.shape[0], device=device).repeat_interleave(rows.shape[1])
    small = small * torch.where((steps > 0) & (steps < reduce.shape[1] // 2), 2.0, 1.0).to(small)
    factors = []
    for table in small.view(m, len(angles), -1):
        u, s, vh = torch.linalg.svd(table, full_matrices=False)
        rank = int((s > s[0] * (1e-7 if dtype == torch.float32 else 1e-15)).sum())
        rank = -(-rank // _LANES) * _LANES  # products of whole vector registers are faster
        factors.append(
            ((vh[:rank].T * s[:rank]).to(dtype).contiguous(), u[:, :rank].T.to(dtype).contiguous())
        )
    return Bank(
        pitch=pitch, joints=joints, components=m, angles=len(angles),
        view=view_rotation(angles, tilt).to(dtype),
        solve=torch.cat((solve, shift), 1).transpose(1, 2).to(dtype).contiguous(),
        scale_row=(solve[:, 0] @ reduce).T.to(dtype).contiguous(),
        scale_var=gram[:, 0, 0].to(dtype).contiguous(),
        scale_column=solve[:, 0].T.to(dtype).contiguous(),
        half=half,
        reduce=reduce.to(dtype), factors=factors,
    )  # fmt: skip


def camera_tilt(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Roll, pitch and azimuth (rad) of world-to-camera rotations (..., 3, 3), world z up.

    E = Rz(roll) Rx(pitch) E0 Rz(azimuth), E0 the level camera that looks along world +y. Only the
    azimuth cannot be told from a turn of the person.
    """
    up = rotation[..., :, 2]
    roll = torch.atan2(up[..., 0], -up[..., 1])
    pitch = torch.atan2(-up[..., 2], torch.hypot(up[..., 0], up[..., 1]))
    # Row 0 of Rx(-pitch) Rz(-roll) E is (cos azimuth, -sin azimuth, 0).
    first = (
        roll.cos()[..., None] * rotation[..., 0, :] + roll.sin()[..., None] * rotation[..., 1, :]
    )
    return roll, pitch, torch.atan2(-first[..., 1], first[..., 0])


def angle_grid(count: int) -> Tensor:
    """(count,) angles on [0, 2 pi), float64."""
    return torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
