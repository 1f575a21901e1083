"""Human3.6M as h36m-fetch processes it: ``S1/Directions-1/annot.h5`` and frames as JPEG.

``pose/2d`` (N, 32, 2) px and ``pose/3d`` (N, 32, 3) mm, camera frame, of all four cameras one below
the other, with ``camera`` and ``frame`` (from 1) for each row; ``intrinsics/CAM`` = (alpha_x, x0,
alpha_y, y0), a pinhole fitted to the distorted 2D, so it is off by about a px;
``imageSequence/CAM/img_000001.jpg``. Test frames are every 64th, training frames those after a
movement of 40 mm. The cameras' orientation is not stored.
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
    official_action,
    what_is_missing,
)
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, ImageFiles, Recording
from zoo.errors import DataError

__all__ = ["EXCLUSIONS", "NOTED", "identify", "missing", "read"]

_KEYS = {"pose/2d": (32, 2), "pose/3d": (32, 3), "frame": (), "camera": ()}


def _base(root: Path) -> Path:
    inner = root / "processed"
    return inner if inner.is_dir() and any(inner.glob("S*/*/annot.h5")) else root


def identify(root: Path) -> bool:
    """Whether there is a ``S*/*/annot.h5``."""
    return any(_base(root).glob("S*/*/annot.h5"))


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    recordings: list[Recording] = []
    for path in sorted(_base(root).glob("S*/*/annot.h5")):
        try:
            recordings += _sequence(path)
        except DataError as error:
            fault(error)
    order = {s: i for i, s in enumerate(sorted({r.subject for r in recordings}, key=_number))}
    return sorted(recordings, key=lambda r: (order[r.subject], r.action, r.trial))


def _number(subject: str) -> int:
    return int(subject[1:]) if subject[1:].isdigit() else 0


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    import h5py

    if path.stat().st_size == 0:
        raise DataError(f"{path}: an empty file; run h36m-fetch's process_all.py again")
    try:
        with h5py.File(path, "r") as file:
            lacking = [key for key in _KEYS if key not in file]
            if lacking:
                raise DataError(
                    f"{path}: no {', '.join(lacking)}; h36m-fetch's process_all.py writes them"
                )
            arrays = {key: np.asarray(file[key][()]) for key in _KEYS}
            lenses = {name: np.asarray(file[f"intrinsics/{name}"][()]) for name in CAMERAS
                      if f"intrinsics/{name}" in file}  # fmt: skip
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not an HDF5 file, or a damaged one") from error
    count = len(arrays["frame"])
    for key, shape in _KEYS.items():
        if arrays[key].shape != (count, *shape) or not count:
            raise DataError(f"{path}: {key} is {arrays[key].shape}, expected {(count, *shape)}")
    return arrays, lenses


def _sequence(path: Path) -> list[Recording]:
    subject = path.parent.parent.name
    name, _, number = path.parent.name.partition("-")
    action = official_action(name)
    if action is None or number not in ("1", "2"):
        raise DataError(
            f"{path.parent}: expected a folder ACTION-1 or ACTION-2 of Human3.6M's actions"
        )
    arrays, lenses = _arrays(path)
    found = []
    for camera in CAMERAS:
        rows = np.flatnonzero(arrays["camera"] == int(camera))
        if not len(rows):
            continue
        rows = rows[np.argsort(arrays["frame"][rows], kind="stable")]
        numbers = arrays["frame"][rows].astype(np.int64)
        if numbers[0] < 1:
            raise DataError(f"{path}: frame {numbers[0]}; they count from 1")
        if camera not in lenses or lenses[camera].shape != (4,):
            raise DataError(f"{path}: no intrinsics/{camera} of 4 numbers")
        ax, x0, ay, y0 = lenses[camera]
        joints = arrays["pose/3d"][rows][:, JOINTS_32_TO_17]
        if not np.isfinite(joints).any():
            raise DataError(f"{path}: no finite number in pose/3d of camera {camera}")
        folder = path.parent / "imageSequence" / camera
        files = tuple(f"img_{n:06d}.jpg" for n in numbers)
        found.append(
            Recording(
                subject=subject,
                action=action,
                trial=int(number),
                camera=Camera(
                    camera, CAMERA_SIZES[camera], np.array([[ax, 0, x0], [0, ay, y0], [0, 0, 1]])
                ),
                joints_2d=arrays["pose/2d"][rows][:, JOINTS_32_TO_17].astype(np.float32),
                joints_3d=joints.astype(np.float32),
                fps=FPS,
                frames=numbers - 1,
                pictures=ImageFiles(str(folder), files) if folder.is_dir() else None,
                where=f"{path}, camera {camera}",
            )
        )
    if not found:
        raise DataError(f"{path}: no row of the cameras {', '.join(CAMERAS)}")
    return found


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    return [
        *what_is_missing(recordings),
        "the cameras' orientation is not stored in this format: it is taken as level",
    ]
