"""MPI-INF-3DHP, training and test set.

Facts (Mehta et al., 3DV 2017; the readme files and tools of the set):

* Training: ``S1/Seq1/annot.mat`` holds cells over 14 cameras, ``annot2`` (N, 56) px, ``annot3`` and
  ``univ_annot3`` (N, 84) mm, 28 joints, both 3D in the **camera frame** already (the extrinsics
  are not applied); ``univ_annot3`` is scaled to one stature.
  ``camera.calibration`` ("Skeletool Camera Calibration File V1.0") has per camera name, sensor,
  size, animated, intrinsic (4 x 4), extrinsic (4 x 4, mm, world with y up), radial. Videos
  ``imageSequence/video_K.avi`` of 2048 x 2048 px, frame n for row n; or the frames as images,
  ``imageFrames/video_K/frame_000001.jpg`` from 1. 25 or 50 Hz by sequence.
* Test: ``TS1`` ... ``TS6`` with ``annot_data.mat`` (MATLAB 7.3, axes reversed in HDF5): ``annot2``
  (N, 1, 17, 2), ``annot3``, ``univ_annot3`` (N, 1, 17, 3), ``valid_frame``, ``activity_annotation``
  (1-7); ``imageSequence/img_000001.jpg``, 2048 x 2048, TS5 and TS6 1920 x 1080, 25 Hz
  assumed. The official metric (PCK at 150 mm, AUC) uses ``univ_annot3`` of the valid frames.
* The usual chest-high cameras are 0, 1, 2, 4, 5, 6, 7, 8.

Joint order here: ``mpi_inf_3dhp_17``, the 17 "relevant" joints of both parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.matlab import load_hdf5, load_mat, numbers
from datamodules.plausible import check_reprojection, check_trunk
from datamodules.readers import Fault, find_reader, stop
from datamodules.recordings import Camera, ImageFiles, Recording, VideoFile
from datamodules.textfiles import read_lines
from zoo.errors import DataError

__all__ = ["ACTIVITIES", "CHEST_CAMERAS", "JOINTS_28", "RELEVANT", "EvalSequence"]
__all__ += ["MpiInf3dhpDataModule", "SkeletoolCamera", "TrainSequence", "fit_pinhole", "identify"]
__all__ += ["missing", "parse_calibration", "parse_test", "parse_train", "read"]

Annotation = Literal["univ_annot3", "annot3"]

JOINTS_28 = (
    "spine3 spine4 spine2 spine pelvis neck head head_top "
    "l_clavicle l_shoulder l_elbow l_wrist l_hand "
    "r_clavicle r_shoulder r_elbow r_wrist r_hand l_hip l_knee l_ankle l_foot l_toe "
    "r_hip r_knee r_ankle r_foot r_toe"
).split()
"""Order of the training files."""
RELEVANT = (7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6)
"""The 17 of the 28 that the test set has, in its order."""
CHEST_CAMERAS = (0, 1, 2, 4, 5, 6, 7, 8)
FAST = {("S1", "Seq2"), ("S3", "Seq1"), ("S3", "Seq2"), ("S5", "Seq1"), ("S5", "Seq2")}
"""Sequences of 50 Hz; the others have 25 Hz."""
ACTIVITIES = (
    "Stand/Walk", "Exercise", "Sit on Chair", "Crouch/Reach", "On the Floor", "Sports",
    "Miscellaneous",
)  # fmt: skip
"""Names of ``activity_annotation`` 1 to 7."""
Y_UP_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Turns the set's world (y up) into the zoo's (z up)."""
SKELETOOL = "Skeletool Camera Calibration File V1.0"


# ---- training set -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SkeletoolCamera:
    """One camera of a calibration file.

    Attributes:
        name: its number, as text.
        size: width and height in px.
        matrix: (3, 3) px.
        rotation: (3, 3) world (y up) to camera.
        translation: (3,) mm: X_camera = R X_world + t.
    """

    name: str
    size: tuple[int, int]
    matrix: NDArray[np.float64]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]


def parse_calibration(path: Path) -> dict[str, SkeletoolCamera]:
    """Reads a calibration file by its keys; name -> camera.

    Raises:
        zoo.errors.DataError: not such a file, cut off, a moving camera, or values that cannot be.
    """
    lines = read_lines(path)
    if lines[0] != SKELETOOL:
        raise DataError(f"{path}: does not start with {SKELETOOL!r}")
    blocks: list[dict[str, list[str]]] = []
    for place, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        if words[0] == "name":
            blocks.append({})
        if not blocks:
            raise DataError(f"{path}: line {place} is {line[:40]!r}; expected a camera's name")
        blocks[-1][words[0]] = words[1:]
    cameras = {}
    for block in blocks:
        camera = _camera(path, block)
        if camera.name in cameras:
            raise DataError(f"{path}: camera {camera.name} is there twice")
        cameras[camera.name] = camera
    if not cameras:
        raise DataError(f"{path}: no camera in it")
    return cameras


