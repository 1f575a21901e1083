"""Joints of other data sets, made from the synthetic people's 17, so that copies have them all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zoo.skeleton import H36M_17

__all__ = ["named_joints"]

Float = NDArray[np.float64]


def named_joints(world: Float, names: Sequence[str]) -> Float:
    """Joints by name: those of ``h36m_17``, and plausible places for what it lacks.

    Args:
        world: (F, 17, 3) mm, world frame with z up, ``h36m_17``.
        names: of the zoo's skeletons, or of MPI-INF-3DHP's 28.

    Returns:
        (F, len(names), 3) mm.
    """
    have = {name: world[:, i] for i, name in enumerate(H36M_17.joints)}

    def between(a: str, b: str, share: float) -> Float:
        return (1 - share) * have[a] + share * have[b]

    right = have["r_hip"] - have["l_hip"]
    up = have["thorax"] - have["pelvis"]
    forward = np.cross(up, right)
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    have["neck"] = between("thorax", "nose", 0.25)
    have["upper_neck"] = between("thorax", "nose", 0.6)
    have["head"] = between("nose", "head_top", 0.4)
    have["spine2"] = between("pelvis", "spine", 0.5)
    have["spine3"] = between("spine", "thorax", 0.4)
    have["spine4"] = between("spine", "thorax", 0.8)
    for side in "lr":
        have[f"{side}_clavicle"] = between("thorax", f"{side}_shoulder", 0.35)
        have[f"{side}_hand"] = between(f"{side}_elbow", f"{side}_wrist", 1.3)
        have[f"{side}_foot"] = have[f"{side}_ankle"] + 100 * forward
        have[f"{side}_toe"] = have[f"{side}_ankle"] + 180 * forward
    return np.stack([have[name] for name in names], axis=1)
