"""Bodies for the synthetic people, and motion re-targeted to them.

Lengths are mm; limb i ends at joint i + 1 of ``h36m_17``. :func:`bodies` lists the people of a
split, :func:`retarget` gives a recorded motion to a body with other limb lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.splits import Split
from zoo.errors import UsageError, suggest
from zoo.skeleton import H36M_17

__all__ = [
    "LEG_LIMBS",
    "LIMB_NAMES",
    "MEAN_LIMB_LENGTHS",
    "PARENTS",
    "SUBJECTS",
    "Body",
    "bodies",
    "retarget",
]

Float = NDArray[np.float32]
Int = NDArray[np.int64]

PARENTS: Int = np.array(H36M_17.parents, dtype=np.int64)
"""(17,): parent of each joint, -1 for the pelvis."""

LIMB_NAMES = H36M_17.joints[1:]
"""The 16 limbs, each named by the joint at its far end; limb i belongs to joint i + 1."""

MEAN_LIMB_LENGTHS: Float = np.array(
    [120, 440, 435, 120, 440, 435, 230, 255, 125, 110, 165, 280, 255, 165, 280, 255],
    dtype=np.float32,
)
"""(16,) mm: limb lengths of the mean body.

Between the published proportions of the Human3.6M skeleton (hips 133, thighs and shins about 450,
spine 233 and 257, neck 121, head 115, shoulders 151, upper arm 279, forearm 252) and those of
motion capture (hips 92, shoulders 200), nearer to the former. Its head top is 1.67 m above the
floor at most: a person about 1.7 m tall.
"""

SUBJECTS: dict[Split, tuple[int, ...]] = {"train": (1, 5, 6, 7, 8), "val": (2,), "test": (9, 11)}
"""Subject numbers of each split: Human3.6M's for training and test, another for validation."""

_ANKLES = (H36M_17.index("r_ankle"), H36M_17.index("l_ankle"))
LEG_LIMBS = [LIMB_NAMES.index(n) for n in ("r_knee", "r_ankle", "l_knee", "l_ankle")]
"""Indices of thighs and shins among the limbs."""
_SUPPORT_MM = 30.0


@dataclass(frozen=True)
class Body:
    """One body: bone lengths, girth and clothes.

    Attributes:
        subject: subject number the body stands under.
        index: number of the body among its subject's.
        limb_lengths: 16 lengths in mm in the order of ``LIMB_NAMES``, left equal to right.
        girth_limb: factor on the radii of arms and legs, about 1.
        girth_torso: factor on the radii of the trunk, about 1.
        girth_head: factor on the radius of the head, about 1.
        clothing_seed: seeds colours, textures and the cut of the clothes.
    """

    subject: int
    index: int
    limb_lengths: tuple[float, ...]
    girth_limb: float
    girth_torso: float
    girth_head: float
    clothing_seed: int

    @property
    def lengths(self) -> Float:
        """``limb_lengths`` as a (16,) float32 array, mm."""
        return np.array(self.limb_lengths, dtype=np.float32)

    @property
    def stature(self) -> float:
        """Height of the head top over the floor when standing straight, mm."""
        by_name = dict(zip(LIMB_NAMES, self.limb_lengths, strict=True))
        up = ("r_knee", "r_ankle", "spine", "thorax", "nose", "head_top")
        return 80.0 + sum(by_name[name] for name in up)


def bodies(who: Split | int, seed: int = 0, per_subject: int = 8) -> list[Body]:
    """The bodies of a split or of one subject; the same for the same arguments.

    A body's lengths are the mean ones times its stature (at most 8 % off), times a factor of the
    segment (legs, trunk, arms; at most 2 %), times one of the limb (at most 1.5 %).

    Args:
        who: ``train``, ``val`` or ``test``, or a subject number.
        seed: another seed gives other people.
        per_subject: bodies that one subject number stands for.

    Returns:
        ``per_subject`` bodies a subject; body i of a subject does not depend on ``per_subject``.

    Raises:
        zoo.errors.UsageError: no such split or subject.
    """
    if isinstance(who, str):
        if who not in SUBJECTS:
            raise UsageError(suggest(who, SUBJECTS, "split"))
        subjects = SUBJECTS[who]
    else:
        subjects = (int(who),)
        known = sorted(s for group in SUBJECTS.values() for s in group)
        if subjects[0] not in known:
            raise UsageError(f"no subject {who}; known: {', '.join(map(str, known))}")
    return [_body(subject, i, seed) for subject in subjects for i in range(per_subject)]


