"""Named skeletons: joint names, kinematic trees, left/right pairs, and maps between them by name.

``H36M_17`` is the default everywhere. Nothing in the zoo addresses a joint of another layout by a
bare index: it asks for a map between two named skeletons (:func:`joint_map`).

Joint names are shared: the same name means the same place on the body, up to the habits of the
annotators. Names that are easily confused: ``thorax`` is Human3.6M's joint at the base of the neck,
between the shoulders; ``neck`` is the detectors' point in that region (OpenPose, Halpe-26,
MPI-INF-3DHP); ``upper_neck`` is the top of the neck (MPII, LSP); ``head_top`` is the top of the
head; ``head`` is a point inside it; ``nose`` is Human3.6M's "Neck/Nose" and the detectors' nose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "H36M_17",
    "SKELETONS",
    "JointMap",
    "Skeleton",
    "get_skeleton",
    "joint_map",
    "torso_bones",
]


@dataclass(frozen=True)
class Skeleton:
    """A named joint layout.

    Attributes:
        name: registry name, such as ``h36m_17``.
        joints: joint names in index order; left joints start with ``l_``, right ones with ``r_``.
        parents: index of each joint's parent, -1 for the root of the tree.
        root: name of the joint that root-relative poses are centred on. Layouts without it are
            centred on the middle of the hips.
        flip: index of the joint on the other side (itself for joints of the middle).
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    root: str = "pelvis"
    flip: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        swapped = {"l_": "r_", "r_": "l_"}
        other = [swapped.get(j[:2], j[:2]) + j[2:] for j in self.joints]
        object.__setattr__(self, "flip", tuple(self.joints.index(j) for j in other))

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Index of the joint called ``joint``."""
        return self.joints.index(joint)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) index pairs, in joint order."""
        return tuple((c, p) for c, p in enumerate(self.parents) if p >= 0)


def _skeleton(name: str, parents: Mapping[str, str | None]) -> Skeleton:
    """A skeleton from joint name -> name of its parent, in index order."""
    joints = tuple(parents)
    at = {joint: i for i, joint in enumerate(joints)}
    return Skeleton(name, joints, tuple(-1 if p is None else at[p] for p in parents.values()))


H36M_17 = Skeleton(
    "h36m_17",
    (
        "pelvis",
        "r_hip", "r_knee", "r_ankle",
        "l_hip", "l_knee", "l_ankle",
        "spine", "thorax", "nose", "head_top",
        "l_shoulder", "l_elbow", "l_wrist",
        "r_shoulder", "r_elbow", "r_wrist",
    ),
    (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15),
)  # fmt: skip

_ARMS_AND_LEGS: dict[str, str | None] = {
    f"{side}_{child}": f"{side}_{parent}"
    for side in "lr"
    for child, parent in (
        ("knee", "hip"), ("ankle", "knee"), ("elbow", "shoulder"), ("wrist", "elbow"),
    )
}  # fmt: skip


def _layout(name: str, joints: str, parents: Mapping[str, str | None]) -> Skeleton:
    """A skeleton from its joints in index order and the parents of all but knees ... wrists."""
    known = {**_ARMS_AND_LEGS, **parents}
    return _skeleton(name, {joint: known[joint] for joint in joints.split()})


