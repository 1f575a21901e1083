"""Human3.6M as mmpose's converter writes it: ``annotation_body3d/fps10/h36m_train.npz`` ...

``imgname`` (N,) ``S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg`` (frames count
from 1), ``part`` (N, 17, 3) px and visibility, ``S`` (N, 17, 4) **metres**, camera frame, absolute,
and visibility; ``images/`` beside ``annotation_body3d``. ``cameras.pkl`` maps (subject, camera) to
``R`` camera to world, ``T`` the centre in metres, ``f``, ``c``, ``k``, ``p``; it is read by
:mod:`datamodules.safe_pickle`.
"""

from __future__ import annotations

import re
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
    NOTED,
    split_name,
    trials_of,
    what_is_missing,
)
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, ImageFiles, Recording
from datamodules.safe_pickle import load_npz, load_pickle
from zoo.errors import DataError

__all__ = ["EXCLUSIONS", "NOTED", "find_cameras", "identify", "missing", "read", "read_cameras"]

_NAME = re.compile(r"(S\d+)_([A-Za-z]+(?:_\d+)?)\.(\d+)_(\d{6})\.\w+")
_KEYS = ("imgname", "part", "S")


def _folder(root: Path) -> Path | None:
    """The folder of the .npz files: 50 fps before 10 fps."""
    for base in (root, root / "annotation_body3d", root / "processed" / "annotation_body3d"):
        for rate in ("fps50", "fps10", "."):
            if any((base / rate / f"h36m_{part}.npz").is_file() for part in ("train", "test")):
                return base / rate
    return None


def find_cameras(root: Path) -> Path | None:
    """``cameras.pkl`` in the folder or where mmpose keeps it."""
    for base in (root, root / "annotation_body3d", root / "processed" / "annotation_body3d",
                 root.parent):  # fmt: skip
        if (base / "cameras.pkl").is_file():
            return base / "cameras.pkl"
    return None


def identify(root: Path) -> bool:
    """Whether ``h36m_train.npz`` or ``h36m_test.npz`` is where mmpose looks for it."""
    return _folder(root) is not None


def read_cameras(path: Path) -> dict[tuple[str, str], Camera]:
    """(subject, camera id) -> camera of ``cameras.pkl``.

    Raises:
        DataError: the file is no such dictionary, or wants code to be run.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: expected a dict of (subject, camera) -> parameters")
    cameras = {}
    for key, value in content.items():
        try:
            subject, name = (str(part) for part in key)
            f, c, k, p = (np.asarray(value[n], np.float64).reshape(-1) for n in "fckp")
            turn = np.asarray(value["R"], np.float64).reshape(3, 3)
            place = np.asarray(value["T"], np.float64).reshape(3)
            size = (int(value["w"]), int(value["h"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: {key!r} must be (subject, camera) with R, T, f, c, k, p, w, h"
            ) from error
        if min(size) < 500:
            raise DataError(f"{path}: {key!r} has pictures of {size[0]} x {size[1]} px")
        matrix = np.array([[f[0], 0, c[0]], [0, f[1], c[1]], [0, 0, 1]])
        try:
            cameras[subject, name] = Camera(
                name, size, matrix, k, p, rotation=turn.T, position=place * 1000
            )
        except DataError as error:
            raise DataError(f"{path}: {subject}, {error}") from error
    return cameras


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    folder = _folder(root)
    assert folder is not None
    cameras: dict[tuple[str, str], Camera] = {}
    pickled = find_cameras(root) or find_cameras(folder.parent)
    if pickled is not None:
        try:
            cameras = read_cameras(pickled)
        except DataError as error:
            fault(error)
    images = folder.parent.parent / "images"
    recordings: list[Recording] = []
    for part in ("train", "test"):
        path = folder / f"h36m_{part}.npz"
        if not path.is_file():
            continue
        try:
            recordings += _file(path, images, cameras, fault)
        except DataError as error:
            fault(error)
    return recordings


def _file(
    path: Path, images: Path, cameras: dict[tuple[str, str], Camera], fault: Fault
) -> list[Recording]:
    arrays = load_npz(path, _KEYS)
    names, part, deep = (arrays[key] for key in _KEYS)
    count = len(names)
    if part.shape != (count, 17, 3) or deep.shape != (count, 17, 4) or not count:
        raise DataError(
            f"{path}: part is {part.shape} and S {deep.shape}, expected ({count}, 17, 3) and "
            f"({count}, 17, 4) for {count} imgname"
        )
    groups: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row, name in enumerate(map(str, names)):
        match = _NAME.fullmatch(name.rpartition("/")[2])
        if match is None or split_name(match.group(2)) is None:
            raise DataError(
                f"{path}: imgname {name!r}, expected S1/S1_ACTION.CAMERA/"
                "S1_ACTION.CAMERA_000001.jpg"
            )
        subject, stem, camera, frame = match.groups()
        groups.setdefault((subject, stem, camera), []).append((int(frame) - 1, row))
    suffixes: dict[tuple[str, str], set[str]] = {}
    for subject, stem, _ in groups:
        action, suffix = split_name(stem) or ("", "")
        suffixes.setdefault((subject, action), set()).add(suffix)
    joints = np.where(deep[..., 3:] > 0, deep[..., :3] * 1000, np.nan)
    pixels = np.where(part[..., 2:] > 0, part[..., :2], np.nan)
    found = []
    for (subject, stem, name), members in groups.items():
        action, suffix = split_name(stem) or ("", "")
        members.sort()
        frames = np.array([frame for frame, _ in members], dtype=np.int64)
        rows = np.array([row for _, row in members])
        where = f"{path}, {subject} {stem} camera {name}"
        try:
            if name not in CAMERAS:
                raise DataError(f"{where}: no camera of Human3.6M ({', '.join(CAMERAS)})")
            _check_units(joints[rows], where)
            camera = cameras.get((subject, name)) or _fitted(name, joints[rows], pixels[rows])
            files = tuple(str(names[row]) for row in rows)
            found.append(
                Recording(
                    subject=subject,
                    action=action,
                    trial=trials_of(subject, action, suffixes[subject, action]).get(suffix, 1),
                    camera=camera,
                    joints_2d=pixels[rows].astype(np.float32),
                    joints_3d=joints[rows].astype(np.float32),
                    fps=FPS,
                    frames=frames,
                    pictures=ImageFiles(str(images), files) if images.is_dir() else None,
                    where=where,
                )
            )
        except DataError as error:
            fault(error)
    return found


def _check_units(joints: NDArray[Any], where: str) -> None:
    extent = np.nanmax(np.abs(joints - joints[:, :1])) if np.isfinite(joints).any() else np.nan
    if not 200 < extent < 5000:
        raise DataError(
            f"{where}: joints are up to {extent / 1000:.3g} from the pelvis; "
            "the unit must be metres"
        )


def _fitted(name: str, joints: NDArray[Any], pixels: NDArray[Any]) -> Camera:
    from datamodules.human36m_cdf import fit_camera

    camera = fit_camera(name, joints.reshape(-1, 3), pixels.reshape(-1, 2))
    return camera or Camera(name, CAMERA_SIZES[name])


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    lines = what_is_missing(recordings)
    if find_cameras(root) is None:
        lines.append(
            "no cameras.pkl: lenses are fitted and the cameras' orientation is not known; mmpose's "
            "tools/dataset_converters/preprocess_h36m.py writes it"
        )
    return lines
