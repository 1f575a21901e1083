"""Human3.6M from its official files: CDF poses, MP4 videos, ``metadata.xml`` when it is there.

Two layouts occur, with the archives unpacked in one place or another, and both are read::

    S1/MyPoseFeatures/D2_Positions/Walking 1.54138969.cdf        (and D3_Positions_mono, ...)
    S1/Poses_D2_Positions/Walking 1.54138969.cdf
    S1/Videos/Walking 1.54138969.mp4

A file's variable ``Pose`` is (1, F, 32 x 2) px or (1, F, 32 x 3) mm. ``D3_Positions_mono`` (camera
frame, absolute) is read; with ``D3_Positions`` (world frame, z up) instead, ``metadata.xml`` must
give the cameras. The 2D is of the distorted picture; its px count from 0 at the middle of the
first pixel as far as anybody has measured.

Without ``metadata.xml`` each camera is fitted: the intrinsics to the 3D and the 2D of the files
(as the public converters do, here with the lens), and its orientation stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.human36m import (
    CAMERA_SIZES,
    CAMERAS,
    EXCLUSIONS,
    FPS,
    JOINTS_32_TO_17,
    NOTED,
    Metadata,
    find_metadata,
    read_metadata,
    split_name,
    trials_of,
    what_is_missing,
)
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, Recording, VideoFile
from zoo.errors import DataError

__all__ = ["EXCLUSIONS", "NOTED", "fit_camera", "identify", "missing", "read", "read_cdf"]

Float = NDArray[np.float64]

POSES = ("MyPoseFeatures/{}", "Poses_{}", "{}")
"""Where a kind of pose files may lie below a subject's folder."""


def _folder(subject: Path, kind: str) -> Path | None:
    for pattern in POSES:
        path = subject / pattern.format(kind)
        if path.is_dir():
            return path
    return None


def _subjects(root: Path) -> list[Path]:
    """The subjects' folders, in the order of their numbers."""
    try:
        found = [p for p in root.iterdir() if p.is_dir() and p.name[:1] in "Ss"]
    except OSError:
        return []
    numbered = [(int(p.name[1:]), p) for p in found if p.name[1:].isdigit()]
    return [p for _, p in sorted(numbered)]


def _base(root: Path) -> Path:
    """The folder that holds the subjects: the one given, or ``extracted`` inside it."""
    return root / "extracted" if not _subjects(root) and _subjects(root / "extracted") else root


def identify(root: Path) -> bool:
    """Whether a subject's folder has CDF poses."""
    kinds = ("D2_Positions", "D3_Positions", "D3_Positions_mono")
    return any(
        (folder := _folder(subject, kind)) is not None and any(folder.glob("*.cdf"))
        for subject in _subjects(_base(root))
        for kind in kinds
    )


def read_cdf(path: Path, width: int) -> Float:
    """(F, 17, width) of a file's ``Pose``.

    Raises:
        DataError: the file is missing, empty, damaged, or of another shape.
    """
    import cdflib

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: an empty file; unpack it again")
    try:
        pose = np.asarray(cdflib.CDF(path).varget("Pose"), dtype=np.float64)
    except Exception as error:  # cdflib raises whatever a damaged offset leads to
        raise DataError(
            f"{path}: not a CDF file with a variable 'Pose', or a damaged one; unpack it again"
        ) from error
    pose = pose.reshape(pose.shape[-2:]) if pose.ndim == 3 and pose.shape[0] == 1 else pose
    if pose.ndim != 2 or pose.shape[1] != 32 * width or not len(pose):
        raise DataError(
            f"{path}: 'Pose' is {pose.shape}, expected (1, frames, {32 * width}): "
            f"32 joints of {width} numbers"
        )
    pose = pose.reshape(len(pose), 32, width)[:, JOINTS_32_TO_17]
    if not np.isfinite(pose).any():
        raise DataError(f"{path}: no finite number in it")
    return pose