# Human3.6M without "Neck/Nose" (Wang et al. 2019).
_H36M_16 = _layout(
    "h36m_16",
    "pelvis r_hip r_knee r_ankle l_hip l_knee l_ankle spine thorax head_top "
    "l_shoulder l_elbow l_wrist r_shoulder r_elbow r_wrist",
    {
        "pelvis": None, "r_hip": "pelvis", "l_hip": "pelvis", "spine": "pelvis",
        "thorax": "spine", "head_top": "thorax", "l_shoulder": "thorax", "r_shoulder": "thorax",
    },
)  # fmt: skip
_MPII_16 = _layout(
    "mpii_16",
    "r_ankle r_knee r_hip l_hip l_knee l_ankle pelvis thorax upper_neck head_top "
    "r_wrist r_elbow r_shoulder l_shoulder l_elbow l_wrist",
    {
        "pelvis": None, "r_hip": "pelvis", "l_hip": "pelvis", "thorax": "pelvis",
        "upper_neck": "thorax", "head_top": "upper_neck",
        "l_shoulder": "thorax", "r_shoulder": "thorax",
    },
)  # fmt: skip
_COCO_17 = _layout(
    "coco_17",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle",
    {
        "nose": None, "l_eye": "nose", "r_eye": "nose", "l_ear": "l_eye", "r_ear": "r_eye",
        "l_shoulder": "nose", "r_shoulder": "nose",
        "l_hip": "l_shoulder", "r_hip": "r_shoulder",
    },
)  # fmt: skip
_LSP = (
    "r_ankle r_knee r_hip l_hip l_knee l_ankle "
    "r_wrist r_elbow r_shoulder l_shoulder l_elbow l_wrist upper_neck head_top"
)
_LSP_PARENTS = {
    "upper_neck": None, "head_top": "upper_neck", "r_hip": "upper_neck", "l_hip": "upper_neck",
    "r_shoulder": "upper_neck", "l_shoulder": "upper_neck",
}  # fmt: skip
_LSP_14 = _layout("lsp_14", _LSP, _LSP_PARENTS)
# KTH Multiview Football II has LSP's order ("bottom head", "top head").
_KTH_14 = _layout("kth_14", _LSP, _LSP_PARENTS)
# The joints of HumanEva's own error function; its last one is the top of the head.
_HUMANEVA_15 = _layout(
    "humaneva_15",
    "pelvis thorax l_shoulder l_elbow l_wrist r_shoulder r_elbow r_wrist "
    "l_hip l_knee l_ankle r_hip r_knee r_ankle head_top",
    {
        "pelvis": None, "thorax": "pelvis", "head_top": "thorax", "l_hip": "pelvis",
        "r_hip": "pelvis", "l_shoulder": "thorax", "r_shoulder": "thorax",
    },
)  # fmt: skip
# The 14 joints of Lin et al. 2017; the paper does not fix their order.
_HUMANEVA_14 = _layout(
    "humaneva_14",
    "l_shoulder l_elbow l_wrist r_shoulder r_elbow r_wrist "
    "l_hip l_knee l_ankle r_hip r_knee r_ankle head_top neck",
    {
        "neck": None, "head_top": "neck", "l_hip": "neck", "r_hip": "neck",
        "l_shoulder": "neck", "r_shoulder": "neck",
    },
)  # fmt: skip
_MPI_INF_3DHP_17 = _layout(
    "mpi_inf_3dhp_17",
    "head_top neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist "
    "r_hip r_knee r_ankle l_hip l_knee l_ankle pelvis spine head",
    {
        "pelvis": None, "spine": "pelvis", "neck": "spine", "head": "neck", "head_top": "head",
        "r_hip": "pelvis", "l_hip": "pelvis", "r_shoulder": "neck", "l_shoulder": "neck",
    },
)  # fmt: skip
_FEET = {f"{s}_{part}": f"{s}_ankle" for s in "lr" for part in ("big_toe", "small_toe", "heel")}
_OPENPOSE_25 = _layout(
    "openpose_25",
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist pelvis "
    "r_hip r_knee r_ankle l_hip l_knee l_ankle r_eye l_eye r_ear l_ear "
    "l_big_toe l_small_toe l_heel r_big_toe r_small_toe r_heel",
    {
        "pelvis": None, "neck": "pelvis", "nose": "neck", "r_eye": "nose", "l_eye": "nose",
        "r_ear": "r_eye", "l_ear": "l_eye", "r_shoulder": "neck", "l_shoulder": "neck",
        "r_hip": "pelvis", "l_hip": "pelvis", **_FEET,
    },
)  # fmt: skip
# Its joint "Head" is the top of the head, "Hip" the middle of the hips.
_HALPE_26 = _layout(
    "halpe_26",
    "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist "
    "l_hip r_hip l_knee r_knee l_ankle r_ankle head_top neck pelvis "
    "l_big_toe r_big_toe l_small_toe r_small_toe l_heel r_heel",
    {
        "pelvis": None, "neck": "pelvis", "nose": "neck", "head_top": "neck", "l_eye": "nose",
        "r_eye": "nose", "l_ear": "l_eye", "r_ear": "r_eye", "l_shoulder": "neck",
        "r_shoulder": "neck", "l_hip": "pelvis", "r_hip": "pelvis", **_FEET,
    },
)  # fmt: skip

