"""Is it a person in mm? What tells a wrong unit or joint order before it is a wrong number."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.skeleton import get_skeleton

__all__ = ["check_trunk"]

_TRUNK_MM = (200.0, 900.0)
"""Middle of the hips to middle of the shoulders; an adult's is about 450 to 600 mm."""


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
