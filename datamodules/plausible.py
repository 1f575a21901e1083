"""Is it a person in mm? What tells a wrong unit or joint order before it is a wrong number."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from datamodules.recordings import Recording
from zoo.errors import DataError
from zoo.skeleton import get_skeleton

__all__ = ["check_reprojection", "check_trunk", "misses"]

_TRUNK_MM = (200.0, 900.0)
"""Middle of the hips to middle of the shoulders; an adult's is about 450 to 600 mm."""
_MISS = 0.05
"""Exported 2D is projected 3D; even KTH's reconstruction meets its 2D within 2 % of the person."""


def check_trunk(where: str, skeleton: str, joints: NDArray[np.float64]) -> None:
    """Checks the median trunk length.

    Args:
        where: the file and what of it, for the message.
        skeleton: name; it has hips and shoulders.
        joints: (..., J, 3) mm, NaN = not annotated; nothing is said if no trunk is annotated.

    Raises:
        zoo.errors.DataError: no person has such a trunk.
    """
    at = get_skeleton(skeleton).index
    hips = (joints[..., at("l_hip"), :] + joints[..., at("r_hip"), :]) / 2
    shoulders = (joints[..., at("l_shoulder"), :] + joints[..., at("r_shoulder"), :]) / 2
    lengths = np.linalg.norm(shoulders - hips, axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN
        length = np.nanmedian(lengths)
    if np.isfinite(length) and not _TRUNK_MM[0] <= length <= _TRUNK_MM[1]:
        raise DataError(
            f"{where}: trunks of {length:.3g} mm; another unit or another order of joints than the "
            "format's"
        )


def misses(recording: Recording) -> float:
    """Median distance of the projected 3D from the 2D over the median size of the person in px.

    NaN where there is nothing to compare.

    Up to a few thousand frames of the recording, evenly spread.
    """
    rows = np.unique(np.linspace(0, len(recording) - 1, min(len(recording), 2000)).astype(int))
    seen = recording.reprojected(rows)
    if seen is None or recording.joints_2d is None:
        return float("nan")
    gaps = np.linalg.norm(seen - recording.joints_2d[rows], axis=-1)
    # Behind the camera is as wrong as it gets.
    lost = np.isnan(seen).any(-1) & np.isfinite(recording.joints_2d[rows]).all(-1)
    assert recording.joints_3d is not None
    lost &= np.isfinite(recording.joints_3d[rows]).all(-1)
    gaps = np.where(lost, np.inf, gaps)
    known = gaps[~np.isnan(gaps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # frames without any joint
        extent = np.nanmax(recording.joints_2d, axis=1) - np.nanmin(recording.joints_2d, axis=1)
        size = float(np.nanmedian(extent.max(-1)))
    return float(np.median(known)) / size if len(known) and size > 0 else float("nan")


def check_reprojection(recording: Recording, calibration: str) -> Recording:
    """Returns a recording whose 3D lands near its 2D.

    Args:
        recording: with 2D, 3D and a camera.
        calibration: the file to name.

    Raises:
        zoo.errors.DataError: 2D, 3D and camera do not belong together.
    """
    miss = misses(recording)
    if miss > _MISS:
        raise DataError(
            f"{recording.where}: {calibration} puts the 3D of {recording.label} {miss:.0%} of the "
            "person's size from the 2D (median); the files do not belong together"
        )
    return recording
