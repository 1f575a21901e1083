"""Human3.6M as the text lists of Lin et al. 2017 (RPSM) and Wang et al. 2019 (SSC).

RPSM's extraction writes, for each camera, a pair of lists of every fifth frame::

    img_list/linux_accv_train_camera_1_label_2d.txt    PATH x1,y1,...,x17,y17      px
    img_list/linux_accv_train_camera_1_label_3d.txt    PATH x1,y1,z1,...,z17       mm, camera frame

SSC's lists have 16 joints (without "Neck/Nose"), 2D and 3D in one line, and a flag::

    16skel_train_2d3d_clip.txt          PATH x1,y1,...,x16,y16,x1,y1,z1,...,z16 CLIP
    16point_mean_limb_scaled_max_min.csv   row 1: the largest, row 2: the smallest values (48 each)

There the 3D is (x - min) / (max - min) of root-relative poses **scaled to mean limb lengths**: with
the CSV it is turned back to mm, but it is not the measured pose, and the camera is not known. 2D
values that are all below 2 are shares of the picture's longer side. Paths end in
``camera_C/SUBJECT/ACTION_SUBACTION/FRAME.jpg`` with C 1-4, official action 2-16, FRAME from 1;
CLIP 0 starts a sequence. Line ends may be Windows'.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.human36m import (
    ACTIONS,
    CAMERA_SIZES,
    CAMERAS,
    EXCLUSIONS,
    FPS,
    NOTED,
    what_is_missing,
)
from datamodules.human36m_cdf import fit_camera
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, ImageFiles, Recording
from zoo.errors import DataError

__all__ = ["EXCLUSIONS", "NOTED", "identify", "missing", "read"]

Float = NDArray[np.float64]

RPSM_2D = "linux_accv_*_camera_[1-4]_label_2d.txt"
SSC_LISTS = (
    "16skel_train_2d3d_clip.txt", "16skel_test_2d3d_clip.txt",
    "16skel_train_2d3d_p3_clip.txt", "16skel_test_2d3d_p3_clip.txt",
)  # fmt: skip
SSC_RANGE = "16point_mean_limb_scaled_max_min.csv"
_PATH = re.compile(r"(?:^|/)camera_([1-4])/(\d+)/(\d+)_([12])/(\d+)\.\w+$")


def _rpsm(root: Path) -> list[Path]:
    return sorted(p for base in (root, root / "img_list") for p in base.glob(RPSM_2D))


def _ssc(root: Path) -> list[Path]:
    """Protocol I's lists; protocol III's only without them (they hold the same frames)."""
    first = [root / name for name in SSC_LISTS[:2] if (root / name).is_file()]
    return first or [root / name for name in SSC_LISTS[2:] if (root / name).is_file()]


def identify(root: Path) -> bool:
    """Whether a list of either kind is in the folder."""
    return bool(_rpsm(root) or _ssc(root))


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    recordings: list[Recording] = []
    lists = _rpsm(root)
    for path in lists or _ssc(root):
        try:
            recordings += _rpsm_pair(root, path) if lists else _ssc_list(root, path)
        except DataError as error:
            fault(error)
    if not lists:
        return recordings
    try:
        return _with_lenses(recordings)
    except DataError as error:
        fault(error)
        return []


def _lines(path: Path, count: int, flag: bool) -> tuple[list[str], Float]:
    """Paths and (N, count) numbers of a list."""
    names, rows = [], []
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file") from error
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        wanted = 3 if flag else 2
        if len(words) != wanted:
            form = "PATH NUMBERS CLIP" if flag else "PATH NUMBERS"
            raise DataError(f"{path}:{number}: {len(words)} words, expected {form}")
        try:
            values = [float(v) for v in words[1].split(",")]
        except ValueError as error:
            raise DataError(f"{path}:{number}: something that is no number") from error
        if len(values) != count:
            raise DataError(f"{path}:{number}: {len(values)} numbers, expected {count}")
        if flag and words[2] not in ("0", "1", "0.0", "1.0"):
            raise DataError(f"{path}:{number}: the clip flag is {words[2]!r}, expected 0 or 1")
        names.append(words[0].replace("\\", "/"))
        rows.append(values)
    if not rows:
        raise DataError(f"{path}: an empty list")
    return names, np.array(rows)


Key = tuple[int, int, int, int]


def _groups(path: Path, names: Sequence[str]) -> dict[Key, list[tuple[int, int]]]:
    """(camera, subject, action, trial) -> (0-based frame, row) of each line, in order."""
    groups: dict[Key, list[tuple[int, int]]] = {}
    for row, name in enumerate(names):
        match = _PATH.search(name)
        action = int(match.group(3)) if match else 0
        if match is None or not 2 <= action <= 16:
            raise DataError(
                f"{path}: path {name!r}, expected .../camera_C/SUBJECT/ACTION_SUBACTION/FRAME.jpg "
                "with action 2 to 16"
            )
        camera, subject, action, trial, frame = (int(g) for g in match.groups())
        groups.setdefault((camera, subject, action, trial), []).append((frame - 1, row))
    return {key: sorted(set(members)) for key, members in groups.items()}


def _relative(root: Path, name: str) -> str:
    """The path below ``root``: as written, or the longest ending of it that is there."""
    parts = name.lstrip("/").split("/")
    for start in range(len(parts)):
        short = "/".join(parts[start:])
        if (root / short).is_file():
            return short
    return name.lstrip("/")


def _recording(
    root: Path, path: Path, key: Key, members: list[tuple[int, int]], names: Sequence[str],
    pixels: Float, joints: Float, skeleton: str, camera: Camera | None,
) -> Recording:  # fmt: skip
    number, subject, action, trial = key
    rows = [row for _, row in members]
    frames = np.array([frame for frame, _ in members], dtype=np.int64)
    first = _relative(root, names[rows[0]])
    # Found once for the first file: all others of a list lie alike.
    cut = len(names[rows[0]].lstrip("/")) - len(first)
    files = tuple(names[row].lstrip("/")[cut:] for row in rows)
    there = (root / first).is_file()
    return Recording(
        subject=f"S{subject}", action=ACTIONS[action - 2], trial=trial, camera=camera,
        skeleton=skeleton, joints_2d=pixels[rows].astype(np.float32),
        joints_3d=joints[rows].astype(np.float32), fps=FPS, frames=frames,
        pictures=ImageFiles(str(root), files) if there else None,
        where=f"{path}, S{subject} action {action} trial {trial} camera {number}",
    )  # fmt: skip


def _rpsm_pair(root: Path, path: Path) -> list[Recording]:
    other = path.with_name(path.name.replace("_2d.txt", "_3d.txt"))
    if not other.is_file():
        raise DataError(f"{path}: its 3D list {other.name} is missing")
    names, flat = _lines(path, 34, flag=False)
    names_3d, deep = _lines(other, 51, flag=False)
    if names != names_3d:
        raise DataError(f"{path}: {other.name} lists other pictures, or in another order")
    pixels, joints = flat.reshape(-1, 17, 2), deep.reshape(-1, 17, 3)
    found = []
    for key, members in _groups(path, names).items():
        name = CAMERAS[key[0] - 1]
        camera = Camera(name, CAMERA_SIZES[name])
        found.append(_recording(root, path, key, members, names, pixels, joints, "h36m_17", camera))
    return found


def _with_lenses(recordings: Sequence[Recording]) -> list[Recording]:
    """The lists hold no cameras: lenses from 3D and 2D, per camera over all subjects."""
    from dataclasses import replace

    lenses: dict[str, Camera] = {}
    for name in CAMERAS:
        mine = [r for r in recordings if r.camera is not None and r.camera.name == name]
        if mine:
            points = np.concatenate([np.asarray(r.joints_3d).reshape(-1, 3) for r in mine])
            pixels = np.concatenate([np.asarray(r.joints_2d).reshape(-1, 2) for r in mine])
            lenses[name] = fit_camera(name, points.astype(float), pixels.astype(float)) or Camera(
                name, CAMERA_SIZES[name]
            )
    return [replace(r, camera=lenses[r.camera.name]) for r in recordings if r.camera is not None]


def _ssc_list(root: Path, path: Path) -> list[Recording]:
    ranges = root / SSC_RANGE
    if not ranges.is_file():
        raise DataError(f"{ranges}: no such file; without it the lists' 3D has no unit")
    try:
        high, low = np.loadtxt(ranges, delimiter=",", ndmin=2)[:2]
    except (ValueError, OSError) as error:
        raise DataError(f"{ranges}: expected two rows of 48 numbers") from error
    if high.shape != (48,) or not (high >= low).all():
        raise DataError(f"{ranges}: expected two rows of 48 numbers, the larger first")
    names, values = _lines(path, 80, flag=True)
    pixels = values[:, :32].reshape(-1, 16, 2)
    joints = (values[:, 32:] * (high - low) + low).reshape(-1, 16, 3)
    groups = _groups(path, names)
    if np.abs(pixels).max() < 2:
        cut = len(names[0].lstrip("/")) - len(_relative(root, names[0]))
        sides = [_side(path, root / name.lstrip("/")[cut:]) for name in names]
        pixels = pixels * np.array(sides)[:, None, None]
    # The pictures are crops of unknown place: the camera has a name only.
    return [
        _recording(root, path, key, members, names, pixels, joints, "h36m_16",
                   Camera(CAMERAS[key[0] - 1]))
        for key, members in groups.items()
    ]  # fmt: skip


def _side(path: Path, picture: Path) -> int:
    """The longer side of a picture, from its header."""
    from PIL import Image

    try:
        with Image.open(picture) as opened:
            return max(opened.size)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: its 2D is in shares of the pictures' sides, and {picture} cannot be read"
        ) from error


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    lines = what_is_missing(recordings)
    if not _rpsm(root):
        lines.append(
            "these lists hold poses scaled to mean limb lengths, relative to the pelvis: errors "
            "against them are not those of the papers; use the official files to evaluate"
        )
    return lines
