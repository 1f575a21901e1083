"""Where a camera stands and how its lens bends, from 3D points and their px."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.recordings import Camera

__all__ = ["resect"]

Float = NDArray[np.float64]


def resect(
    name: str, points: NDArray[Any], pixels: NDArray[Any], size: tuple[int, int] = (0, 0)
) -> Camera | None:
    """The camera, with Human3.6M's lens, that projects world points onto px.

    The direct linear transform (Hartley and Zisserman, ch. 7) starts a least-squares refinement of
    all 15 numbers under a loss that a few wrong px do not move.

    Args:
        name: of the camera.
        points: (N, 3) mm, world frame (z up).
        pixels: (N, 2) px; NaN rows count for nothing.
        size: of the pictures, px.

    Returns:
        ``None`` where the points do not determine a camera (too few, or all in one plane).
    """
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    good = np.isfinite(points).all(-1) & np.isfinite(pixels).all(-1)
    chosen = np.flatnonzero(good)
    if len(chosen) < 50:
        return None
    chosen = chosen[:: max(1, len(chosen) // 800)]
    world, seen = np.asarray(points[chosen], np.float64), np.asarray(pixels[chosen], np.float64)
    middle, spread = world.mean(0), world.std()
    offset, extent = seen.mean(0), seen.std()
    if not (spread > 0 and extent > 0):
        return None
    x = np.concatenate([(world - middle) / spread, np.ones((len(world), 1))], 1)
    uv = (seen - offset) / extent
    zero = np.zeros_like(x)
    rows = np.concatenate(
        [
            np.concatenate([x, zero, -uv[:, :1] * x], 1),
            np.concatenate([zero, x, -uv[:, 1:] * x], 1),
        ]
    )
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    if values[-2] < 1e-6 * values[0]:
        return None
    matrix = vectors[-1].reshape(3, 4)
    inside = np.array([[extent, 0, offset[0]], [0, extent, offset[1]], [0, 0, 1]])
    outside = np.eye(4)
    outside[:3] = np.concatenate([np.eye(3), -middle[:, None]], 1) / spread
    outside[3, 3] = 1
    full = inside @ matrix @ outside
    if np.linalg.det(full[:, :3]) < 0:
        full = -full
    # RQ decomposition: intrinsics times rotation.
    flip = np.eye(3)[::-1]
    q, r = np.linalg.qr((flip @ full[:, :3]).T)
    upper, rotation = flip @ r.T @ flip, flip @ q.T
    sign = np.diag(np.sign(np.diag(upper)))
    upper, rotation = upper @ sign, sign @ rotation
    upper /= upper[2, 2]
    centre = -np.linalg.solve(full[:, :3], full[:, 3])
    start = np.concatenate(
        [
            [upper[0, 0], upper[1, 1], upper[0, 2], upper[1, 2]],
            np.zeros(5),
            Rotation.from_matrix(rotation).as_rotvec(),
            centre,
        ]
    )

    def camera(p: Float) -> Camera:
        intrinsics = np.array([[p[0], 0, p[2]], [0, p[1], p[3]], [0, 0, 1.0]])
        turned = Rotation.from_rotvec(p[9:12]).as_matrix()
        return Camera(name, size, intrinsics, p[4:7], p[7:9], rotation=turned, position=p[12:])

    def residual(p: Float) -> Float:
        if p[0] <= 0 or p[1] <= 0:
            return np.full(2 * len(world), 1e6)
        one = camera(p)
        return np.nan_to_num((one.project(one.to_camera(world)) - seen).ravel(), nan=1e6)

    scale = np.array([1e3, 1e3, 500, 500, 0.1, 0.1, 0.1, 1e-2, 1e-2, 1, 1, 1, 1e3, 1e3, 1e3])
    found = least_squares(
        residual, start, x_scale=scale, loss="soft_l1", max_nfev=200, ftol=1e-14, xtol=1e-14,
        gtol=1e-14,
    )  # fmt: skip
    return camera(found.x) if found.x[0] > 0 and found.x[1] > 0 else None
