"""HumanEva-I: 15 joints as the official MATLAB code exports them, calibrations, and videos.

Facts (Sigal, Balan, Black, IJCV 2010; the official release code; the usual export):

* ``Train|Validate/S1/Walking_1.mat`` (written by a script inside the official code) holds
  ``poses_3d`` (T, 15, 3) mm, world frame with z up, and ``poses_2d`` (3, T, 15, 2) px of the
  cameras C1, C2, C3, lens distortion included; NaN where the motion capture is invalid.
* ``S1/Calibration_Data/C1.cal`` is the official calibration, one number a line: focal lengths (2),
  principal point (2), skew (1), distortion k1 k2 p1 p2 k3 of the usual (OpenCV's) model (5),
  rotation world to camera (9, by rows; by columns if that lands on the 2D), translation (3) in mm:
  X_camera = R X_world + T.
* ``S1/Sync_Data/Walking_1_(C1).ofs`` has three numbers: first frame of the video, the frame of the
  motion capture there, and the ratio of their rates. Frame n of the official stream is frame
  first + n (counted from 1) of ``S1/Image_Data/Walking_1_(C1).avi``.
* 60 Hz, 640 x 480. Trial 1 has poses: its first half is the validation part (from frame 5), its
  second half is for training. ``Validate`` is what papers test on; the official test is withheld.

Joint order: ``humaneva_15``. The last joint is the top of the head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.matlab import load_mat, numbers
from datamodules.plausible import check_reprojection, check_trunk, misses
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, Recording, VideoFile
from datamodules.textfiles import read_column
from zoo.errors import DataError
from zoo.protocols import Exclusion

__all__ = ["CAMERAS", "EXCLUSIONS", "Calibration", "HumanEvaDataModule", "first_frame", "identify"]
__all__ += ["missing", "parse_cal", "parse_ofs", "parse_poses", "read"]

CAMERAS = ("C1", "C2", "C3")
"""The colour cameras; the others (BW1 to BW4) are grey."""
FPS = 60.0
SIZE = (640, 480)
NUM_JOINTS = 15
SPLITS: dict[str, Literal["train", "test"]] = {"Train": "train", "Validate": "test"}
VALIDATE_FIRST = 5
TRAIN_FIRST = {
    "S1": {"Walking": 590, "Jog": 367, "ThrowCatch": 473, "Gestures": 395, "Box": 385},
    "S2": {"Walking": 438, "Jog": 398, "ThrowCatch": 550, "Gestures": 500, "Box": 382},
    "S3": {"Walking": 448, "Jog": 401, "ThrowCatch": 493, "Gestures": 533, "Box": 512},
}
"""Frame of the official stream where the validation part of trial 1 ends and training begins."""
NAMES = {"Jog": "Jogging", "Box": "Boxing"}
"""The papers' names, which protocols use, where the files have others."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A ``.cal`` file.

    Attributes:
        matrix: (3, 3) px.
        distortion: (5,) k1 k2 p1 p2 k3.
        rotation: (3, 3) world to camera.
        translation: (3,) mm.
    """

    matrix: NDArray[np.float64]
    distortion: NDArray[np.float64]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    @property
    def position(self) -> NDArray[np.float64]:
        """(3,) mm, the camera's centre in the world."""
        return -self.rotation.T @ self.translation