def _body(subject: int, index: int, seed: int) -> Body:
    rng = np.random.default_rng((seed, subject, index, 0xB0D7))
    stature = rng.uniform(-0.08, 0.08)
    segment = {s: rng.uniform(-0.02, 0.02) for s in ("leg", "trunk", "arm")}
    segments = {"hip": "leg", "knee": "leg", "ankle": "leg",
                "elbow": "arm", "wrist": "arm"}  # fmt: skip
    limb: dict[str, float] = {}
    lengths = []
    for name, mean in zip(LIMB_NAMES, MEAN_LIMB_LENGTHS, strict=True):
        kind = name[2:] if name[:2] in ("l_", "r_") else name
        if kind not in limb:
            of_segment = segment[segments.get(kind, "trunk")]
            limb[kind] = (1 + stature) * (1 + of_segment) * (1 + rng.uniform(-0.015, 0.015))
        lengths.append(float(np.float32(mean * limb[kind])))
    build = rng.normal(0.0, 0.10)
    girths = [float(np.clip(1 + build * share + rng.normal(0.0, 0.04), 0.75, 1.35))
              for share in (1.0, 1.2)]  # fmt: skip
    return Body(
        subject=subject,
        index=index,
        limb_lengths=tuple(lengths),
        girth_limb=girths[0],
        girth_torso=girths[1],
        girth_head=float(np.clip(1 + 0.3 * stature + rng.normal(0.0, 0.04), 0.85, 1.15)),
        clothing_seed=int(rng.integers(2**31)),
    )


def _ancestry(parents: NDArray[np.integer]) -> Float:
    """(J, J-1): which limbs lie between each joint and the root."""
    chain = np.zeros((len(parents), len(parents) - 1), dtype=np.float32)
    for joint in range(1, len(parents)):
        chain[joint] = chain[parents[joint]]
        chain[joint, joint - 1] = 1
    return chain


def retarget(positions: ArrayLike, parents: ArrayLike, limb_lengths: ArrayLike) -> Float:
    """The same motion on a body with other limb lengths.

    Every limb keeps its direction and gets the body's length. The path through the room is scaled
    by the ratio of leg lengths, so steps suit the legs. The body then stands on its feet: each
    ankle belongs at its recorded place times that ratio, and the pelvis is set by the lower ankle
    (both, softly, when they are level), so a foot that rests in the recording rests on the new
    body. Every frame is treated alone: clips that overlap agree.

    Args:
        positions: (..., 17, 3) mm, world frame, z up, floor at 0.
        parents: (17,) kinematic tree in which parents come before children, -1 for the root.
        limb_lengths: (16,) or broadcastable to (..., 16) mm, limb i ends at joint i + 1.

    Returns:
        (..., 17, 3) float32 mm, world frame.
    """
    source = np.asarray(positions, dtype=np.float32)
    tree = np.asarray(parents, dtype=np.int64)
    lengths = np.asarray(limb_lengths, dtype=np.float32)
    limbs = source[..., 1:, :] - source[..., tree[1:], :]
    norms = np.linalg.norm(limbs, axis=-1)
    target = np.broadcast_to(lengths, norms.shape)
    ratio = target[..., LEG_LIMBS].sum(-1) / np.maximum(norms[..., LEG_LIMBS].sum(-1), 1e-6)
    limbs = limbs * (target / np.maximum(norms, 1e-6))[..., None]
    moved = _ancestry(tree) @ limbs  # (..., 17, 3), pelvis at the origin

    feet = source[..., _ANKLES, :]  # (..., 2, 3)
    height = feet[..., 2] - feet[..., 2].min(-1, keepdims=True)
    weight = np.exp(-height / _SUPPORT_MM)
    weight /= weight.sum(-1, keepdims=True)
    places = feet * ratio[..., None, None] - moved[..., _ANKLES, :]
    root = (weight[..., None] * places).sum(-2, keepdims=True)
    return np.asarray(moved + root, dtype=np.float32)