def _camera(path: Path, block: dict[str, list[str]]) -> SkeletoolCamera:
    name = " ".join(block["name"]) or "?"

    def values(key: str, count: int) -> NDArray[np.float64]:
        if key not in block:
            raise DataError(f"{path}: camera {name} has no {key}; the file is cut off")
        try:
            array = np.array([float(word) for word in block[key]])
        except ValueError as error:
            raise DataError(f"{path}: camera {name}: {key} must be numbers") from error
        if len(array) != count or not np.isfinite(array).all():
            raise DataError(
                f"{path}: camera {name}: {key} has {len(array)} numbers, expected {count}"
            )
        return array

    if values("animated", 1)[0] != 0:
        raise DataError(f"{path}: camera {name} is animated; the cameras of 3DHP stand still")
    width, height = values("size", 2)
    if min(width, height) < 1 or width != int(width) or height != int(height):
        raise DataError(f"{path}: camera {name}: a size of {width:g} x {height:g} px")
    matrix = values("intrinsic", 16).reshape(4, 4)[:3, :3]
    extrinsic = values("extrinsic", 16).reshape(4, 4)
    rotation = extrinsic[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise DataError(f"{path}: camera {name}: extrinsic holds no rotation")
    # A principal point far outside the picture, or a size in other px than the focal length.
    if not (0 < matrix[0, 2] < width and 0 < matrix[1, 2] < height):
        raise DataError(
            f"{path}: camera {name}: principal point ({matrix[0, 2]:g}, {matrix[1, 2]:g}) outside "
            f"its {width:g} x {height:g} px"
        )
    return SkeletoolCamera(name, (int(width), int(height)), matrix, rotation, extrinsic[:3, 3])


@dataclass(frozen=True, eq=False)
class TrainSequence:
    """``annot.mat``, the 17 relevant joints.

    Attributes:
        joints_2d: camera -> (N, 17, 2) px.
        annot3: camera -> (N, 17, 3) mm, camera frame.
        univ_annot3: the same, scaled to one stature.
    """

    joints_2d: dict[int, NDArray[np.float64]]
    annot3: dict[int, NDArray[np.float64]]
    univ_annot3: dict[int, NDArray[np.float64]]


def parse_train(path: Path) -> TrainSequence:
    """Reads an ``annot.mat``.

    Raises:
        zoo.errors.DataError: not such a file, or shapes that do not fit.
    """
    axes = {"annot2": 2, "annot3": 3, "univ_annot3": 3}
    loaded = load_mat(path, list(axes))
    tables: dict[str, dict[int, NDArray[np.float64]]] = {}
    for name, dimensions in axes.items():
        cells = loaded[name]
        if cells.dtype != object:
            raise DataError(f"{path}: {name} must be a cell with an array for each camera")
        tables[name] = {}
        for camera, cell in enumerate(cells.reshape(-1)):
            if np.asarray(cell).size == 0:  # cut down to some of the cameras
                continue
            array = numbers(path, f"{name} of camera {camera}", cell, 2)
            if array.shape[1] != len(JOINTS_28) * dimensions:
                raise DataError(
                    f"{path}: {name} of camera {camera} is {array.shape}; expected "
                    f"(frames, {len(JOINTS_28) * dimensions})"
                )
            joints = array.reshape(len(array), len(JOINTS_28), dimensions)
            tables[name][camera] = joints[:, list(RELEVANT)]
    shapes = {n: {c: len(a) for c, a in table.items()} for n, table in tables.items()}
    if not shapes["annot2"]:
        raise DataError(f"{path}: no camera in it")
    for name in ("annot3", "univ_annot3"):
        if shapes[name] != shapes["annot2"]:
            raise DataError(f"{path}: {name} and annot2 differ in cameras or numbers of frames")
        for camera, joints in tables[name].items():
            check_trunk(f"{path}: {name} of camera {camera}", "mpi_inf_3dhp_17", joints)
    return TrainSequence(tables["annot2"], tables["annot3"], tables["univ_annot3"])


# ---- test set ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EvalSequence:
    """``annot_data.mat`` of a test sequence, all frames.

    Attributes:
        joints_2d: (N, 17, 2) px.
        annot3: (N, 17, 3) mm, camera frame.
        univ_annot3: the same, scaled to one stature.
        valid: (N,) bool, the frames that count.
        activity: (N,) int64, 1 to 7; 0 where there is none.
    """

    joints_2d: NDArray[np.float64]
    annot3: NDArray[np.float64]
    univ_annot3: NDArray[np.float64]
    valid: NDArray[np.bool_]
    activity: NDArray[np.int64]


def parse_test(path: Path) -> EvalSequence:
    """Reads an ``annot_data.mat``.

    Raises:
        zoo.errors.DataError: not such a file, or shapes that do not fit.
    """
    names = ["annot2", "annot3", "univ_annot3", "valid_frame", "activity_annotation"]
    loaded = load_hdf5(path, names)
    valid = loaded["valid_frame"].reshape(-1)
    count = len(valid)
    poses = {}
    for name, dimensions in (("annot2", 2), ("annot3", 3), ("univ_annot3", 3)):
        array = numbers(path, name, loaded[name], 4)
        shape = (count, 1, len(RELEVANT), dimensions)
        if array.shape != shape:
            raise DataError(
                f"{path}: {name} is {array.shape}; expected {shape}: {count} frames by valid_frame"
            )
        poses[name] = array[:, 0]
    activity = loaded["activity_annotation"].reshape(-1)
    if len(activity) != count or not np.isin(activity, range(len(ACTIVITIES) + 1)).all():
        raise DataError(f"{path}: activity_annotation must be {count} numbers of 0 to 7")
    if not np.isin(valid, (0, 1)).all():
        raise DataError(f"{path}: valid_frame must be 0 or 1")
    for name in ("annot3", "univ_annot3"):
        check_trunk(f"{path}: {name}", "mpi_inf_3dhp_17", poses[name][valid == 1])
    return EvalSequence(
        poses["annot2"],
        poses["annot3"],
        poses["univ_annot3"],
        valid == 1,
        activity.astype(np.int64),
    )


def fit_pinhole(
    joints_3d: NDArray[np.float64], joints_2d: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Focal lengths and principal point from poses and their pixels; the test set states none.

    Args:
        joints_3d: (..., 3) mm, camera frame.
        joints_2d: (..., 2) px.

    Returns:
        (3, 3) intrinsics by least squares, and the root mean square of what is left, in px.
    """
    points, pixels = joints_3d.reshape(-1, 3), joints_2d.reshape(-1, 2)
    use = np.isfinite(points).all(-1) & np.isfinite(pixels).all(-1) & (points[:, 2] > 0)
    rays = points[use, :2] / points[use, 2:]
    matrix, left = np.eye(3), []
    for axis in range(2):
        design = np.stack([rays[:, axis], np.ones(len(rays))], axis=1)
        solution = np.linalg.lstsq(design, pixels[use, axis], rcond=None)[0]
        matrix[axis, axis], matrix[axis, 2] = solution
        left.append(pixels[use, axis] - design @ solution)
    return matrix, float(np.sqrt(np.mean(np.square(left)))) if left[0].size else np.inf


# ---- reader -----------------------------------------------------------------------------------

_HOW = "https://vcai.mpi-inf.mpg.de/3dhp-dataset"
_FIT_PX = 5.0
"""Test annotations whose pinhole fit leaves more than this are not given that camera."""
TEST_FPS = 25.0
TRAIN_ACTION = "Training"


def _train_files(root: Path) -> list[Path]:
    return sorted(p for depth in ("", "*/") for p in root.glob(f"{depth}S[1-8]/Seq[12]/annot.mat"))


def _test_files(root: Path) -> list[Path]:
    return sorted(p for depth in ("", "*/") for p in root.glob(f"{depth}TS[1-6]/annot_data.mat"))


def identify(root: Path) -> bool:
    """Whether there is a sequence of the training or of the test set."""
    try:
        return bool(_train_files(root) or _test_files(root))
    except OSError:
        return False


def read(
    root: Path, fault: Fault = stop, annotation: Annotation = "univ_annot3"
) -> list[Recording]:
    """All sequences of the training set and the valid frames of the test set.

    See :mod:`datamodules.readers`. In the training set, cameras without video are left out as soon
    as one has a video: people unpack the ones that they use.

    Args:
        root: with ``S1`` ... ``S8`` and ``TS1`` ... ``TS6``, or with folders that hold them.
        fault: what to do with what is wrong.
        annotation: of the training set, ``univ_annot3`` (one stature, as the test set always has
            here) or ``annot3`` (true size).
    """
    found: list[Recording] = []
    for path in _train_files(root):
        try:
            found += _train_recordings(path, annotation)
        except DataError as error:
            fault(error)
    for path in _test_files(root):
        try:
            found += _test_recordings(path)
        except DataError as error:
            fault(error)
    return found


def _train_recordings(path: Path, annotation: Annotation) -> list[Recording]:
    folder = path.parent
    subject, name = folder.parent.name, folder.name
    cameras = parse_calibration(folder / "camera.calibration")
    sequence = parse_train(path)
    joints_3d = getattr(sequence, annotation)
    pictures = {
        c: _train_pictures(folder, c, len(pixels)) for c, pixels in sequence.joints_2d.items()
    }
    chosen = [c for c, source in pictures.items() if source is not None] or list(pictures)
    found = []
    for number in chosen:
        if str(number) not in cameras:
            raise DataError(
                f"{folder / 'camera.calibration'}: no camera {number}, annot.mat has it"
            )
        camera = cameras[str(number)]
        rotation = camera.rotation @ Y_UP_TO_Z_UP.T
        recording = Recording(
            subject=subject,
            action=TRAIN_ACTION,
            trial=int(name.removeprefix("Seq")),
            camera=Camera(
                camera.name,
                camera.size,
                camera.matrix,
                rotation=rotation,
                position=-rotation.T @ camera.translation,
            ),
            skeleton="mpi_inf_3dhp_17",
            joints_2d=sequence.joints_2d[number],
            joints_3d=sequence.annot3[number],
            space="camera",
            fps=50.0 if (subject, name) in FAST else 25.0,
            pictures=pictures[number],
            where=str(path),
        )
        check_reprojection(recording, "camera.calibration")
        found.append(replace(recording, joints_3d=joints_3d[number]))
    return found


def _train_pictures(folder: Path, camera: int, count: int) -> ImageFiles | VideoFile | None:
    video = folder / "imageSequence" / f"video_{camera}.avi"
    if video.is_file():
        return VideoFile(str(video))
    images = folder / "imageFrames" / f"video_{camera}"
    if (images / "frame_000001.jpg").is_file():
        return ImageFiles(str(images), tuple(f"frame_{i + 1:06d}.jpg" for i in range(count)))
    return None


def _test_recordings(path: Path) -> list[Recording]:
    sequence = parse_test(path)
    folder, subject = path.parent, path.parent.name
    has_pictures = any((folder / "imageSequence").glob("img_*.jpg"))
    # The files hold no calibration, but 3D in the camera frame and its pixels determine it.
    matrix, left = fit_pinhole(sequence.annot3[sequence.valid], sequence.joints_2d[sequence.valid])
    known = left <= _FIT_PX and min(matrix[0, 0], matrix[1, 1]) > 0
    camera = Camera("0", matrix=matrix if known else None)
    found = []
    for activity, name in enumerate(ACTIVITIES, start=1):
        rows = np.flatnonzero(sequence.valid & (sequence.activity == activity))
        if not len(rows):
            continue
        images = tuple(f"imageSequence/img_{row + 1:06d}.jpg" for row in rows)
        found.append(
            Recording(
                subject=subject,
                action=name,
                camera=camera,
                skeleton="mpi_inf_3dhp_17",
                joints_2d=sequence.joints_2d[rows],
                joints_3d=sequence.univ_annot3[rows],
                space="camera",
                fps=TEST_FPS,
                frames=rows,
                pictures=ImageFiles(str(folder), images) if has_pictures else None,
                split="test",
                where=str(path),
            )
        )
    if not found:
        raise DataError(f"{path}: no valid frame with an activity")
    return found


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks of the set; see :mod:`datamodules.readers`."""
    lines = []
    have = {(r.subject, r.trial) for r in recordings if r.split != "test"}
    gone = [f"S{s} Seq{t}" for s in range(1, 9) for t in (1, 2) if (f"S{s}", t) not in have]
    if gone:
        lines.append(f"training: no {', '.join(gone)}; {_HOW}")
    have_test = {r.subject for r in recordings if r.split == "test"}
    gone = [f"TS{s}" for s in range(1, 7) if f"TS{s}" not in have_test]
    if gone:
        lines.append(f"test: no {', '.join(gone)}; mpi_inf_3dhp_test_set.zip of {_HOW}")
    blind = sorted({r.where for r in recordings if r.pictures is None})
    if blind:
        lines.append(f"{blind[0]}: no videos or images beside it (imageSequence); {_HOW}")
    guessed = sorted({r.where for r in recordings if r.split == "test" and r.camera
                      and r.camera.matrix is None})  # fmt: skip
    lines += [f"{path}: no pinhole fits annot3 and annot2; 2D and 3D stay, without a camera"
              for path in guessed]  # fmt: skip
    return lines


class MpiInf3dhpDataModule(FileDataModule):
    """MPI-INF-3DHP; see the base class for the other arguments.

    Args:
        annotation: of the training set. ``univ_annot3`` scales all people to one stature, as the
            official metric does (so the test set always has it); ``annot3`` is their true size.
    """

    dataset = "mpi-inf-3dhp"
    default_protocol = "mpi-inf-3dhp"
    default_val_subjects = ("S8",)
    actions = (TRAIN_ACTION, *ACTIVITIES)

    def __init__(self, annotation: Annotation = "univ_annot3", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.annotation: Annotation = annotation

    def read(self) -> list[Recording]:
        """All recordings, with the chosen annotation."""
        root = Path(self.root)
        find_reader(root, self.dataset)
        return read(root, annotation=self.annotation)