def parse_cal(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        zoo.errors.DataError: not 22 numbers, or no camera.
    """
    values = read_column(path)
    if len(values) != 22 or not np.isfinite(values).all():
        raise DataError(f"{path}: {len(values)} numbers; a calibration of HumanEva has 22")
    fx, fy, cx, cy, skew = values[:5]
    rotation = values[10:19].reshape(3, 3)
    if min(fx, fy) <= 0:
        raise DataError(f"{path}: focal lengths {fx:g} and {fy:g} px; they must be positive")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise DataError(f"{path}: numbers 11 to 19 are no rotation")
    matrix = np.array([[fx, skew * fx, cx], [0, fy, cy], [0, 0, 1]])
    return Calibration(matrix, values[5:10], rotation, values[19:])


def parse_ofs(path: Path) -> int:
    """The first frame of the video that belongs to the stream, from a synchronisation file.

    Raises:
        zoo.errors.DataError: not three numbers, or no frame.
    """
    values = read_column(path)
    if len(values) != 3 or not np.isfinite(values).all() or values[0] < 0:
        raise DataError(f"{path}: expected three numbers (video frame, mocap frame, rate ratio)")
    return round(float(values[0]))


def first_frame(split: str, subject: str, action: str) -> int | None:
    """Frame of the official stream of a file's first pose; ``None`` if the set has no such part."""
    start = TRAIN_FIRST.get(subject, {}).get(action)
    if start is None:
        return None
    return start if split == "Train" else VALIDATE_FIRST


def parse_poses(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reads an exported file.

    Returns:
        3D (T, 15, 3) mm, world frame, and 2D (3, T, 15, 2) px, NaN where the capture is invalid.

    Raises:
        zoo.errors.DataError: not such a file, or units that cannot be.
    """
    loaded = load_mat(path, ["poses_3d", "poses_2d"])
    poses = numbers(path, "poses_3d", loaded["poses_3d"], 3)
    pixels = numbers(path, "poses_2d", loaded["poses_2d"], 4)
    count = len(poses)
    if poses.shape[1:] != (NUM_JOINTS, 3):
        raise DataError(f"{path}: poses_3d is {poses.shape}; expected (frames, {NUM_JOINTS}, 3)")
    if pixels.shape != (len(CAMERAS), count, NUM_JOINTS, 2):
        raise DataError(
            f"{path}: poses_2d is {pixels.shape}; expected "
            f"{(len(CAMERAS), count, NUM_JOINTS, 2)} as poses_3d has {count} frames"
        )
    poses = np.where(np.isfinite(poses).all(-1, keepdims=True), poses, np.nan)
    pixels = np.where(np.isfinite(pixels).all(-1, keepdims=True), pixels, np.nan)
    check_trunk(f"{path}: poses_3d", "humaneva_15", poses)
    return poses, pixels


# ---- reader -----------------------------------------------------------------------------------

EXCLUSIONS = (Exclusion("S3", "ThrowCatch", 1, None, "the motion capture is damaged"),)
"""The head of S3 Walking 1 is known to be off as well; papers keep that recording, and so do we."""
_FILE = re.compile(r"(Walking|Jog|ThrowCatch|Gestures|Box)[_ ](\d+)\.mat")
_EXPORT = "converted_15j"


def _base(root: Path) -> Path:
    """The folder with Train and Validate."""
    return root / _EXPORT if (root / _EXPORT).is_dir() else root


def _official(root: Path, *parts: str) -> Path:
    """A file of the original data, which lies in the root or beside the exported folder."""
    places = [_base(root), root, root.parent]
    return next((p for p in (place.joinpath(*parts) for place in places) if p.exists()),
                root.joinpath(*parts))  # fmt: skip


def identify(root: Path) -> bool:
    """Whether there are exported files below ``Train`` or ``Validate``."""
    return any(
        _FILE.fullmatch(path.name)
        for split in SPLITS
        for path in (_base(root) / split).glob("S*/*.mat")
    )


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings of the three colour cameras; see :mod:`datamodules.readers`."""
    found: list[Recording] = []
    calibrations: dict[Path, Camera | None] = {}

    def camera(subject: str, name: str) -> Camera | None:
        path = _official(root, subject, "Calibration_Data", f"{name}.cal")
        if path not in calibrations:
            calibrations[path] = None
            try:
                cal = parse_cal(path)
                calibrations[path] = Camera(
                    name, (0, 0), cal.matrix, cal.distortion[[0, 1, 4]], cal.distortion[2:4],
                    "opencv", cal.rotation, cal.position,
                )  # fmt: skip
            except DataError as error:
                fault(error)
        return calibrations[path]

    for split in SPLITS:
        for path in sorted((_base(root) / split).glob("S*/*.mat")):
            match = _FILE.fullmatch(path.name)
            if match is None:
                continue
            subject, action, trial = path.parent.name, match[1], int(match[2])
            official = NAMES.get(action, action)
            try:
                start = first_frame(split, subject, action)
                if start is None or trial != 1:
                    raise DataError(
                        f"{path}: HumanEva-I has no {split} part of {subject} {action} {trial}; "
                        "S1 to S3, trial 1 have"
                    )
                poses, pixels = parse_poses(path)
                rows = np.flatnonzero(np.isfinite(poses).all(-1).any(-1))
                if not len(rows):
                    raise DataError(f"{path}: no frame with a valid pose")
            except DataError as error:
                fault(error)
                continue
            frames = start + rows
            for index, name in enumerate(CAMERAS):
                seen = camera(subject, name)
                if seen is None:
                    continue
                pictures = _video(root, subject, f"{action}_{trial}_({name})", frames, fault)
                recording = Recording(
                    subject, official, trial, seen, "humaneva_15", pixels[index, rows],
                    poses[rows], "world", FPS, frames, pictures, split=SPLITS[split],
                    where=str(path),
                )  # fmt: skip
                other = replace(recording, camera=_by_columns(seen))
                if misses(other) < misses(recording):
                    recording = other
                try:
                    found.append(check_reprojection(recording, f"{name}.cal"))
                except DataError as error:
                    fault(error)
    return found


def _by_columns(camera: Camera) -> Camera:
    """The camera with its rotation read by columns, as MATLAB would; the 2D tells what is right."""
    assert camera.rotation is not None
    assert camera.position is not None
    translation = -camera.rotation @ camera.position
    return replace(camera, rotation=camera.rotation.T, position=-camera.rotation @ translation)


def _video(
    root: Path, subject: str, name: str, frames: NDArray[np.int64], fault: Fault
) -> VideoFile | None:
    """The video with its frame numbers; ``None`` without the video or its synchronisation."""
    video = _official(root, subject, "Image_Data", f"{name}.avi")
    offset = _official(root, subject, "Sync_Data", f"{name}.ofs")
    if not (video.is_file() and offset.is_file()):
        return None
    try:
        first = parse_ofs(offset)
    except DataError as error:
        fault(error)
        return None
    return VideoFile(str(video), tuple(int(f) for f in frames + first - 1))


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks of HumanEva-I; see :mod:`datamodules.readers`."""
    how = "http://humaneva.is.tue.mpg.de"
    have = {(r.split, r.subject, r.action) for r in recordings}
    lines = []
    for split, part in SPLITS.items():
        gone = [
            f"{subject} {action}"
            for subject, actions in TRAIN_FIRST.items()
            for action in actions
            if (part, subject, NAMES.get(action, action)) not in have
        ]
        if gone:
            lines.append(f"{split}: no {', '.join(gone)}; export them with the code of {how}")
    blind = sorted({f"{r.subject} {r.action} {r.camera.name}" for r in recordings
                    if r.pictures is None and r.camera})  # fmt: skip
    if blind:
        lines.append(
            f"no video, or no Sync_Data/*.ofs for it: {', '.join(blind[:3])}"
            f"{' and more' if len(blind) > 3 else ''}; the archives are at {how}"
        )
    return lines


class HumanEvaDataModule(FileDataModule):
    """HumanEva-I; see the base class for the arguments.

    Training: second halves of trial 1; test: the first halves ("Validate"), as the papers do.
    """

    dataset = "humaneva"
    default_protocol = "humaneva-rpsm"
    actions = ("Walking", "Jogging", "Boxing", "ThrowCatch", "Gestures")
    exclusions = EXCLUSIONS
