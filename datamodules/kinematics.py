"""The articulated figure behind the motion generator: joint limits, inverse and forward kinematics.

A :class:`Track` says per frame where the pelvis is, how trunk and head are turned, where the feet
stand, where the hands are, and to which side knees and elbows bend. :func:`solve` turns it into 17
joints of the mean body. Frames: world (z up, mm); "heading" (x forward, y left, z up, turned with
the pelvis about z); "chest" (the same axes fixed to the ribcage, origin at the thorax). Sides are
ordered right, left, and what belongs to a side has its y axis pointing outwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from datamodules.motion import LIMB_NAMES, MEAN_LIMB_LENGTHS

__all__ = ["ANKLE_HEIGHT", "LIMITS", "STANDING", "Track", "solve", "stack", "two_limbs"]

Array = NDArray[np.float64]

LIMB = {n: float(v) for n, v in zip(LIMB_NAMES, MEAN_LIMB_LENGTHS, strict=True)}
ANKLE_HEIGHT = 80.0
"""Height of the ankle of a standing foot over the floor, mm."""

LIMITS: dict[str, tuple[float, float]] = {
    "pelvis_pitch": (-25, 60),
    "pelvis_roll": (-15, 15),
    "trunk_twist": (-40, 40),
    "trunk_flexion": (-20, 65),
    "trunk_side": (-25, 25),
    "head_yaw": (-70, 70),
    "head_pitch": (-45, 50),
    "head_roll": (-25, 25),
    "knee": (4, 150),
    "elbow": (6, 145),
}
"""Range of each joint in degrees; knee and elbow are flexion, 0 = straight, and never negative."""

STANDING = ANKLE_HEIGHT + 0.997 * (LIMB["r_knee"] + LIMB["r_ankle"])
"""Height of the pelvis of the mean body when standing relaxed, mm."""

_SIDE = np.array([-1.0, 1.0])  # right, left: sign of the outward y axis


@dataclass
class Track:
    """What the figure does, frame by frame; every array may carry leading batch axes.

    Attributes:
        pelvis: (..., F, 3) mm, world frame; with ``on_feet`` lowered where the legs are short.
        turn: (..., F, 3) rad: yaw about z, pitch (forward lean), roll (to the right).
        trunk: (..., F, 3) rad of the chest against the pelvis: twist, flexion, side bend.
        head: (..., F, 3) rad against the chest: yaw, pitch (down), roll.
        feet: (..., F, 2, 3) mm, world frame: ankles, right and left.
        knees: (..., F, 2, 3) heading frame: the side to which each knee bends, y outwards.
        hands: (..., F, 2, 3) mm, chest frame: wrists, right and left, y outwards.
        elbows: (..., F, 2, 3) chest frame: the side to which each elbow bends, y outwards.
        on_feet: (...) bool: the legs carry the pelvis (false: a seat does).
    """

    pelvis: Array
    turn: Array
    trunk: Array
    head: Array
    feet: Array
    knees: Array
    hands: Array
    elbows: Array
    on_feet: NDArray[np.bool_]


def stack(tracks: Sequence[Track]) -> Track:
    """One track with a leading axis for the recordings, which have equally many frames."""
    return Track(**{f.name: np.stack([getattr(t, f.name) for t in tracks]) for f in fields(Track)})


def _rotation(yaw: Array, pitch: Array, roll: Array) -> Array:
    """(..., 3, 3): roll about x, then pitch about y, then yaw about z."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9))


def _turn(rotation: Array, v: Array) -> Array:
    """Rotates (..., 3) vectors by (..., 3, 3) matrices."""
    return np.asarray((rotation @ v[..., None])[..., 0])


def _reach(upper: float, lower: float, limits: tuple[float, float]) -> tuple[float, float]:
    """Shortest and longest distance from root to end of two limbs whose flexion has limits."""

    def distance(flexion: float) -> float:
        cosine = np.cos(np.radians(flexion))
        return float(np.sqrt(upper**2 + lower**2 + 2 * upper * lower * cosine))

    return distance(limits[1]), distance(limits[0])


def two_limbs(
    root: Array, target: Array, pole: Array, upper: float, lower: float, limits: tuple[float, float]
) -> tuple[Array, Array]:
    """Middle and end joint of two limbs that reach for a target.

    Args:
        root: (..., 3) mm, where the upper limb starts.
        target: (..., 3) mm; if it is nearer or farther than the limits allow, the end stays on the
            line to it.
        pole: (..., 3), the side to which the middle joint bends.
        upper: length of the upper limb, mm.
        lower: length of the lower limb, mm.
        limits: smallest and largest flexion in degrees.

    Returns:
        Positions of the middle and the end joint, (..., 3) mm.
    """
    line = target - root
    nearest, farthest = _reach(upper, lower, limits)
    distance = np.clip(np.linalg.norm(line, axis=-1, keepdims=True), nearest, farthest)
    along = _unit(line)
    aside = _unit(pole - (pole * along).sum(-1, keepdims=True) * along)
    cosine = (distance**2 + upper**2 - lower**2) / (2 * distance * upper)
    sine = np.sqrt(np.maximum(1 - cosine**2, 0))
    middle = root + upper * (cosine * along + sine * aside)
    return middle, root + distance * along


def _clip(angles: Array, *names: str) -> tuple[Array, ...]:
    return tuple(np.clip(angles[..., i], *np.radians(LIMITS[name])) for i, name in enumerate(names))