def fit_camera(name: str, points: Float, pixels: Float) -> Camera | None:
    """Intrinsics and lens that project (N, 3) mm of the camera frame onto (N, 2) px.

    Linear least squares with the lens model of the data set; exact for its own files.

    Returns:
        ``None`` where the points do not determine a camera.
    """
    good = np.isfinite(points).all(-1) & np.isfinite(pixels).all(-1) & (points[:, 2] > 0)
    if good.sum() < 50:
        return None
    chosen = np.flatnonzero(good)
    chosen = chosen[:: max(1, len(chosen) // 4000)]
    x, y = points[chosen, 0] / points[chosen, 2], points[chosen, 1] / points[chosen, 2]
    r2 = x * x + y * y
    # u = cx + fx (x (1 + k1 r2 + k2 r4 + k3 r6 + p1 y + p2 x) + p2 r2): linear in the products.
    columns = [np.ones_like(x), x, x * r2, x * r2**2, x * r2**3, x * y, x * x + r2]
    other = [np.ones_like(x), y, y * r2, y * r2**2, y * r2**3, y * y + r2, x * y]
    parts = []
    for table, target in ((columns, pixels[chosen, 0]), (other, pixels[chosen, 1])):
        matrix = np.stack(table, 1)
        scale = np.abs(matrix).max(0) + 1e-12
        parts.append(np.linalg.lstsq(matrix / scale, target, rcond=1e-9)[0] / scale)
    (cx, fx, *bx), (cy, fy, *by) = parts
    if not (fx > 0 and fy > 0):
        return None
    bend = (np.array(bx) / fx + np.array(by) / fy) / 2
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return Camera(name, CAMERA_SIZES.get(name, (0, 0)), matrix, bend[:3], bend[3:])


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    root = _base(root)
    path = find_metadata(root)
    metadata: Metadata | None = None
    if path is not None:
        try:
            metadata = read_metadata(path)
        except DataError as error:
            fault(error)
    recordings: list[Recording] = []
    for subject in _subjects(root):
        recordings += _subject(subject, metadata, fault)
    return recordings


def _subject(folder: Path, metadata: Metadata | None, fault: Fault) -> list[Recording]:
    subject = folder.name.upper()
    flat, mono = _folder(folder, "D2_Positions"), _folder(folder, "D3_Positions_mono")
    world = _folder(folder, "D3_Positions")
    deep = mono or world
    if deep is None:
        if flat is not None:
            fault(DataError(f"{folder}: 2D without 3D; unpack Poses_D3_Positions_mono_{subject}"))
        return []
    names: dict[str, tuple[str, str]] = {}
    for path in sorted(deep.glob("*.cdf")):
        stem = path.stem if mono is None else path.stem.rpartition(".")[0]
        if stem.lstrip("_").startswith("ALL"):
            continue
        parsed = split_name(stem)
        if parsed is None:
            fault(DataError(f"{path}: {stem!r} is no action of Human3.6M"))
        else:
            names[stem] = parsed
    found = []
    for stem, (action, _) in names.items():
        suffixes = [suffix for other, suffix in names.values() if other == action]
        if len(set(suffixes)) > 2:
            fault(DataError(f"{deep}: {len(set(suffixes))} trials of {action}, expected 2"))
            continue
        trial = trials_of(subject, action, suffixes)[names[stem][1]]
        if metadata is not None:
            trial = metadata.trials.get((subject, stem), trial)
        cameras = [c for c in CAMERAS if mono is None or (mono / f"{stem}.{c}.cdf").is_file()]
        for name in cameras:
            try:
                found.append(
                    _recording(
                        folder, flat, deep, mono is None, stem, action, trial, name, metadata
                    )
                )
            except DataError as error:
                fault(error)
    return _with_cameras(found, fault) if metadata is None else found


def _recording(
    folder: Path,
    flat: Path | None,
    deep: Path,
    is_world: bool,
    stem: str,
    action: str,
    trial: int,
    name: str,
    metadata: Metadata | None,
) -> Recording:
    subject = folder.name.upper()
    path = deep / (f"{stem}.cdf" if is_world else f"{stem}.{name}.cdf")
    joints = read_cdf(path, 3)
    pixels: Float | None = None
    where = str(path)
    if flat is not None:
        where = str(flat / f"{stem}.{name}.cdf")
        pixels = read_cdf(flat / f"{stem}.{name}.cdf", 2)
        if len(pixels) != len(joints):
            raise DataError(
                f"{where}: {len(pixels)} frames, but {path.name} of the 3D has {len(joints)}"
            )
    camera = Camera(name, CAMERA_SIZES[name])
    if metadata is not None:
        if (subject, name) not in metadata.cameras:
            raise DataError(f"{folder}: metadata.xml has no camera {name} of {subject}")
        camera = metadata.cameras[subject, name]
    elif is_world:
        raise DataError(
            f"{path}: world coordinates without cameras; put metadata.xml of the official code "
            "into the folder, or unpack Poses_D3_Positions_mono"
        )
    elif pixels is None:
        raise DataError(
            f"{path}: 3D without 2D and without metadata.xml; unpack Poses_D2_Positions_{subject}"
        )
    video = folder / "Videos" / f"{stem}.{name}.mp4"
    return Recording(
        subject=subject,
        action=action,
        trial=trial,
        camera=camera,
        joints_2d=None if pixels is None else pixels.astype(np.float32),
        joints_3d=joints.astype(np.float32),
        space="world" if is_world else "camera",
        fps=FPS,
        pictures=VideoFile(str(video)) if (folder / "Videos").is_dir() else None,
        where=where,
    )


def _with_cameras(recordings: Sequence[Recording], fault: Fault) -> list[Recording]:
    """Each camera of a subject fitted to all of its recordings together."""
    from dataclasses import replace

    found: list[Recording] = []
    fitted: dict[str, Camera] = {}
    for name in CAMERAS:
        mine = [r for r in recordings if r.camera is not None and r.camera.name == name]
        if not mine:
            continue
        step = max(1, sum(map(len, mine)) // 2000)
        points = np.concatenate([_rows(r.joints_3d, step) for r in mine])
        pixels = np.concatenate([_rows(r.joints_2d, step) for r in mine])
        camera = fit_camera(name, points, pixels)
        if camera is None:
            fault(DataError(f"{mine[0].where}: too few joints to find camera {name} from"))
        else:
            fitted[name] = camera
    for recording in recordings:
        assert recording.camera is not None
        camera = fitted.get(recording.camera.name, recording.camera)
        found.append(replace(recording, camera=camera))
    return found


def _rows(joints: NDArray[Any] | None, step: int) -> Float:
    assert joints is not None
    return joints[::step].reshape(-1, joints.shape[-1]).astype(np.float64)


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    lines = what_is_missing(recordings)
    if find_metadata(_base(root)) is None:
        lines.append(
            "no metadata.xml: lenses are fitted to the files and the cameras' orientation is not "
            "known; copy it from Release-v1.1 of the official code"
        )
    return lines
