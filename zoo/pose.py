"""``Pose``: a person's 3D pose with its units, frame, origin and skeleton; JSON files of poses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError
from zoo.files import write_atomically
from zoo.skeleton import SKELETONS, get_skeleton

__all__ = ["CAMERA_FRAME", "Pose", "load_poses", "save_poses", "write_atomically"]

Array = npt.NDArray[np.float32]

CAMERA_FRAME = "camera (x right, y down, z forward)"
FORMAT = "zoo-poses"
VERSION = 1
# What all poses of a file usually share: written once in the header, and in a record only where
# that record differs.
SHARED = ("units", "frame", "origin", "skeleton", "joint_names", "method")
_SHAPES = {
    "joints_3d": ("J", 3),
    "joints_2d": ("J", 2),
    "scores_2d": ("J",),
    "std_3d": ("J",),
    "box": (4,),
    "root_3d": (3,),
}


@dataclass(frozen=True, eq=False)
class Pose:
    """One person in one picture. Arrays are float32; NaN marks a joint that is not known.

    Attributes:
        joints_3d: (J, 3) mm, in ``frame``, with the ``origin`` at zero.
        joints_2d: (J, 2) px of the source picture (pixel centres at integers), or None when the
            method estimates no 2D.
        scores_2d: (J,) in [0, 1], confidence of ``joints_2d``, or None.
        std_3d: (J,) mm, predicted standard deviation per coordinate, or None.
        box: (4,) px of the source picture: x0, y0, x1, y1 of the person that was looked at, or
            None when there is no picture.
        root_3d: (3,) mm, camera frame: the origin's position, where the method knows it.
        skeleton: name of the joint layout.
        joint_names: J names in index order; taken from ``skeleton`` when left empty.
        units: of ``joints_3d``, ``std_3d`` and ``root_3d``.
        frame: axes of ``joints_3d``.
        origin: the joint at zero.
        person: index of the person in the picture.
        frame_index: index of the frame in a video or keypoint sequence; 0 for a picture.
        source: path of the picture, or ``""`` for an array.
        method: registry name of the model.

    Raises:
        zoo.errors.DataError: an array has the wrong shape.
    """

    joints_3d: Array
    joints_2d: Array | None = None
    scores_2d: Array | None = None
    std_3d: Array | None = None
    box: Array | None = None
    root_3d: Array | None = None
    skeleton: str = "h36m_17"
    joint_names: tuple[str, ...] = ()
    units: str = "mm"
    frame: str = CAMERA_FRAME
    origin: str = "pelvis"
    person: int = 0
    frame_index: int = 0
    source: str = ""
    method: str = ""

    def __post_init__(self) -> None:
        if not self.joint_names:
            object.__setattr__(self, "joint_names", get_skeleton(self.skeleton).joints)
        object.__setattr__(self, "joint_names", tuple(self.joint_names))
        for name, shape in _SHAPES.items():
            value = getattr(self, name)
            if value is None and name != "joints_3d":
                continue
            try:
                array = np.array(value, dtype=np.float32)
            except (TypeError, ValueError) as error:
                raise DataError(f"a pose's {name} is not an array of numbers") from error
            want = tuple(len(self.joint_names) if n == "J" else n for n in shape)
            if array.shape != want:
                raise DataError(f"a pose's {name} has shape {array.shape}, expected {want}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        where = f", source={self.source!r}" if self.source else ""
        return (
            f"Pose({len(self.joint_names)} joints of {self.skeleton}, {self.units}, "
            f"{self.origin} at the origin, person={self.person}, frame={self.frame_index}{where})"
        )

    def joint(self, name: str) -> Array:
        """(3,) position of the joint called ``name``, in ``units`` and ``frame``."""
        return np.asarray(self.joints_3d[self.joint_names.index(name)], dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: arrays as nested lists, NaN as null; read by ``from_dict``."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Pose:
        """The pose that ``to_dict`` wrote.

        Raises:
            zoo.errors.DataError: a key is missing or unknown, or a value has the wrong type.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise DataError(f"a pose has the unknown key {unknown[0]!r}; known: {sorted(known)}")
        if values.get("joints_3d") is None:
            raise DataError("a pose lacks joints_3d")
        entries: dict[str, Any] = {}
        for name, value in values.items():
            if name in _SHAPES:
                entries[name] = None if value is None else _without_null(value)
            elif name in ("person", "frame_index"):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise DataError(f"a pose's {name} is {value!r}, expected a whole number")
                entries[name] = value
            elif name == "joint_names":
                if not isinstance(value, list | tuple) or not all(
                    isinstance(v, str) for v in value
                ):
                    raise DataError("a pose's joint_names is not a list of names")
                entries[name] = tuple(value)
            else:
                if not isinstance(value, str):
                    raise DataError(f"a pose's {name} is {value!r}, expected text")
                entries[name] = value
        skeleton = entries.get("skeleton", "h36m_17")
        if not entries.get("joint_names") and skeleton not in SKELETONS:
            raise DataError(f"a pose of the unknown skeleton {skeleton!r} lacks joint_names")
        return cls(**entries)


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists; the shortest decimals that give the same float32 back."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.floating):
        return float(str(value)) if math.isfinite(value) else None
    return list(value) if isinstance(value, tuple) else value


