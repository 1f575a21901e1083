"""Reads the 2D keypoint files of detectors and annotators.

=================  =================================================================================
COCO results       ``[{image_id, category_id, keypoints: [x, y, score, ...], score}, ...]``
COCO annotations   ``{images: [...], annotations: [{image_id, keypoints: [x, y, v, ...]}, ...]}``
AlphaPose          as COCO results, ``image_id`` a file name; 17, 26, 133 or 136 joints
OpenPose           one file a frame: ``{people: [{pose_keypoints_2d: [x, y, score, ...]}, ...]}``
the zoo's poses    files of :func:`zoo.pose.save_poses` whose poses have ``joints_2d``
=================  =================================================================================

The format is told by the structure, the skeleton by the format and the number of joints.
Coordinates are px of the picture, taken as the file has them (half a pixel between conventions).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError
from zoo.skeleton import get_skeleton

__all__ = ["Keypoints", "is_keypoint_source", "read_keypoints"]

Array = npt.NDArray[np.float32]

_PERSON = 1
"""COCO's category of people."""
_OF_COUNT = {17: "coco_17", 26: "halpe_26", 25: "openpose_25", 16: "mpii_16", 14: "lsp_14"}
_LEADING = {133: 17, 136: 26, 135: 25}
"""Whole-body layouts begin with a layout of the body: COCO-WholeBody, Halpe-136, OpenPose-135."""
_OPENPOSE_18 = (
    "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist r_hip r_knee r_ankle "
    "l_hip l_knee l_ankle r_eye l_eye r_ear l_ear"
).split()
"""OpenPose's old COCO model: all of its joints are joints of ``openpose_25``."""


@dataclass(frozen=True, eq=False)
class Keypoints:
    """One person's 2D joints in one picture.

    Attributes:
        joints_2d: (J, 2) float32 px; NaN where not given.
        scores: (J,) float32 in [0, 1]; 0 where not given.
        skeleton: name of the joint layout.
        image: the picture's file name as the file states it, or its number; ``""``: not stated.
        person: index of the person in the picture, in the file's order.
        frame: index of the picture among the file's, in their order.
        box: (4,) px, x0 y0 x1 y1, or None.
        score: confidence of the whole person, or None.
    """

    joints_2d: Array
    scores: Array
    skeleton: str
    image: str = ""
    person: int = 0
    frame: int = 0
    box: Array | None = None
    score: float | None = None


def is_keypoint_source(path: str | Path) -> bool:
    """Whether a path is a keypoint file, or a folder with keypoint files and no pictures."""
    path = Path(path)
    if not path.is_dir():
        return path.suffix.lower() == ".json"
    from zoo.predict import IMAGE_SUFFIXES

    names = [p for p in path.iterdir() if p.is_file()]
    pictures = any(p.suffix.lower() in IMAGE_SUFFIXES for p in names)
    return not pictures and any(p.suffix.lower() == ".json" for p in names)


def read_keypoints(path: str | Path, skeleton: str | None = None) -> list[Keypoints]:
    """Reads a keypoint file, or a folder of them (OpenPose's one file a frame).

    People without a single joint are kept: what to do with them is the reader's choice.

    Args:
        path: the file or folder; a folder's files are frames in natural order.
        skeleton: joint layout, where the number of joints does not tell it or tells it wrongly.

    Returns:
        The people, picture after picture in the order in which the file first names them.

    Raises:
        zoo.errors.DataError: the path is missing, not JSON, or in none of the formats; the line
            names the file and the record.
        zoo.errors.UsageError: no such skeleton.
    """
    path = Path(path)
    if skeleton is not None:
        get_skeleton(skeleton)
    if not path.is_dir():
        return _numbered(_parse(path, skeleton))
    from zoo.predict import natural_key

    files = [p for p in path.iterdir() if p.suffix.lower() == ".json" and p.is_file()]
    if not files:
        raise DataError(f"the folder {path} has no keypoint files (.json)")
    files.sort(key=lambda p: (natural_key(p), p.name))
    # A frame without people keeps its number: an OpenPose file is a frame even when it is empty.
    parts = [_parse(file, skeleton) for file in files]
    people: list[Keypoints] = []
    first = 0
    for part in parts:
        numbered = _numbered(part)
        people += [replace(p, frame=p.frame + first) for p in numbered]
        first += 1 + max((p.frame for p in numbered), default=0)
    return people


