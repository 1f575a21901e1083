"""Human3.6M (Ionescu et al. 2014): names, cameras, known faults, and its data module.

The readers of the formats that people have are ``human36m_cdf`` (the official files),
``human36m_fetch``, ``human36m_videopose3d``, ``human36m_mmpose`` and ``human36m_lists``. What all
of them need to know is here, with its source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.filedata import FileDataModule
from datamodules.recordings import Camera, Recording
from zoo.errors import DataError
from zoo.protocols import Exclusion
from zoo.skeleton import H36M_17

__all__ = [
    "ACTIONS",
    "CAMERAS",
    "CAMERA_SIZES",
    "EXCLUSIONS",
    "FPS",
    "JOINTS_32_TO_17",
    "NOTED",
    "SUBJECTS",
    "TEST_SUBJECTS",
    "Human36MDataModule",
    "Metadata",
    "official_action",
    "read_metadata",
    "rotation_from_angles",
    "trials_of",
    "what_is_missing",
]

Float = NDArray[np.float64]

FPS = 50.0

SUBJECTS = ("S1", "S5", "S6", "S7", "S8", "S9", "S11")
"""Who has public 3D. ``metadata.xml`` lists another split than the papers use."""
TEST_SUBJECTS = ("S9", "S11")

CAMERAS = ("54138969", "55011271", "58860488", "60457274")
"""In the data set's order: camera 1 to 4."""
CAMERA_SIZES: dict[str, tuple[int, int]] = {
    "54138969": (1000, 1002), "55011271": (1000, 1000),
    "58860488": (1000, 1000), "60457274": (1000, 1002),
}  # fmt: skip
"""Width and height of the videos, px (the same in all public converters)."""

ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases",
    "Sitting", "SittingDown", "Smoking", "Photo", "Waiting", "Walking", "WalkDog", "WalkTogether",
)  # fmt: skip
"""Official actions 2 to 16, in their order; 1 is ``_ALL``, a calibration sequence, not read."""

_ALIASES = {
    "TakingPhoto": "Photo", "WalkingDog": "WalkDog", "WalkingTogether": "WalkTogether",
}  # fmt: skip
"""Only S1's files, and the official list, are spelt like the left side."""

JOINTS_32_TO_17 = (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27)
"""The 17 joints that move out of the files' 32 (the converters of mmpose and Martinez et al.)."""
assert len(JOINTS_32_TO_17) == len(H36M_17)

EXCLUSIONS = (Exclusion("S11", "Directions", 2, "54138969", "its video is missing"),)
"""Left out of every split, whatever the protocol."""

NOTED = (
    Exclusion("S9", "Greeting", 2, None, "3D is shifted against the video"),
    Exclusion("S9", "SittingDown", 2, None, "3D is shifted against the video"),
    Exclusion("S9", "Waiting", 1, None, "3D is shifted against the video"),
)
"""Sequences with a shift of the marker data; they harm absolute and image-based work, root-relative
3D hardly, and the papers' protocols keep them. ``--data.skip_shifted true`` leaves them out."""

_ORDERS: dict[tuple[str, str], tuple[str, str]] = {
    ("S11", "Phoning"): ("3", "2"),
    **{(s, "SittingDown"): ("", "1") for s in ("S5", "S7", "S8", "S9", "S10", "S11")},
    **{(s, "Photo"): ("", "1") for s in ("S5", "S6", "S7")},
}
"""Suffixes of the files that are trial 1 and 2, where they are not in the usual order."""


# ---- names --------------------------------------------------------------------------------------


def official_action(name: str) -> str | None:
    """The name in :data:`ACTIONS` of a file's or list's action; ``None`` if it is none."""
    name = _ALIASES.get(name, name)
    return name if name in ACTIONS else None


def split_name(stem: str) -> tuple[str, str] | None:
    """``Walking 1`` -> (``Walking``, ``1``), ``Photo`` -> (``Photo``, ````); ``None`` if unknown.

    The separator may be a space, an underscore or a hyphen.
    """
    match = re.fullmatch(r"([A-Za-z]+)(?:[ _-](\d+))?", stem)
    action = official_action(match.group(1)) if match else None
    return None if match is None or action is None else (action, match.group(2) or "")


def trials_of(subject: str, action: str, suffixes: Iterable[str]) -> dict[str, int]:
    """Suffix of a file's name -> trial (the official subaction, 1 or 2).

    Usually ``X 1`` is trial 1 and ``X`` trial 2; where other numbers occur, numbered files come
    before the one without and count upwards, but for the orders that ``metadata.xml`` lists
    otherwise.
    """
    found = set(suffixes)
    if (subject, action) in _ORDERS:
        return {suffix: i for i, suffix in enumerate(_ORDERS[subject, action], 1)}
    ordered = sorted(found, key=lambda s: (s == "", int(s or 0)))
    if len(ordered) == 1:  # its partner is missing: the usual place
        return {ordered[0]: 2 if ordered[0] in ("", "2") else 1}
    return {suffix: i for i, suffix in enumerate(ordered, 1)}


# ---- metadata.xml -------------------------------------------------------------------------------


def rotation_from_angles(angles: ArrayLike) -> Float:
    """(3, 3) world to camera from the file's three angles (rad): X(a) Y(b) Z(c)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return np.asarray(x @ y @ z)


class Metadata:
    """What ``metadata.xml`` says: cameras by subject and id, and trials by file name."""

    def __init__(self, cameras: dict[tuple[str, str], Camera], trials: dict[tuple[str, str], int]):
        self.cameras = cameras
        self.trials = trials


def find_metadata(root: Path) -> Path | None:
    """``metadata.xml`` in the folder, in one beside it, or in the official code's folder."""
    for path in (
        root / "metadata.xml",
        root / "Release-v1.1" / "metadata.xml",
        root / "Release-v1.2" / "metadata.xml",
        root.parent / "metadata.xml",
    ):
        if path.is_file():
            return path
    return None


