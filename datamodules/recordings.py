"""What every reader of files yields: a recording, its camera, and where its pictures come from.

A reader (see :mod:`datamodules.readers`) turns a folder into a list of :class:`Recording`;
:mod:`datamodules.filedata` turns any such list into batches. Units are mm and px; a joint that is
not annotated is **NaN**, and nothing else says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zoo.errors import DataError
from zoo.geometry import camera_to_world, distort, nearest_rotation, world_to_camera
from zoo.skeleton import get_skeleton

__all__ = [
    "LEVEL",
    "SYNTHETIC_MARK",
    "Camera",
    "FrameSource",
    "ImageFiles",
    "Picture",
    "Recording",
    "VideoFile",
    "nominal_intrinsics",
    "read_image",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Pixels = NDArray[np.uint8]

LEVEL: Float = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""World (z up) to the frame of a camera that is held level: for data that do not say how it was."""

SYNTHETIC_MARK = "SYNTHETIC_COPY.txt"
"""In the folder of a synthetic copy: its numbers must never pass for those of the data set."""

_NOMINAL_FOCAL = 2.5


def nominal_intrinsics(image_size: int) -> Float:
    """(3, 3) px of a crop of unknown origin: a person 2 m tall at 5 m fills it."""
    focal, middle = _NOMINAL_FOCAL * image_size, (image_size - 1) / 2
    return np.array([[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]])


