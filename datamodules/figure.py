"""The rendered person: 17 joints, a body and an outfit become round cones with surface colours.

A figure is a list of 21 *round cones* (the hull of two balls, like a finger). Each lives in its own
linearly squashed space, so the same formula gives limbs, a flat chest and an oval head. A point X
is on ball i when ``(X - c_i)^T M (X - c_i) = r_i^2``; ``M = I`` is an ordinary round cone.

Front and back differ (face and nose against hair, feet), left and right do not: both sides of a
person wear the same colours, so that only geometry tells them apart.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.skeleton import H36M_17

__all__ = [
    "GIRTHS",
    "NUM_OUTFIT_UNIFORMS",
    "OWN_BALL",
    "OWN_PARTS",
    "PARTS",
    "Cones",
    "Outfit",
    "build_figure",
    "constant",
    "hsv_to_rgb",
    "outfit_from_uniforms",
    "paint",
]

PARTS = (
    "hips", "abdomen", "chest", "yoke", "neck", "head", "nose", "hair",
    "r_thigh", "r_shank", "r_foot", "l_thigh", "l_shank", "l_foot",
    "r_upper_arm", "r_forearm", "r_hand", "l_upper_arm", "l_forearm", "l_hand",
)  # fmt: skip
"""Names of the round cones, in the order of the part index of the id buffer."""

GIRTHS = ("torso", "depth", "hips", "arms", "legs", "head")
"""What the entries of a body's girth vector scale; 1 is an average adult."""

# Surfaces of the trunk and the head that belong to a joint: they do not hide it.
OWN_PARTS: dict[str, tuple[str, ...]] = {
    "pelvis": ("hips", "abdomen"),
    "spine": ("abdomen", "chest"),
    "thorax": ("chest", "yoke", "neck"),
    "nose": ("head", "nose", "neck", "hair"),
    "head_top": ("head", "hair"),
}
# A joint of a limb has the surface of one ball of its limb: (part, which end).
OWN_BALL: dict[str, tuple[str, int]] = {
    f"{side}_{joint}": (f"{side}_{part}", end)
    for side in "rl"
    for joint, part, end in (
        ("hip", "thigh", 0), ("knee", "thigh", 1), ("ankle", "shank", 1),
        ("shoulder", "upper_arm", 0), ("elbow", "upper_arm", 1), ("wrist", "forearm", 1),
    )
}  # fmt: skip


class Cones(NamedTuple):
    """N figures of P round cones, camera frame.

    Attributes:
        start: (N, P, 3) mm, centre of the first ball.
        end: (N, P, 3) mm, centre of the second ball.
        radius_start: (N, P) mm, in the squashed space.
        radius_end: (N, P) mm, in the squashed space.
        metric: (N, P, 3, 3) the matrix M of the squashed space.
        spread: (N, P, 3, 3) its inverse.
        reach: (P,) or (N, P) largest extent of a ball over its radius.
        front: (N, 3, 3) unit vectors to the front of pelvis, chest and head.
        up: (N, 3, 3) unit vectors upwards of pelvis, chest and head.
        left: (N, 3, 3) unit vectors to the left of pelvis, chest and head.
    """

    start: Tensor
    end: Tensor
    radius_start: Tensor
    radius_end: Tensor
    metric: Tensor
    spread: Tensor
    reach: Tensor
    front: Tensor
    up: Tensor
    left: Tensor


class Outfit(NamedTuple):
    """Hair, skin and clothes of N people; colours are RGB in [0, 1].

    Attributes:
        skin: (N, 3).
        hair: (N, 3).
        top: (N, 2, 3), colour and second colour of the pattern.
        bottom: (N, 2, 3).
        shoes: (N, 3).
        sleeve: (N,) covered part of the arm, 0 to 2 (1 is the elbow).
        trouser: (N,) covered part of the leg, 0 to 2 (1 is the knee).
        hair_length: (N,) mm below the crown.
        wave: (N, 2, 2) radians per mm of the pattern (top, bottom) x (up, across); 0 is plain.
        phase: (N, 2, 2) radians.
    """

    skin: Tensor
    hair: Tensor
    top: Tensor
    bottom: Tensor
    shoes: Tensor
    sleeve: Tensor
    trouser: Tensor
    hair_length: Tensor
    wave: Tensor
    phase: Tensor