def _lowered(height: Array, cap: Array, radius: int = 3) -> Array:
    """Heights (..., F) kept under ``cap`` without jerks.

    A running minimum over ``radius`` frames to both sides, then a mean with weights over the same
    window: every value that enters the mean at a frame is at most the cap of that frame.
    """
    low = np.minimum(height, cap)
    pad = [(0, 0)] * (low.ndim - 1) + [(2 * radius, 2 * radius)]
    low = np.pad(low, pad, mode="edge")
    window = np.lib.stride_tricks.sliding_window_view
    low = window(low, 2 * radius + 1, axis=-1).min(-1)
    weights = np.hanning(2 * radius + 3)[1:-1]
    return np.asarray(window(low, 2 * radius + 1, axis=-1) @ (weights / weights.sum()))


def _outside_trunk(hands: Array) -> Array:
    """Wrists (..., 3) in the chest frame; those in the trunk go round it on their own side."""
    x, y, z = hands[..., 0], hands[..., 1], hands[..., 2]
    half_width = 195.0 * np.cos(np.clip(x / 170.0, -1, 1) * np.pi / 2) ** 2
    share = np.clip((80 - z) / 120, 0, 1)  # above the shoulders there is room
    return np.stack([x, y + share * np.maximum(half_width - y, 0), z], -1)


def solve(track: Track) -> NDArray[np.float32]:
    """Joints of the mean body that follow a track within the joint limits.

    Returns:
        (..., F, 17, 3) float32 mm, world frame.
    """
    out = np.zeros((*track.pelvis.shape[:-1], 17, 3))
    yaw = track.turn[..., 0]
    pitch, roll = _clip(track.turn[..., 1:], "pelvis_pitch", "pelvis_roll")
    twist, flexion, side = _clip(track.trunk, "trunk_twist", "trunk_flexion", "trunk_side")
    nod = _clip(track.head, "head_yaw", "head_pitch", "head_roll")
    flat = np.zeros_like(yaw)
    heading = _rotation(yaw, flat, flat)
    hips = _rotation(yaw, pitch, roll)
    # The lower back takes its share of the bend, so the trunk curves.
    waist = hips @ _rotation(0.4 * twist, 0.35 * flexion, 0.35 * side)
    chest = hips @ _rotation(twist, flexion, side)
    skull = chest @ _rotation(*nod)

    _legs(out, track, heading, hips)
    axis = {
        "spine": np.array([-0.06, 0.0, 1.0]),
        "thorax": np.array([0.02, 0.0, 1.0]),
        "nose": np.array([0.38, 0.0, 1.0]),
        "head_top": np.array([-0.08, 0.0, 1.0]),
    }
    for joint, frame in ((7, waist), (8, chest), (9, skull), (10, skull)):
        name = LIMB_NAMES[joint - 1]
        parent = out[..., 0 if joint == 7 else joint - 1, :]
        out[..., joint, :] = parent + LIMB[name] * (frame @ _unit(axis[name]))
    _arms(out, track, heading, chest)
    return out.astype(np.float32)


def _legs(out: Array, track: Track, heading: Array, hips: Array) -> None:
    thigh, shin, limits = LIMB["r_knee"], LIMB["r_ankle"], LIMITS["knee"]
    offsets = [_turn(hips, np.array([0.0, s * LIMB["r_hip"], 0.0])) for s in _SIDE]
    feet = [track.feet[..., i, :] for i in range(2)]
    pelvis = track.pelvis.copy()
    # How high the pelvis may be so that each leg still reaches its foot.
    reach = _reach(thigh, shin, limits)[1]
    caps = []
    for offset, foot in zip(offsets, feet, strict=True):
        away = ((pelvis + offset - foot)[..., :2] ** 2).sum(-1)
        caps.append(foot[..., 2] + np.sqrt(np.maximum(reach**2 - away, 1.0)) - offset[..., 2])
    lowered = _lowered(pelvis[..., 2], np.minimum(*caps))
    pelvis[..., 2] = np.where(np.asarray(track.on_feet)[..., None], lowered, pelvis[..., 2])
    out[..., 0, :] = pelvis
    for i, first in enumerate((1, 4)):
        root = pelvis + offsets[i]
        pole = _turn(heading, track.knees[..., i, :] * np.array([1.0, _SIDE[i], 1.0]))
        out[..., first, :] = root
        out[..., first + 1, :], out[..., first + 2, :] = two_limbs(
            root, feet[i], pole, thigh, shin, limits
        )


def _arms(out: Array, track: Track, heading: Array, chest: Array) -> None:
    upper, fore, limits = LIMB["r_elbow"], LIMB["r_wrist"], LIMITS["elbow"]
    thorax = out[..., 8, :]
    for i, first in enumerate((14, 11)):
        outward = np.array([1.0, _SIDE[i], 1.0])
        hand = _outside_trunk(track.hands[..., i, :])
        # A raised arm takes the shoulder up with it.
        lift = 0.45 * np.clip((hand[..., 2] + 250) / 600, 0, 1)
        ahead = 0.25 * np.clip(hand[..., 0] / 500, -0.5, 1)
        shoulder = np.stack([ahead, np.full_like(lift, _SIDE[i]), lift - 0.12], -1)
        root = thorax + LIMB["r_shoulder"] * _turn(chest, _unit(shoulder))
        # A low hand hangs by its weight, a high one moves with the chest.
        held = np.clip((hand[..., 2:] + 520) / 330, 0, 1)
        held = held**2 * (3 - 2 * held)
        pole = _turn(chest, track.elbows[..., i, :] * outward)
        target = thorax + held * _turn(chest, hand * outward)
        target += (1 - held) * _turn(heading, hand * outward)
        target[..., 2] = np.maximum(target[..., 2], 60.0)
        out[..., first, :] = root
        out[..., first + 1, :], out[..., first + 2, :] = two_limbs(
            root, target, pole, upper, fore, limits
        )
