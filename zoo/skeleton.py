"""Named skeletons: joint names, kinematic trees, left/right pairs, and maps between them by name.

``H36M_17`` is the default everywhere. Nothing in the zoo addresses a joint of another layout by a
bare index: it asks for a map between two named skeletons.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["H36M_17", "SKELETONS", "Skeleton", "get_skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """A named joint layout.

    Attributes:
        name: registry name, such as ``h36m_17``.
        joints: joint names in index order; left joints start with ``l_``, right ones with ``r_``.
        parents: index of each joint's parent, -1 for the root.
        root: name of the joint that root-relative poses are centred on.
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

SKELETONS: dict[str, Skeleton] = {H36M_17.name: H36M_17}


def get_skeleton(name: str) -> Skeleton:
    """The skeleton called ``name``.

    Raises:
        zoo.errors.UsageError: no skeleton has that name.
    """
    from zoo.errors import UsageError, suggest

    if name not in SKELETONS:
        raise UsageError(suggest(name, SKELETONS, "skeleton"))
    return SKELETONS[name]