@lru_cache(maxsize=256)
def constant(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed tensor, copied to a device once: each copy would wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _frame(left: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal (left, up, front) that keeps ``up``; the camera frame is right-handed."""
    up = _unit(up)
    left = _unit(left - (left * up).sum(-1, keepdim=True) * up)
    return left, up, torch.linalg.cross(left, up)


def _squash(axes: Tensor, flat: Tensor) -> Tensor:
    """I + sum_i (flat_i^2 - 1) axis_i axis_i^T, for (N, S, 2, 3) unit axes at right angles.

    A ball in the space of that metric is ``1 / flat_i`` as long along axis i as across.
    """
    outer = axes[..., :, None] * axes[..., None, :]
    eye = torch.eye(3, dtype=axes.dtype, device=axes.device)
    return eye + ((flat.square() - 1)[..., None, None] * outer).sum(-3)


def build_figure(joints: Tensor, girth: Tensor, hair_length: Tensor) -> Cones:
    """The round cones of N people.

    Args:
        joints: (N, 17, 3) mm, absolute, camera frame, ``h36m_17``.
        girth: (N, 6) factors, see ``GIRTHS``.
        hair_length: (N,) mm.

    Returns:
        The figures, in the dtype of ``joints``.
    """
    joint = {name: joints[:, i] for i, name in enumerate(H36M_17.joints)}
    girth = girth.to(joints)
    torso, depth, hip_girth, arms, legs, head_girth = girth.unbind(-1)
    one = torch.ones_like(torso)

    pelvis_left, pelvis_up, pelvis_front = _frame(
        joint["l_hip"] - joint["r_hip"], joint["spine"] - joint["pelvis"]
    )
    chest_left, chest_up, chest_front = _frame(
        joint["l_shoulder"] - joint["r_shoulder"], joint["thorax"] - joint["spine"]
    )
    # The face looks where the chest does, turned towards an off-axis nose where the data have one.
    neck_to_top = _unit(joint["head_top"] - joint["thorax"])
    nose = joint["nose"] - joint["thorax"]
    nose = nose - (nose * neck_to_top).sum(-1, keepdim=True) * neck_to_top
    forward = chest_front + nose / 30
    head_left, head_up, head_front = _frame(torch.linalg.cross(neck_to_top, forward), neck_to_top)

    def col(value: Tensor) -> Tensor:
        return value[:, None]

    shoulder_width = (joint["l_shoulder"] - joint["r_shoulder"]).norm(dim=-1)
    hip_width = (joint["l_hip"] - joint["r_hip"]).norm(dim=-1)
    chest_radius = (0.3 * shoulder_width + 42) * torso
    waist_radius = (0.1 * (shoulder_width + hip_width) + 72) * torso
    pelvis_radius = (0.3 * hip_width + 95) * hip_girth
    # part -> centres and radii of its two balls; and for squashed parts two axes and how flat.
    parts: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    squash: dict[str, tuple[Tensor, Tensor, Tensor, float]] = {}
    flat = 1.5 / depth

    low = 8 * pelvis_up - 6 * pelvis_front
    hip_radius = 84 * hip_girth
    parts["hips"] = (joint["r_hip"] + low, joint["l_hip"] + low, hip_radius, hip_radius)
    parts["abdomen"] = (
        joint["pelvis"] + 35 * pelvis_up, joint["spine"], pelvis_radius, waist_radius
    )  # fmt: skip
    squash["abdomen"] = (pelvis_front, pelvis_up, flat, 1.6)
    parts["chest"] = (
        joint["spine"] + 10 * chest_up, joint["thorax"] - 95 * chest_up + 6 * chest_front,
        waist_radius, chest_radius,
    )  # fmt: skip
    squash["chest"] = (chest_front, chest_up, flat, 1.35)
    yoke = 50 * (0.5 * torso + 0.5 * arms)
    parts["yoke"] = (
        torch.lerp(joint["r_shoulder"], joint["thorax"], 0.06),
        torch.lerp(joint["l_shoulder"], joint["thorax"], 0.06),
        yoke, yoke,
    )  # fmt: skip

    crown = joint["head_top"] - 46 * head_up
    parts["neck"] = (joint["thorax"], crown - 60 * head_up, 56 * head_girth, 49 * head_girth)
    parts["head"] = (
        crown, crown - 74 * head_up + 16 * head_front, 74 * head_girth, 50 * head_girth
    )  # fmt: skip
    tip = crown + 94 * col(head_girth) * head_front - 44 * head_up
    parts["nose"] = (tip + 22 * head_up - 10 * head_front, tip, 9 * one, 14 * one)
    length = col(hair_length)
    parts["hair"] = (
        crown + 8 * head_up - 12 * head_front,
        crown - length * head_up - (30 + 0.1 * length) * head_front,
        78 * head_girth, (70 - 0.05 * hair_length) * head_girth,
    )  # fmt: skip
    squash["head"] = squash["hair"] = (head_front, head_up, 0.84 * one, 0.95)

    for side in "rl":
        hip, knee, ankle = joint[f"{side}_hip"], joint[f"{side}_knee"], joint[f"{side}_ankle"]
        parts[f"{side}_thigh"] = (hip, knee, 80 * legs, 56 * legs)
        parts[f"{side}_shank"] = (knee, ankle, 56 * legs, 37 * legs)
        # A foot stands at a right angle to the shank, turned about the axis of the hips.
        down = _unit(ankle - knee)
        toes = torch.linalg.cross(down, -pelvis_left) + 0.15 * pelvis_front
        toes = _unit(toes - (toes * down).sum(-1, keepdim=True) * down)
        parts[f"{side}_foot"] = (
            ankle + 32 * down - 14 * toes, ankle + 50 * down + 138 * toes, 46 * one, 36 * one
        )  # fmt: skip
        squash[f"{side}_foot"] = (down, toes, 1.25 * one, 1.0)
        shoulder, elbow = joint[f"{side}_shoulder"], joint[f"{side}_elbow"]
        wrist = joint[f"{side}_wrist"]
        parts[f"{side}_upper_arm"] = (shoulder, elbow, 51 * arms, 40 * arms)
        parts[f"{side}_forearm"] = (elbow, wrist, 41 * arms, 28 * arms)
        along = _unit(wrist - elbow)
        palm = _unit(torch.linalg.cross(along, chest_front + 0.1 * chest_up))
        parts[f"{side}_hand"] = (wrist + 20 * along, wrist + 105 * along, 38 * one, 26 * one)
        squash[f"{side}_hand"] = (palm, along, 1.7 * one, 1.0)

    start, end, radius_start, radius_end = (
        torch.stack([parts[name][i] for name in PARTS], dim=1) for i in range(4)
    )
    squashed = constant(tuple(map(PARTS.index, squash)), torch.long, joints.device)
    axes = torch.stack([torch.stack(entry[:2], 1) for entry in squash.values()], 1)
    flats = torch.stack(
        [torch.stack([entry[2], entry[3] * one], -1) for entry in squash.values()], 1
    )  # (N, S, 2)
    eye = torch.eye(3, dtype=joints.dtype, device=joints.device)
    metric = eye.repeat(*start.shape[:2], 1, 1)
    spread = metric.clone()
    metric[:, squashed] = _squash(axes, flats)
    spread[:, squashed] = _squash(axes, flats.reciprocal())
    reach = torch.ones_like(radius_start)
    reach[:, squashed] = flats.amin(-1).clamp_max(1).reciprocal()
    return Cones(
        start, end, radius_start, radius_end, metric, spread, reach,
        torch.stack([pelvis_front, chest_front, head_front], 1),
        torch.stack([pelvis_up, chest_up, head_up], 1),
        torch.stack([pelvis_left, chest_left, head_left], 1),
    )  # fmt: skip


# ---- clothes ------------------------------------------------------------------------------------

NUM_OUTFIT_UNIFORMS = 40

_SKINS = ((0.96, 0.80, 0.69), (0.88, 0.68, 0.54), (0.74, 0.52, 0.37), (0.52, 0.34, 0.23),
          (0.30, 0.19, 0.14))  # fmt: skip
_HAIRS = ((0.07, 0.05, 0.05), (0.20, 0.12, 0.08), (0.40, 0.25, 0.14), (0.74, 0.58, 0.34),
          (0.62, 0.60, 0.58))  # fmt: skip


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(...,) each in [0, 1] -> (..., 3)."""
    steps = constant((5.0, 3.0, 1.0), hue.dtype, hue.device)
    k = torch.remainder(steps + 6 * hue[..., None], 6)
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def _palette(position: Tensor, colours: tuple[tuple[float, ...], ...]) -> Tensor:
    """Linear interpolation in a list of colours; ``position`` in [0, 1]."""
    table = constant(colours, position.dtype, position.device)
    where = position * (len(colours) - 1)
    low = where.floor().clamp(0, len(colours) - 2)
    index = low.long()
    weight = (where - low)[:, None]
    return table[index] * (1 - weight) + table[index + 1] * weight


def _cloth(u: Tensor) -> Tensor:
    """(N, 4) uniforms -> (N, 3): mostly muted colours, some strong, some black, white or grey."""
    saturation = torch.where(u[:, 3] < 0.3, 0.12 * u[:, 1], 0.15 + 0.75 * u[:, 1] ** 1.5)
    return hsv_to_rgb(u[:, 0], saturation, 0.08 + 0.88 * u[:, 2])


def outfit_from_uniforms(u: Tensor) -> Outfit:
    """Clothes from numbers.

    Args:
        u: (N, ``NUM_OUTFIT_UNIFORMS``) in [0, 1).
    """
    top, bottom = _cloth(u[:, 0:4]), _cloth(u[:, 4:8])
    denim = hsv_to_rgb(0.58 + 0.05 * u[:, 4], 0.3 + 0.4 * u[:, 5], 0.2 + 0.5 * u[:, 6])
    bottom = torch.where(u[:, 8:9] < 0.3, denim, bottom)
    # The second colour of a pattern: lighter, darker, or another colour.
    shade = (0.35 + 1.3 * u[:, 9:10]) * top
    second = torch.where(u[:, 10:11] < 0.4, _cloth(u[:, 11:15]), shade).clamp(0, 1)
    kind = u[:, 15]
    period = 45 + 110 * u[:, 16:18]
    up = torch.where((kind > 0.5) & (kind < 0.75) | (kind > 0.88), 1.0, 0.0)
    across = torch.where(kind > 0.75, 1.0, 0.0)
    wave_top = 2 * math.pi / period * torch.stack([up, across], -1)
    plaid = torch.where(u[:, 18] < 0.12, 1.0, 0.0)[:, None]
    wave_bottom = 2 * math.pi / (40 + 60 * u[:, 19:21]) * plaid
    sleeve = torch.where(u[:, 21] < 0.5, 0.35 + 0.5 * u[:, 22], 1.5 + 0.5 * u[:, 22])
    sleeve = torch.where(u[:, 21] > 0.93, torch.zeros_like(sleeve), sleeve)
    trouser = torch.where(u[:, 23] < 0.35, 0.5 + 0.6 * u[:, 24], 1.75 + 0.25 * u[:, 24])
    hair_length = torch.where(u[:, 25] < 0.6, 20 + 50 * u[:, 26], 60 + 160 * u[:, 26])
    return Outfit(
        skin=_palette(u[:, 27], _SKINS),
        hair=_palette(u[:, 28], _HAIRS) * (0.8 + 0.4 * u[:, 29:30]),
        top=torch.stack([top, second], 1),
        bottom=torch.stack([bottom, 0.7 * bottom], 1),
        shoes=_cloth(u[:, 30:34]) * 0.9,
        sleeve=sleeve,
        trouser=trouser,
        hair_length=hair_length,
        wave=torch.stack([wave_top, wave_bottom], 1),
        phase=2 * math.pi * u[:, 34:38].reshape(-1, 2, 2),
    )


class Paint(NamedTuple):
    """Surface colours as functions of the 3D point X, per round cone.

    Where ``cut . (X, 1) > 0`` the colour is ``beyond``; elsewhere it is between ``colour`` and
    ``second`` by the product of the two waves ``sin(wave_i . (X, 1))``.

    Attributes:
        colour: (N, P, 3).
        second: (N, P, 3).
        beyond: (N, P, 3).
        wave: (N, P, 2, 4).
        cut: (N, P, 4).
    """

    colour: Tensor
    second: Tensor
    beyond: Tensor
    wave: Tensor
    cut: Tensor


_COLOURS = ("skin", "hair", "top", "top2", "bottom", "bottom2", "shoes")
_TOP = ("abdomen", "chest", "yoke", "r_upper_arm", "l_upper_arm", "r_forearm", "l_forearm")
_SLEEVED = {  # part -> (index of the garment, limbs before this one)
    f"{side}_{part}": place
    for side in "rl"
    for part, place in (
        ("upper_arm", (0, 0)), ("forearm", (0, 1)), ("thigh", (1, 0)), ("shank", (1, 1)),
    )
}  # fmt: skip


def _colour_names(part: str) -> tuple[str, str, str]:
    """Colour, second colour of the pattern, and colour beyond the cut."""
    if part in ("head", "hair"):
        return "hair", "hair", "skin"
    if part in ("neck", "nose") or part.endswith("hand"):
        return "skin", "skin", "skin"
    if part.endswith("foot"):
        return "shoes", "shoes", "shoes"
    if part in _TOP:
        return "top", "top2", "bottom" if part == "abdomen" else "skin"
    return "bottom", "bottom2", "skin"


_COLOUR_INDEX = tuple(tuple(map(_COLOURS.index, _colour_names(part))) for part in PARTS)
_GARMENT = tuple(0 if part in _TOP else 1 for part in PARTS)
_TRUNK = tuple(part in ("hips", "abdomen", "chest", "yoke") for part in PARTS)


def _plane(normal: Tensor, point: Tensor) -> Tensor:
    """(..., 4): ``normal . X + offset``, zero at ``point``."""
    return torch.cat([normal, -(normal * point).sum(-1, keepdim=True)], -1)


def paint(cones: Cones, outfit: Outfit) -> Paint:
    """Puts an outfit on figures."""
    start = cones.start
    length = (cones.end - start).norm(dim=-1, keepdim=True).clamp_min(1e-6)
    axis = (cones.end - start) / length
    device = start.device

    palette = torch.stack(
        [
            outfit.skin, outfit.hair, outfit.top[:, 0], outfit.top[:, 1],
            outfit.bottom[:, 0], outfit.bottom[:, 1], outfit.shoes,
        ],
        1,
    )  # fmt: skip
    index = constant(_COLOUR_INDEX, torch.long, device)
    garment = constant(_GARMENT, torch.long, device)

    # Where clothes end: along the limb, at the belt, at the hairline.
    cut = torch.zeros_like(axis[..., :1]).repeat(1, 1, 4)
    cut[..., 3] = -1e3  # nowhere
    limbs = constant(tuple(map(PARTS.index, _SLEEVED)), torch.long, device)
    covered = torch.stack([outfit.sleeve, outfit.trouser], -1).to(start)
    share = torch.stack([covered[:, i] - before for i, before in _SLEEVED.values()], 1)
    along = axis[:, limbs]
    cut[:, limbs] = _plane(along, start[:, limbs] + share[..., None] * length[:, limbs] * along)
    abdomen, head, hair = (PARTS.index(part) for part in ("abdomen", "head", "hair"))
    pelvis_up = cones.up[:, 0]
    cut[:, abdomen] = _plane(-pelvis_up, start[:, abdomen] + 25 * pelvis_up)
    # The hairline is a plane that leans back over the forehead.
    lean = _unit(cones.front[:, 2] - 0.45 * cones.up[:, 2])
    cut[:, head] = _plane(lean, start[:, head] + 12 * lean)
    cut[:, hair] = _plane(lean, start[:, head] + 48 * lean)

    # Solid patterns: along the body's height and across it.
    trunk = constant(_TRUNK, torch.bool, device)[:, None]
    up = torch.where(trunk, cones.up[:, 1:2], axis)
    across = torch.where(trunk, cones.left[:, 1:2], cones.left[:, 0:1])
    anchor = torch.where(trunk, start[:, PARTS.index("chest")][:, None], start)
    rate = outfit.wave[:, garment].to(start)  # (N, P, 2)
    phase = torch.where(rate > 0, outfit.phase[:, garment].to(start), math.pi / 2)
    directions = torch.stack([up, across], 2)
    wave = _plane(directions, anchor[:, :, None]) * rate[..., None]
    wave[..., 3] += phase
    colour = palette[:, index[:, 0]]
    patterned = (rate.sum(-1) > 0)[..., None]
    second = torch.where(patterned, palette[:, index[:, 1]], colour)
    return Paint(colour, second, palette[:, index[:, 2]], wave, cut)