# ---- cameras ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Camera:
    """One calibrated camera, or an affine one.

    Attributes:
        name: unique within a data set, such as ``54138969``.
        size: width and height of the source pictures in px; (0, 0) where the files do not say.
        matrix: (3, 3) px, pinhole intrinsics with pixel centres at integers.
        radial: (3,) k1, k2, k3.
        tangential: (2,) p1, p2 in the order of Human3.6M's files (also OpenCV's order).
        lens: whose formula the distortion follows, see :func:`zoo.geometry.distort`.
        rotation: (3, 3) world (z up) to camera; ``None`` where only the camera frame is known.
        position: (3,) mm, the camera's centre in the world; ``None`` where it is not known.
        affine: (2, 4) px from homogeneous mm of the world; such a camera has no other geometry.
            (F, 2, 4) is one for each row of its recording: a camera that follows the person.
    """

    name: str
    size: tuple[int, int] = (0, 0)
    matrix: Float | None = None
    radial: Float | None = None
    tangential: Float | None = None
    lens: Literal["h36m", "opencv"] = "h36m"
    rotation: Float | None = None
    position: Float | None = None
    affine: Float | None = None

    def __post_init__(self) -> None:
        shapes = {
            "matrix": (3, 3), "radial": (3,), "tangential": (2,), "rotation": (3, 3),
            "position": (3,),
        }  # fmt: skip
        if self.affine is not None:
            shapes["affine"] = (*np.shape(self.affine)[:-2][:1], 2, 4)
        for field, shape in shapes.items():
            value = getattr(self, field)
            if value is None:
                continue
            array = np.asarray(value, dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise DataError(
                    f"camera {self.name}: {field} must be {shape} finite numbers, not "
                    f"{array.shape} {np.array2string(array, threshold=12)}".replace("\n", " ")
                )
            object.__setattr__(self, field, array)
        if self.rotation is not None:
            turn = np.abs(self.rotation @ self.rotation.T - np.eye(3)).max()
            if turn > 1e-3 or np.linalg.det(self.rotation) < 0:
                kind = "mirrored" if turn <= 1e-3 else f"off by {turn:.2g}"
                raise DataError(f"camera {self.name}: its 3 x 3 matrix is no rotation, but {kind}")
        if self.matrix is not None and not (self.matrix[0, 0] > 0 and self.matrix[1, 1] > 0):
            raise DataError(
                f"camera {self.name}: focal lengths {self.matrix[0, 0]:g} and "
                f"{self.matrix[1, 1]:g} px; they must be positive"
            )

    @property
    def has_world(self) -> bool:
        """Whether the camera's place in the world is known."""
        return self.rotation is not None and self.position is not None

    @property
    def can_project(self) -> bool:
        """Whether camera-frame (or, for an affine camera, world-frame) points can be projected."""
        return self.matrix is not None or self.affine is not None

    def orientation(self) -> Float:
        """(3, 3) world to camera: the rotation, an affine camera's nearest one, or ``LEVEL``.

        (F, 3, 3) for a camera that follows the person.
        """
        if self.affine is not None:
            linear = self.affine[..., :3]
            rows = linear / np.linalg.norm(linear, axis=-1, keepdims=True)
            full = np.concatenate([rows, np.cross(rows[..., :1, :], rows[..., 1:, :])], axis=-2)
            return np.asarray(nearest_rotation(torch.from_numpy(full)).numpy(), np.float64)
        return LEVEL if self.rotation is None else self.rotation

    def at(self, rows: Any) -> Camera:
        """The camera of some rows of its recording; itself, unless it follows the person."""
        if self.affine is None or self.affine.ndim == 2:
            return self
        return replace(self, affine=self.affine[rows])

    def to_camera(self, points: NDArray[Any]) -> Float:
        """World points (..., N, 3) mm in the camera frame.

        Raises:
            DataError: the camera's place in the world is not known.
        """
        return self._moved(points, world_to_camera)

    def to_world(self, points: NDArray[Any]) -> Float:
        """Camera-frame points (..., N, 3) mm in the world, the inverse of :meth:`to_camera`."""
        return self._moved(points, camera_to_world)

    def _moved(self, points: NDArray[Any], move: Any) -> Float:
        if self.rotation is None or self.position is None:
            raise DataError(f"camera {self.name} has no extrinsics: its place is not known")
        rotation, position = torch.from_numpy(self.rotation), torch.from_numpy(self.position)
        moved = move(torch.from_numpy(np.asarray(points, np.float64)), rotation, position)
        return np.asarray(moved.numpy())

    def project(self, points: NDArray[Any]) -> Float:
        """Px of the source picture, lens distortion included.

        Args:
            points: (..., N, 3) mm, camera frame; world frame for an affine camera.

        Returns:
            (..., N, 2) px; NaN where a point is NaN or not in front of the camera.

        Raises:
            DataError: the camera has no intrinsics.
        """
        points = np.asarray(points, dtype=np.float64)
        if self.affine is not None:
            linear, offset = self.affine[..., :3], self.affine[..., None, :, 3]
            return np.asarray(points @ np.swapaxes(linear, -1, -2) + offset)
        if self.matrix is None:
            raise DataError(f"camera {self.name} has no intrinsics: it cannot project")
        with np.errstate(divide="ignore", invalid="ignore"):
            normalised = points[..., :2] / points[..., 2:]
        normalised[~(points[..., 2] > 0)] = np.nan
        if self.radial is not None or self.tangential is not None:
            radial = torch.from_numpy(np.zeros(3) if self.radial is None else self.radial)
            tangential = torch.from_numpy(
                np.zeros(2) if self.tangential is None else self.tangential
            )
            double = self.lens == "opencv"
            bent = distort(torch.from_numpy(normalised), radial, tangential, double)
            normalised = bent.numpy()
        linear = self.matrix[:2, :2]
        return np.asarray(normalised @ linear.T + self.matrix[:2, 2])


# ---- pictures -----------------------------------------------------------------------------------


class Picture(NamedTuple):
    """A decoded picture and where it lies in the source picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        to_source: (2, 3) affine map from px of ``pixels`` to px of the source picture; ``None`` is
            the identity. A stored crop has one.
    """

    pixels: Pixels
    to_source: Float | None = None


class FrameSource(Protocol):
    """Where the pictures of a recording come from. Row r is row r of the recording's arrays.

    Sources hold paths and numbers only: they are pickled to the loader's workers, which open the
    files. :class:`ImageFiles`, :class:`VideoFile` and :class:`datamodules.crops.StoredCrops`.
    """

    def read(self, rows: Sequence[int]) -> list[Picture]:
        """The pictures of some rows, in their order; rows may repeat.

        Raises:
            DataError: a file is missing, damaged, or shorter than its annotations.
        """
        ...

    def missing(self) -> str:
        """What is missing of the files, in a few words; empty if they are all there (quick)."""
        ...


def read_image(path: str | Path) -> Pixels:
    """(H, W, 3) uint8 RGB of an image file.

    Raises:
        DataError: no such file, or not a readable picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture, or a damaged one") from error


@dataclass(frozen=True)
class ImageFiles:
    """One image file a row.

    Attributes:
        folder: that the names are in.
        names: a file for each row, relative to ``folder``.
    """

    folder: str
    names: tuple[str, ...]

    def read(self, rows: Sequence[int]) -> list[Picture]:
        """See :class:`FrameSource`; each file is decoded once."""
        decoded = {row: read_image(Path(self.folder) / self.names[row]) for row in set(rows)}
        return [Picture(decoded[row]) for row in rows]

    def missing(self) -> str:
        """Looks for the first and the last file."""
        gone = [n for n in {self.names[0], self.names[-1]} if not (Path(self.folder) / n).is_file()]
        return f"no picture {Path(self.folder) / sorted(gone)[0]}" if gone else ""


@dataclass(frozen=True)
class VideoFile:
    """Frames of a video, decoded from its start: right, but slow for single frames.

    ``zoo data prepare`` stores the crops once and for all.

    Attributes:
        path: the video.
        numbers: frame of the video of each row, 0-based; empty = row r is frame r.
    """

    path: str
    numbers: tuple[int, ...] = ()

    def read(self, rows: Sequence[int]) -> list[Picture]:
        """See :class:`FrameSource`."""
        from zoo.video import read_frames

        wanted = [self.numbers[row] if self.numbers else int(row) for row in rows]
        needed, decoded = set(wanted), {}
        for number, pixels in read_frames(self.path, start=min(needed), stop=max(needed) + 1):
            if number in needed:
                decoded[number] = pixels
        for number in sorted(needed - set(decoded)):
            raise DataError(f"{self.path} has no frame {number}: it is shorter than its poses")
        return [Picture(decoded[number]) for number in wanted]

    def missing(self) -> str:
        """Whether the file is there."""
        return "" if Path(self.path).is_file() else f"no video {self.path}"


# ---- recordings ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recording:
    """One subject doing one action once, seen by one camera; or a set of single pictures.

    Attributes:
        subject: such as ``S1``; numbers in the names become the batch's ``subject``.
        action: the official name, such as ``Directions``; empty where there is none.
        trial: 1-based, the official subaction (not the suffix of a file's name).
        camera: ``None`` for pictures without calibration.
        skeleton: a name of :data:`zoo.skeleton.SKELETONS`, of both ``joints_2d`` and ``joints_3d``.
        joints_2d: (F, J, 2) px of the source picture, NaN = not annotated; ``None`` = none at all.
            Without it, what has 3D and a camera is projected.
        joints_3d: (F, J, 3) mm, absolute, NaN = not annotated; ``None`` = 2D only.
        space: the frame of ``joints_3d``: ``world`` (needs ``camera.rotation`` and ``position``, or
            an affine camera) or ``camera``.
        fps: rate of the source, in Hz; ``None`` = single pictures that are no video.
        frames: (F,) strictly increasing, 0-based frame of the source of each row; ``None`` = 0, 1,
            2 ... Files that keep every n-th frame only have their own numbers here, because
            protocols count frames of the source.
        pictures: where the pictures are; ``None`` = no pictures, which keypoint methods can do.
        boxes: (F, 4) x0 y0 x1 y1 of the person, px of the source picture, NaN = not given; ``None``
            takes the box from the joints.
        scores_2d: (F, J) in [0, 1], a detector's confidence; ``None`` = 1.
        occluded: (F, J) bool, annotated but hidden; ``None`` = false.
        split: ``train``, ``val`` or ``test`` where the data set fixes it by file; empty = by
            subject.
        part: number of the piece where one trial comes in several.
        where: the file to name in messages.
    """

    subject: str
    action: str = ""
    trial: int = 1
    camera: Camera | None = None
    skeleton: str = "h36m_17"
    joints_2d: NDArray[Any] | None = None
    joints_3d: NDArray[Any] | None = None
    space: Literal["world", "camera"] = "camera"
    fps: float | None = None
    frames: Int | None = None
    pictures: FrameSource | None = None
    boxes: NDArray[Any] | None = None
    scores_2d: NDArray[Any] | None = None
    occluded: NDArray[np.bool_] | None = None
    split: Literal["", "train", "val", "test"] = ""
    part: int = 0
    where: str = ""

    def __post_init__(self) -> None:
        joints = len(get_skeleton(self.skeleton))
        arrays = {
            "joints_2d": (joints, 2), "joints_3d": (joints, 3), "frames": (), "boxes": (4,),
            "scores_2d": (joints,), "occluded": (joints,),
        }  # fmt: skip
        given = {k: getattr(self, k) for k in arrays if getattr(self, k) is not None}
        if "joints_2d" not in given and "joints_3d" not in given:
            raise DataError(f"{self.where or self.label}: neither 2D nor 3D joints")
        count = len(given["joints_2d" if "joints_2d" in given else "joints_3d"])
        if count == 0:
            raise DataError(f"{self.where or self.label}: no frame in it")
        for name, value in given.items():
            if value.shape != (count, *arrays[name]):
                raise DataError(
                    f"{self.where or self.label}: {name} is {value.shape}, expected "
                    f"{(count, *arrays[name])} for {self.skeleton}"
                )
        if self.frames is not None and (np.diff(self.frames) <= 0).any():
            raise DataError(f"{self.where or self.label}: its frame numbers do not increase")
        if self.fps is not None and not (np.isfinite(self.fps) and self.fps > 0):
            raise DataError(f"{self.where or self.label}: {self.fps} frames a second")
        affine = None if self.camera is None else self.camera.affine
        if affine is not None and affine.ndim == 3 and len(affine) != count:
            raise DataError(
                f"{self.where or self.label}: {len(affine)} affine cameras for {count} frames"
            )
        if self.joints_3d is not None and self.space == "world":
            if self.camera is None or not (self.camera.has_world or self.camera.affine is not None):
                raise DataError(
                    f"{self.where or self.label}: 3D in the world frame needs a camera with its "
                    "rotation and position"
                )

    def __len__(self) -> int:
        """F, the number of annotated frames."""
        joints = self.joints_3d if self.joints_2d is None else self.joints_2d
        return 0 if joints is None else len(joints)

    @property
    def label(self) -> str:
        """Subject, action, trial and camera, for messages."""
        words = [self.subject, self.action, f"trial {self.trial}" if self.action else ""]
        if self.part:
            words.append(f"part {self.part}")
        if self.camera is not None:
            words.append(f"camera {self.camera.name}")
        return " ".join(w for w in words if w)

    @property
    def numbers(self) -> Int:
        """(F,) int64 frame of the source of each row."""
        return np.arange(len(self), dtype=np.int64) if self.frames is None else self.frames

    def camera_joints(self, rows: Any = slice(None)) -> Float | None:
        """(..., J, 3) mm of some rows in the camera frame, absolute; ``None`` without 3D.

        For an affine camera, which has no place, the world's axes turned into the camera's.
        """
        if self.joints_3d is None:
            return None
        joints = np.asarray(self.joints_3d[rows], np.float64)
        if self.space == "camera":
            return joints
        assert self.camera is not None
        if self.camera.affine is not None:
            return joints @ np.swapaxes(self.camera.at(rows).orientation(), -1, -2)
        return self.camera.to_camera(joints)

    def reprojected(self, rows: Any = slice(None)) -> Float | None:
        """(..., J, 2) px, the 3D of some rows through the camera; ``None`` where that is undefined.

        It must land on ``joints_2d``; ``zoo data check`` reports by how much it does not.
        """
        camera = self.camera
        if self.joints_3d is None or camera is None or not camera.can_project:
            return None
        if camera.affine is not None:
            seen = camera.at(rows)
            return seen.project(self.joints_3d[rows]) if self.space == "world" else None
        joints = self.camera_joints(rows)
        return None if joints is None else camera.project(joints)

    def pixels(self, rows: Any = slice(None)) -> Float | None:
        """(..., J, 2) px of some rows: annotated, else projected; ``None`` without either."""
        if self.joints_2d is not None:
            return np.asarray(self.joints_2d[rows], np.float64)
        return self.reprojected(rows)