def _numbered(people: Sequence[Keypoints]) -> list[Keypoints]:
    """Sorts by picture and fills in ``frame`` and ``person``."""
    frames: dict[str, int] = {}
    counts: dict[str, int] = {}
    out = []
    for one in people:
        frame = frames.setdefault(one.image, len(frames))
        out.append(replace(one, frame=frame, person=counts.get(one.image, 0)))
        counts[one.image] = counts.get(one.image, 0) + 1
    return sorted(out, key=lambda one: one.frame)


# ---- formats ------------------------------------------------------------------------------------


def _parse(path: Path, skeleton: str | None) -> list[Keypoints]:
    document = _json(path)
    if isinstance(document, Mapping):
        if document.get("format") == "zoo-poses":
            return _zoo_poses(path, skeleton)
        for key, read in _BY_KEY.items():
            if key in document:
                records = document[key]
                if not isinstance(records, list):
                    raise DataError(f'{path}: "{key}" is not a list')
                return read(path, document, skeleton)
    elif isinstance(document, list):
        return _coco(path, document, {}, skeleton)
    raise DataError(
        f"{path} is no keypoint file: expected COCO results or annotations, an OpenPose frame, "
        "AlphaPose results or the zoo's poses"
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no keypoint file {path}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON text file") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path} is not valid JSON: {error.msg} at {where}") from error


def _zoo_poses(path: Path, skeleton: str | None) -> list[Keypoints]:
    from zoo.pose import load_poses

    people, poses = [], load_poses(path)
    for number, pose in enumerate(poses):
        if pose.joints_2d is None:
            raise DataError(f"{path}, pose {number}: it has no joints_2d to lift")
        scores = np.ones(len(pose.joints_2d), np.float32)
        if pose.scores_2d is not None:
            scores = np.nan_to_num(pose.scores_2d)
        scores = np.where(np.isfinite(pose.joints_2d).all(1), scores, 0).astype(np.float32)
        name = skeleton or pose.skeleton
        if len(get_skeleton(name)) != len(scores):
            raise DataError(f"{path}, pose {number}: {len(scores)} joints are not those of {name}")
        people.append(Keypoints(pose.joints_2d, scores, name, pose.source, box=pose.box))
    if any(pose.frame_index for pose in poses):  # of a video: one name a frame
        people = [
            replace(one, image=f"{Path(pose.source).stem or 'frame'}_{pose.frame_index:06d}")
            for one, pose in zip(people, poses, strict=True)
        ]
    return people


def _openpose(path: Path, document: Mapping[str, Any], skeleton: str | None) -> list[Keypoints]:
    people = []
    # OUT/NAME_000000000012_keypoints.json is the frame NAME_000000000012.
    image = re.sub(r"_keypoints$", "", path.stem)
    for number, entry in enumerate(document["people"]):
        where = f"{path}, person {number}"
        values = None
        if isinstance(entry, Mapping):
            values = entry.get("pose_keypoints_2d", entry.get("pose_keypoints"))
        if values is None:
            raise DataError(f'{where}: it lacks "pose_keypoints_2d"')
        table = _table(values, where)
        if len(table) == len(_OPENPOSE_18) and skeleton is None:
            wide = np.zeros((25, 3))
            names = get_skeleton("openpose_25").joints
            wide[[names.index(joint) for joint in _OPENPOSE_18]] = table
            table = wide
        one = _person(table, None, skeleton, where, "openpose_25")
        people.append(replace(one, image=image))
    return people