def _without_null(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_null(v) for v in value]
    return math.nan if value is None else value


def save_poses(
    poses: Sequence[Pose],
    path: str | Path,
    *,
    skeleton: str = "h36m_17",
    method: str = "",
) -> Path:
    """Writes poses as one JSON file: a header with units, frame, origin and skeleton, then records.

    The file is written under a temporary name and renamed, so that ``path`` is never half-written.

    Args:
        poses: any number of them; the header carries what the first one says, and a record what
            differs from it.
        path: the file; its folder is made when it does not exist.
        skeleton: named in the header of a file without poses.
        method: named in the header of a file without poses.

    Returns:
        ``path``.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    from zoo import __version__

    joints = len(get_skeleton(skeleton))
    empty = Pose(np.zeros((joints, 3), np.float32), skeleton=skeleton, method=method)
    first = (poses[0] if len(poses) else empty).to_dict()
    header = {key: first[key] for key in SHARED}
    records = [plain_record(pose, header) for pose in poses]
    document = {"format": FORMAT, "version": VERSION, "zoo_version": __version__, **header}
    # One person a line: readable, diffable, and a fraction of an indented file's size.
    lines = ",\n".join(json.dumps(record, allow_nan=False) for record in records)
    head = json.dumps(document, indent=1)[:-2]
    text = f'{head},\n "poses": [\n{lines}\n]}}\n'
    return write_atomically(Path(path), text.encode())


def plain_record(pose: Pose, header: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a pose: what differs from the file's header."""
    values = pose.to_dict()
    return {k: v for k, v in values.items() if k not in header or v != header[k]}


def load_poses(path: str | Path) -> list[Pose]:
    """Reads a file of ``save_poses``, or of a video, whose frames follow one another.

    Raises:
        zoo.errors.DataError: the file is missing, is not JSON, or is no such file.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a JSON text file") from error
    except RecursionError as error:
        raise DataError(f"{path} is not valid JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"{path} is not valid JSON: {error.msg} at {where}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f'{path} is not a file of poses: expected "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise DataError(
            f"{path} has format version {document.get('version')!r}; this zoo reads {VERSION}"
        )
    records = document.get("poses")
    if "frames" in document:  # of a video: one record a frame, each with its people
        records = _poses_of_frames(path, document["frames"])
    if not isinstance(records, list):
        raise DataError(f'{path} lacks the list "poses"')
    header = {key: document[key] for key in (*SHARED, "source") if key in document}
    poses = []
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{path}, pose {number}: expected an object")
        try:
            poses.append(Pose.from_dict({**header, **record}))
        except DataError as error:
            raise DataError(f"{path}, pose {number}: {error}") from error
    return poses


def _poses_of_frames(path: Path, frames: Any) -> list[Any]:
    if not isinstance(frames, list):
        raise DataError(f'{path}: "frames" is not a list')
    records: list[Any] = []
    for number, frame in enumerate(frames):
        people = frame.get("poses") if isinstance(frame, dict) else None
        if not isinstance(people, list):
            raise DataError(f'{path}, frame {number}: it lacks the list "poses"')
        records += people
    return records