SKELETONS: dict[str, Skeleton] = {
    skeleton.name: skeleton
    for skeleton in (
        H36M_17, _H36M_16, _MPII_16, _COCO_17, _LSP_14, _HUMANEVA_15, _HUMANEVA_14, _KTH_14,
        _MPI_INF_3DHP_17, _OPENPOSE_25, _HALPE_26,
    )
}  # fmt: skip


def get_skeleton(name: str) -> Skeleton:
    """The skeleton called ``name``.

    Raises:
        zoo.errors.UsageError: no skeleton has that name.
    """
    from zoo.errors import UsageError, suggest

    if name not in SKELETONS:
        raise UsageError(suggest(name, SKELETONS, "skeleton"))
    return SKELETONS[name]


_TORSO = {
    "pelvis", "spine", "thorax", "neck", "upper_neck", "l_hip", "r_hip", "l_shoulder", "r_shoulder",
}  # fmt: skip


def torso_bones(skeleton: Skeleton) -> tuple[tuple[int, int], ...]:
    """The (child, parent) bones of the trunk, hips and shoulders: rigid, so a measure of size.

    For ``h36m_17``: 0-7, 7-8, 0-1, 0-4, 8-11 and 8-14.
    """
    joints = skeleton.joints
    return tuple((c, p) for c, p in skeleton.bones if joints[c] in _TORSO and joints[p] in _TORSO)


# ---- maps between skeletons -------------------------------------------------------------------

# How to make a joint that a source lacks: the first alternative whose joints can all be had (each
# directly, or by its own recipe), as their mean. The recipes for COCO and Halpe-26 are those in
# common use. They are approximations of some centimetres: the middle of the shoulders is below
# Human3.6M's thorax, the eyes are about 12 cm below the top of the head.
_SHOULDERS = ("l_shoulder", "r_shoulder")
_RECIPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "pelvis": (("l_hip", "r_hip"),),
    "thorax": (("neck",), _SHOULDERS, ("upper_neck",)),
    "neck": (("thorax",), _SHOULDERS, ("upper_neck",)),
    "upper_neck": (("neck",), ("thorax",)),
    "spine": (("pelvis", "thorax"),),
    "nose": (("head",),),
    "head": (("nose",),),
    "head_top": (("l_eye", "r_eye"), ("l_ear", "r_ear")),
}

Weights = dict[str, float]
ArrayT = TypeVar("ArrayT", "NDArray[Any]", "Tensor")


def _resolve(joint: str, source: Skeleton, open_joints: frozenset[str]) -> Weights | None:
    """Weights over the source's joints that give ``joint``, or ``None``."""
    if joint in source.joints:
        return {joint: 1.0}
    if joint in open_joints:  # "thorax from neck" and "neck from thorax" must not chase each other
        return None
    for alternative in _RECIPES.get(joint, ()):
        parts = [_resolve(part, source, open_joints | {joint}) for part in alternative]
        if all(part is not None for part in parts):
            total: Weights = {}
            for part in cast("list[Weights]", parts):
                for name, weight in part.items():
                    total[name] = total.get(name, 0.0) + weight / len(parts)
            return total
    return None


