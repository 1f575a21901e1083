"""MPII Human Pose, 2D only: the official ``mpii_human_pose_v1_u12_1.mat`` or the common JSON lists.

Facts (Andriluka et al., CVPR 2014; the data set's own readme):

* ``RELEASE.annolist(i)`` is an image: ``image.name`` and ``annorect(r)``, one a person, with
  ``scale`` (of 200 px), ``objpos``, head box ``x1 y1 x2 y2`` and ``annopoints.point(k)`` with
  ``x``, ``y``, ``id`` (joint 0-15) and ``is_visible`` (a number, a character, or empty). Any field
  can be missing or empty; ``img_train(i)`` says which images have poses. ``vididx`` is the video.
* Pixels count from 1 in both kinds of files, so 1 is taken off here. (0, 0) and (-1, -1) are no
  joints.
* The JSON lists (``train.json``, ``valid.json``) hold ``image``, ``center``, ``scale``, ``joints``
  (16 x 2) and ``joints_vis`` (16); a joint with coordinates and visibility 0 is hidden.

Joint order: ``mpii_16``. The test images have no public poses, so ``test`` is the validation part.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.matlab import load_mat, number, struct_rows, text
from datamodules.readers import Fault, stop
from datamodules.recordings import ImageFiles, Recording
from zoo.errors import DataError

__all__ = ["MAT_NAME", "MpiiDataModule", "Person", "identify", "missing", "parse_json"]
__all__ += ["find_annotation", "parse_mat", "read", "recordings_of", "splits_of", "video_held_out"]

Split = Literal["train", "val", "test"]

MAT_NAME = "mpii_human_pose_v1_u12_1.mat"
NUM_JOINTS = 16
FIRST_PIXEL = 1
"""MATLAB's centre of the first pixel; the zoo's is 0."""
SCALE_PX = 200
"""``scale`` is the person's height over this."""
VALIDATION_SHARE = 10
"""One video in so many is held out where the files name no validation part."""


@dataclass(frozen=True, eq=False)
class Person:
    """One annotated person of an image.

    Attributes:
        image: name of the file.
        joints: (16, 2) px, pixel centres at integers from 0, NaN = not annotated.
        occluded: (16,) bool.
        scale: height of the person in px over 200; NaN where it is not given.
        centre: (2,) px, rough middle of the person; NaN where it is not given.
        head_box: (4,) px, x1 y1 x2 y2; NaN where it is not given.
        video: index of the video that the image is from; the image's own where it is not given.
    """

    image: str
    joints: NDArray[np.float64]
    occluded: NDArray[np.bool_]
    scale: float
    centre: NDArray[np.float64]
    head_box: NDArray[np.float64]
    video: int

    @property
    def held_out(self) -> bool:
        """Whether the person belongs to the validation part, by the video."""
        return video_held_out(self.video)


def video_held_out(video: int) -> bool:
    """Whether the people of a video are for validation."""
    return zlib.crc32(str(video).encode()) % VALIDATION_SHARE == 0


def _field(row: np.void, name: str) -> Any:
    """A field of a struct, ``None`` if the struct has none of that name."""
    return row[name] if name in (row.dtype.names or ()) else None


def _number(row: np.void, name: str) -> float:
    value = number(_field(row, name))
    return np.nan if value is None else value


def parse_mat(path: Path) -> list[Person]:
    """The annotated people of the official file, in its order.

    Raises:
        zoo.errors.DataError: not that file, or a joint that cannot be.
    """
    release = struct_rows(load_mat(path, ["RELEASE"])["RELEASE"])
    if len(release) != 1 or not {"annolist", "img_train"} <= set(release[0].dtype.names or ()):
        raise DataError(f"{path}: RELEASE has no annolist and img_train; expected {MAT_NAME}")
    images = struct_rows(release[0]["annolist"])
    in_train = np.asarray(release[0]["img_train"]).reshape(-1)
    if len(images) != len(in_train):
        raise DataError(
            f"{path}: annolist has {len(images)} images, img_train {len(in_train)}: it is damaged"
        )
    people: list[Person] = []
    for index, image in enumerate(images):
        name = "".join(text(_field(row, "name")) for row in struct_rows(_field(image, "image")))
        if not in_train[index]:
            continue
        if not name:
            raise DataError(f"{path}: annolist({index + 1}) names no image")
        video = number(_field(image, "vididx"))
        for rect, row in enumerate(struct_rows(_field(image, "annorect"))):
            where = f"{path}: annolist({index + 1}).annorect({rect + 1})"
            joints, occluded = _points(where, row)
            if np.isnan(joints).all():
                continue
            position = struct_rows(_field(row, "objpos"))
            centre = [_number(position[0], k) for k in "xy"] if position else [np.nan, np.nan]
            head = [_number(row, k) for k in ("x1", "y1", "x2", "y2")]
            people.append(
                Person(
                    name,
                    joints,
                    occluded,
                    _number(row, "scale"),
                    np.array(centre) - FIRST_PIXEL,
                    np.array(head) - FIRST_PIXEL,
                    -index - 1 if video is None else int(video),
                )
            )
    if not people:
        raise DataError(f"{path}: no annotated person in it")
    return people