def read_metadata(path: Path) -> Metadata:
    """Reads ``metadata.xml`` of the official code.

    ``w0`` holds 300 numbers: for camera c (0-3) and subject s (1-11) three angles and the centre
    in mm at 6 (11 c + s - 1); for camera c focal lengths, principal point, k1 k2 k3, p1 p2 at
    264 + 9 c. ``mapping`` is a table of file names by action, trial and subject.

    Raises:
        DataError: the file is no XML, or lacks one of the two.
    """
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable XML file ({error})") from error
    text = (tree.findtext("w0") or "").strip().strip("[]")
    try:
        numbers = np.array([float(word) for word in text.replace(",", " ").split()])
    except ValueError as error:
        raise DataError(f"{path}: <w0> holds something that is no number") from error
    if len(numbers) != 300 or not np.isfinite(numbers).all():
        raise DataError(f"{path}: <w0> holds {len(numbers)} numbers, expected 300 finite ones")
    cameras = {}
    for c, name in enumerate(CAMERAS):
        fx, fy, cx, cy, *bend = numbers[264 + 9 * c : 273 + 9 * c]
        for s in range(1, 12):
            place = numbers[6 * (11 * c + s - 1) :][:6]
            cameras[f"S{s}", name] = Camera(
                name,
                CAMERA_SIZES[name],
                np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
                np.array(bend[:3]),
                np.array(bend[3:]),
                rotation=rotation_from_angles(place[:3]),
                position=place[3:],
            )
    rows = [[(td.text or "").strip() for td in tr] for tr in tree.find("mapping") or ()]
    trials: dict[tuple[str, str], int] = {}
    for row in rows[1:]:
        for subject, name in zip(rows[0][2:], row[2:], strict=False):
            if name and row[1].isdigit() and split_name(name) is not None:
                trials[subject, name] = int(row[1])
    return Metadata(cameras, trials)


# ---- for `zoo data check` -----------------------------------------------------------------------

_GET = "register at vision.imar.ro/human3.6m and download"


def what_is_missing(
    recordings: Sequence[Recording], videos: bool = True, trials: bool = True
) -> list[str]:
    """One line each for subjects, sequences, cameras and pictures that the whole data set has."""
    lines = []
    have = {r.subject for r in recordings}
    for subject in SUBJECTS:
        if subject not in have:
            lines.append(
                f"{subject}: no poses; {_GET} Poses_D2_Positions_{subject}.tgz and "
                f"Poses_D3_Positions_mono_{subject}.tgz"
            )
    for subject in (s for s in SUBJECTS if s in have):
        mine = [r for r in recordings if r.subject == subject]
        gone = [a for a in ACTIONS if a not in {r.action for r in mine}]
        if gone:
            lines.append(f"{subject}: no {', '.join(gone)}; unpack its archives again")
        for action in ACTIONS:
            seen = sorted({r.trial for r in mine if r.action == action})
            if trials and len(seen) == 1:
                lines.append(f"{subject} {action}: trial {seen[0]} only; unpack its archives again")
        cameras = {r.camera.name for r in mine if r.camera is not None}
        if cameras and len(cameras) < 4:
            lost = ", ".join(c for c in CAMERAS if c not in cameras)
            lines.append(f"{subject}: no camera {lost}; unpack its archives again")
        if videos:
            bare = [r for r in mine if r.pictures is None or r.pictures.missing()]
            if bare:
                lines.append(
                    f"{subject}: {len(bare)} of {len(mine)} recordings without pictures; {_GET} "
                    f"Videos_{subject}.tgz (keypoint methods need none)"
                )
    return lines


# ---- the data module ----------------------------------------------------------------------------


class Human36MDataModule(FileDataModule):
    """Human3.6M from any of the formats that ``zoo data check`` knows.

    Args:
        root: folder of the files, or what ``zoo data prepare human36m`` has made of them.
        format: name of the reader; empty finds out.
        protocol: ``p1-10fps``, ``p1-2fps``, ``p2-tome``, ``p3-tome``, ``p2-wang`` or ``p3-wang``.
        val_subjects: held out of training, S8 by default; ``[]`` trains on all five as the papers.
        skip_shifted: leaves out the S9 sequences whose 3D is shifted against the video.
        kwargs: see :class:`~datamodules.filedata.FileDataModule`.
    """

    dataset: ClassVar[str] = "human36m"
    default_protocol: ClassVar[str] = "p1-10fps"
    default_val_subjects: ClassVar[tuple[str, ...]] = ("S8",)
    actions: ClassVar[tuple[str, ...]] = ACTIONS
    exclusions: ClassVar[tuple[Exclusion, ...]] = ()

    def __init__(
        self,
        root: str = "",
        format: str = "",
        protocol: str = "p1-10fps",
        val_subjects: list[str] | None = None,
        skip_shifted: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(root, format, protocol, val_subjects, **kwargs)  # type: ignore[arg-type]
        self.skip_shifted = skip_shifted
        if skip_shifted:
            self.exclusions = (*EXCLUSIONS, *NOTED)  # type: ignore[misc]
        else:
            self.exclusions = EXCLUSIONS  # type: ignore[misc]