def _annotations(path: Path, document: Mapping[str, Any], skeleton: str | None) -> list[Keypoints]:
    names: dict[Any, str] = {}
    for entry in document.get("images") or ():
        if isinstance(entry, Mapping) and isinstance(entry.get("file_name"), str):
            names[entry.get("id")] = entry["file_name"]
    # Only people: a file of instances has cars too. Crowds have a region and no joints of anyone.
    return _coco(path, document["annotations"], names, skeleton)


def _coco(
    path: Path, records: Sequence[Any], names: Mapping[Any, str], skeleton: str | None
) -> list[Keypoints]:
    people = []
    for number, entry in enumerate(records):
        where = f"{path}, record {number}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where}: expected an object with image_id and keypoints")
        if entry.get("category_id", _PERSON) != _PERSON or entry.get("iscrowd"):
            continue
        if "keypoints" not in entry:
            raise DataError(f'{where}: it lacks "keypoints"')
        table = _table(entry["keypoints"], where)
        # Annotations have a flag 0, 1 (hidden) or 2 in the place of the score.
        flags = table[:, 2] if "score" not in entry else np.zeros(0)
        if len(flags) and flags.max() > 1 and np.isin(flags, (0, 1, 2)).all():
            table[:, 2] = flags > 0
        image = entry.get("image_id", "")
        if isinstance(image, bool) or not isinstance(image, str | int):
            raise DataError(f"{where}: image_id is {image!r}, expected a number or a name")
        one = _person(table, entry.get("box", entry.get("bbox")), skeleton, where, None)
        score = entry.get("score")
        if score is not None and not _is_number(score):
            raise DataError(f"{where}: its score is {score!r}, expected a number")
        people.append(
            replace(
                one,
                image=names.get(image, str(image)),
                score=None if score is None else float(score),
            )
        )
    return people


_BY_KEY: dict[str, Callable[[Path, Mapping[str, Any], str | None], list[Keypoints]]] = {
    "annotations": _annotations,
    "people": _openpose,
}


# ---- one person ---------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _table(values: Any, where: str) -> npt.NDArray[np.float64]:
    """(J, 3) x, y, score from a flat list."""
    if not isinstance(values, list):
        raise DataError(f"{where}: its keypoints are not a list of numbers x, y, score")
    if not all(_is_number(v) for v in values):
        bad = next(v for v in values if not _is_number(v))
        raise DataError(f"{where}: its keypoints hold {bad!r}, expected numbers x, y, score")
    if len(values) % 3 or not values:
        raise DataError(
            f"{where}: its keypoints are {len(values)} numbers, expected three a joint: x, y, score"
        )
    return np.array(values, dtype=np.float64).reshape(-1, 3)


def _person(
    table: npt.NDArray[np.float64], bbox: Any, skeleton: str | None, where: str, usual: str | None
) -> Keypoints:
    count = _LEADING.get(len(table), len(table))
    name = skeleton
    if name is None:
        name = usual if usual and len(get_skeleton(usual)) == count else _OF_COUNT.get(count)
    if name is None:
        raise DataError(f"{where}: no skeleton of {len(table)} joints is known; give --skeleton")
    joints = len(get_skeleton(name))
    if joints != len(table) and joints != count:
        raise DataError(f"{where}: it has {len(table)} joints, but {name} has {joints}")
    table = table[:joints]
    xy, scores = table[:, :2], table[:, 2]
    # Detectors write 0, 0, 0 for a joint they have not found; a few scores exceed 1 by a little.
    given = np.isfinite(table).all(1) & (scores > 0)
    joints_2d = np.where(given[:, None], xy, math.nan).astype(np.float32)
    clean = np.where(given, np.clip(np.nan_to_num(scores), 0, 1), 0).astype(np.float32)
    box = None
    if bbox is not None:
        if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(v) for v in bbox)):
            raise DataError(f"{where}: its box is {bbox!r}, expected [x, y, width, height]")
        x, y, width, height = map(float, bbox)
        box = np.array([x, y, x + width, y + height], np.float32)
    return Keypoints(joints_2d, clean, name, box=box)