def _points(where: str, row: np.void) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Joints and whether they are hidden, of one ``annorect``."""
    joints = np.full((NUM_JOINTS, 2), np.nan)
    occluded = np.zeros(NUM_JOINTS, dtype=bool)
    for points in struct_rows(_field(row, "annopoints")):
        for point in struct_rows(_field(points, "point")):
            joint, x, y = (_number(point, k) for k in ("id", "x", "y"))
            if not (joint == joint and 0 <= joint < NUM_JOINTS and joint == int(joint)):
                raise DataError(f"{where}: joint id {joint:g}; MPII's are 0 to {NUM_JOINTS - 1}")
            if not np.isnan(joints[int(joint)]).all():
                raise DataError(f"{where}: joint id {joint:g} is there twice")
            if _absent(x, y):
                continue
            joints[int(joint)] = x - FIRST_PIXEL, y - FIRST_PIXEL
            occluded[int(joint)] = number(_field(point, "is_visible")) == 0
    return joints, occluded


def _absent(x: float, y: float) -> bool:
    """The ways in which these files say that there is no joint."""
    return not (np.isfinite(x) and np.isfinite(y)) or (x, y) in ((0.0, 0.0), (-1.0, -1.0))


def parse_json(path: Path) -> list[Person]:
    """The people of a common JSON list.

    Raises:
        zoo.errors.DataError: not such a list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file, or cut off ({error})") from error
    except RecursionError as error:
        raise DataError(f"{path}: not a list of people") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of people with image, joints and joints_vis")
    return [_json_person(f"{path}: entry {i}", entry) for i, entry in enumerate(entries)]


def _json_person(where: str, entry: Any) -> Person:
    if not isinstance(entry, dict) or not {"image", "joints", "joints_vis"} <= entry.keys():
        raise DataError(f"{where}: expected image, joints and joints_vis")
    image = entry["image"]
    if not isinstance(image, str) or not image:
        raise DataError(f"{where}: image must be the name of a file, not {image!r}")
    joints = _array(where, "joints", entry["joints"], (NUM_JOINTS, 2))
    visible = _array(where, "joints_vis", entry["joints_vis"], (NUM_JOINTS,))
    gone = np.array([_absent(x, y) for x, y in joints])
    centre = entry.get("center", [np.nan, np.nan])
    scale = entry.get("scale", np.nan)
    return Person(
        image,
        np.where(gone[:, None], np.nan, joints - FIRST_PIXEL),
        (visible == 0) & ~gone,
        float(_array(where, "scale", scale, ())),
        _array(where, "center", centre, (2,)) - FIRST_PIXEL,
        np.full(4, np.nan),
        zlib.crc32(image.encode()),
    )


def _array(where: str, name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name} must be numbers") from error
    if array.shape != shape:
        raise DataError(f"{where}: {name} is {array.shape}, expected {shape} of numbers")
    return array


# ---- reader -----------------------------------------------------------------------------------

_ANNOTATIONS = ("", "annot", "annotations")
_HOW = "http://human-pose.mpi-inf.mpg.de"


def find_annotation(root: Path, name: str) -> Path | None:
    """An annotation file in one of the folders where people keep it."""
    for folder in _ANNOTATIONS:
        if (root / folder / name).is_file():
            return root / folder / name
    return None


def recordings_of(root: Path, people: Sequence[Person], split: Split, where: Path) -> Recording:
    """People as one recording of single pictures, one row a person."""
    return Recording(
        subject="MPII",
        skeleton="mpii_16",
        joints_2d=np.stack([p.joints for p in people]),
        occluded=np.stack([p.occluded for p in people]),
        pictures=ImageFiles(str(root / "images"), tuple(p.image for p in people)),
        split=split,
        where=str(where),
    )


def splits_of(root: Path, parts: Mapping[str, Sequence[Person]], where: Path) -> list[Recording]:
    """Training, validation, and the validation part again as what can be tested."""
    found = [recordings_of(root, parts["train"], "train", where)] if parts["train"] else []
    if parts["val"]:
        found += [recordings_of(root, parts["val"], s, where) for s in ("val", "test")]
    return found


def identify(root: Path) -> bool:
    """Whether the official annotation file is there."""
    return find_annotation(root, MAT_NAME) is not None


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All annotated people; see :mod:`datamodules.readers`."""
    path = find_annotation(root, MAT_NAME) or root / MAT_NAME
    try:
        people = parse_mat(path)
    except DataError as error:
        fault(error)
        return []
    parts = {
        "train": [p for p in people if not p.held_out],
        "val": [p for p in people if p.held_out],
    }
    return splits_of(root, parts, path)


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks of MPII; see :mod:`datamodules.readers`."""
    lines = []
    images = sum(1 for _ in (root / "images").glob("*.jpg")) if (root / "images").is_dir() else 0
    named = {n for r in recordings if isinstance(r.pictures, ImageFiles) for n in r.pictures.names}
    if images < len(named):
        lines.append(
            f"images/: {images} of {len(named)} annotated images; the archive is at {_HOW}"
        )
    return lines


class MpiiDataModule(FileDataModule):
    """MPII Human Pose: 2D only, people in single pictures; see the base class for the arguments."""

    dataset = "mpii"