@dataclass(frozen=True, eq=False)
class JointMap:
    """Converts poses from one skeleton to another; make one with :func:`joint_map`.

    Attributes:
        source: the skeleton of what goes in.
        target: the skeleton of what comes out.
        recipes: for each target joint the weights over source joints whose sum it is; empty for a
            joint that the source has nothing for.
    """

    source: Skeleton
    target: Skeleton
    recipes: Mapping[str, Weights]

    @property
    def missing(self) -> tuple[str, ...]:
        """Target joints that the source has nothing for; they are never valid."""
        return tuple(joint for joint in self.target.joints if not self.recipes[joint])

    @property
    def derived(self) -> dict[str, Weights]:
        """Target joints that are not joints of the source but made from them."""
        return {j: w for j, w in self.recipes.items() if w and j not in w}

    def _tables(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Source indices and weights, both (J_dst, K), padded with weight 0."""
        width = max((len(w) for w in self.recipes.values()), default=0) or 1
        index = np.zeros((len(self.target), width), dtype=np.int64)
        weight = np.zeros((len(self.target), width))
        for row, joint in enumerate(self.target.joints):
            for column, (name, value) in enumerate(self.recipes[joint].items()):
                index[row, column] = self.source.index(name)
                weight[row, column] = value
        return index, weight

    def __call__(self, joints: ArrayT, valid: ArrayT | None = None) -> tuple[ArrayT, ArrayT]:
        """Maps poses, of numpy or torch.

        Args:
            joints: (..., J_src, D).
            valid: (..., J_src), bool validity or scores in [0, 1] (0 = not given); ``None`` = all
                valid. A joint that is not finite is never valid.

        Returns:
            joints: (..., J_dst, D), 0 where not valid.
            valid: (..., J_dst) of the same kind as ``valid`` (bool for ``None``). A derived joint
                is valid only if all its sources are; its score is their smallest.

        Raises:
            zoo.errors.UsageError: the number of joints is not the source's.
        """
        from zoo.errors import UsageError

        if joints.ndim < 2 or joints.shape[-2] != len(self.source):
            raise UsageError(
                f"{self.source.name} has {len(self.source)} joints, so poses must be "
                f"(..., {len(self.source)}, D), not {tuple(joints.shape)}"
            )
        if valid is not None and valid.shape != joints.shape[:-1]:
            raise UsageError(
                f"validity must be {tuple(joints.shape[:-1])} for these poses, "
                f"not {tuple(valid.shape)}"
            )
        if isinstance(joints, np.ndarray):
            return cast(Any, self._numpy(joints, cast(Any, valid)))
        return cast(Any, self._torch(cast(Any, joints), cast(Any, valid)))

    # Gathered and summed, not multiplied by a matrix: direct joints stay exact in any precision
    # mode, and nothing but a joint's own sources can touch it.

    def _numpy(
        self, joints: NDArray[Any], valid: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        index, weight = self._tables()
        if not np.issubdtype(joints.dtype, np.floating):
            joints = joints.astype(np.float64)
        finite = np.isfinite(joints).all(-1)
        scores = finite
        if valid is not None:
            scores = np.where(finite & (valid > 0), valid, np.zeros_like(valid))
        clean = np.where((scores > 0)[..., None], joints, np.zeros_like(joints))
        mapped = (clean[..., index, :] * weight[..., None].astype(joints.dtype)).sum(-2)
        used = weight > 0
        ones = np.ones_like(scores[..., index])
        out = np.where(used, scores[..., index], ones).min(-1) * used.any(-1)
        out = out.astype(scores.dtype)
        return np.where((out > 0)[..., None], mapped, np.zeros_like(mapped)), out

    def _torch(self, joints: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        import torch

        index_np, weight_np = self._tables()
        index = torch.from_numpy(index_np).to(joints.device)
        if not joints.is_floating_point():
            joints = joints.to(torch.get_default_dtype())
        weight = torch.from_numpy(weight_np).to(joints.device, joints.dtype)
        finite = joints.isfinite().all(-1)
        scores = finite
        if valid is not None:
            scores = torch.where(finite & (valid > 0), valid, torch.zeros_like(valid))
        clean = torch.where((scores > 0).unsqueeze(-1), joints, torch.zeros_like(joints))
        mapped = (clean[..., index, :] * weight.unsqueeze(-1)).sum(-2)
        used = weight > 0
        picked = scores[..., index]
        out = torch.where(used, picked, torch.ones_like(picked)).amin(-1) * used.any(-1)
        out = out.to(scores.dtype)
        return torch.where((out > 0).unsqueeze(-1), mapped, torch.zeros_like(mapped)), out


@cache
def _joint_map(source: Skeleton, target: Skeleton) -> JointMap:
    recipes = {j: _resolve(j, source, frozenset()) or {} for j in target.joints}
    return JointMap(source, target, recipes)


def joint_map(source: Skeleton | str, target: Skeleton | str = H36M_17) -> JointMap:
    """The map between two skeletons by joint name, with recipes for joints the source lacks.

    Into ``h36m_17`` from ``coco_17``: pelvis, thorax and spine are the middle of the hips, of the
    shoulders, and of these two; head_top is the middle of the eyes, the nose the nose. From
    ``mpii_16`` and ``lsp_14`` the nose is missing. From ``halpe_26`` and ``openpose_25`` the thorax
    is their neck.

    Args:
        source: a skeleton or its name.
        target: a skeleton or its name.

    Raises:
        zoo.errors.UsageError: no skeleton has that name.
    """
    source = get_skeleton(source) if isinstance(source, str) else source
    target = get_skeleton(target) if isinstance(target, str) else target
    return _joint_map(source, target)
