"""Human3.6M as VideoPose3D's pair of files: ``data_3d_h36m.npz`` and ``data_2d_h36m_*.npz``.

``positions_3d`` is a pickled dict ``[subject][action]`` of (F, 32, 3) float32, **metres**, world
frame; ``positions_2d`` a dict of lists of 4 cameras (F, J, 2) px, in the data set's order of
cameras, with ``metadata`` (``num_joints``, ``keypoints_symmetry``). Both are read by
:mod:`datamodules.safe_pickle`. The 2D may be the annotation (``gt``) or a detector's; other layouts
are mapped to ``h36m_17`` by joint name.

The files hold no cameras. ``metadata.xml`` or ``cameras.pkl`` in the folder gives them; otherwise
each camera of a subject is found from its 3D and 2D (exact for ``gt``). There are no pictures.
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
    find_metadata,
    read_metadata,
    split_name,
    trials_of,
    what_is_missing,
)
from datamodules.human36m_mmpose import find_cameras, read_cameras
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, Recording
from datamodules.resection import resect
from datamodules.safe_pickle import load_npz
from zoo.errors import DataError
from zoo.skeleton import Skeleton, get_skeleton, joint_map

__all__ = ["EXCLUSIONS", "NOTED", "identify", "missing", "read"]

FILE_3D = "data_3d_h36m.npz"
PATTERN_2D = "data_2d_h36m_*.npz"
LAYOUTS = ("h36m_17", "coco_17", "h36m_16", "mpii_16")


def identify(root: Path) -> bool:
    """Whether the 3D file, or a 2D one, is in the folder."""
    return (root / FILE_3D).is_file() or any(root.glob(PATTERN_2D))


def _file_2d(root: Path) -> Path:
    """The 2D file: the annotations if there, else the first detector's."""
    files = sorted(root.glob(PATTERN_2D))
    if not files:
        raise DataError(
            f"{root}: no {PATTERN_2D}; VideoPose3D's DATASETS.md says how to make data_2d_h36m_gt"
        )
    return next((f for f in files if f.stem.endswith("_gt")), files[0])


def layout_of(path: Path, metadata: Any) -> Skeleton:
    """The skeleton of the 2D joints, from their number and their left and right ones.

    Raises:
        DataError: they are none of the known layouts.
    """
    try:
        count = int(metadata["num_joints"])
        left, right = (list(map(int, side)) for side in metadata["keypoints_symmetry"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: 'metadata' must have num_joints and keypoints_symmetry (left, right)"
        ) from error
    for name in LAYOUTS:
        skeleton = get_skeleton(name)
        pairs = {(i, j) for i, j in enumerate(skeleton.flip) if i != j}
        given = {*zip(left, right, strict=False), *zip(right, left, strict=False)}
        if len(skeleton) == count and pairs == given:
            return skeleton
    raise DataError(
        f"{path}: {count} joints with left {left} and right {right} are none of the known layouts "
        f"{', '.join(LAYOUTS)}"
    )


def _dict(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} is a {type(value).__name__}, expected a dict")
    return value


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    try:
        deep_path, flat_path = root / FILE_3D, _file_2d(root)
        deep = _dict(load_npz(deep_path, ("positions_3d",))["positions_3d"], str(deep_path))
        flat_file = load_npz(flat_path, ("positions_2d", "metadata"))
        flat = _dict(flat_file["positions_2d"], str(flat_path))
        layout = layout_of(flat_path, flat_file["metadata"])
    except DataError as error:
        fault(error)
        return []
    recordings = []
    for subject in sorted(deep, key=lambda s: (len(str(s)), str(s))):
        views: dict[str, list[tuple[str, int, NDArray[Any], NDArray[Any]]]] = {}
        actions = _dict(deep[subject], f"{deep_path}, {subject}")
        parsed = {name: split_name(str(name)) for name in actions}
        for name, joints in actions.items():
            where = f"{deep_path}, {subject} {name}"
            try:
                split = parsed[name]
                if split is None:
                    raise DataError(f"{where}: no action of Human3.6M")
                suffixes = [s[1] for s in parsed.values() if s is not None and s[0] == split[0]]
                trial = trials_of(str(subject), split[0], suffixes).get(split[1], 1)
                world = _positions(joints, where)
                cameras = _views(flat, flat_path, str(subject), str(name), len(world), len(layout))
            except DataError as error:
                fault(error)
                continue
            for camera, pixels in zip(CAMERAS, cameras, strict=True):
                views.setdefault(camera, []).append((split[0], trial, world, pixels))
        recordings += _with_cameras(root, str(subject), views, layout, flat_path, fault)
    return recordings


def _positions(joints: Any, where: str) -> NDArray[np.float32]:
    """(F, 17, 3) mm."""
    if not isinstance(joints, np.ndarray) or joints.dtype.kind != "f" or joints.ndim != 3:
        raise DataError(f"{where}: expected an array (frames, 32, 3) of metres")
    if joints.shape[1:] == (32, 3):
        joints = joints[:, JOINTS_32_TO_17]
    if joints.shape[1:] != (17, 3) or not len(joints):
        raise DataError(f"{where}: its shape is {joints.shape}, expected (frames, 32, 3)")
    extent = np.nanmax(np.abs(joints - joints[:, :1])) if np.isfinite(joints).any() else np.nan
    if not 0.2 < extent < 5:
        raise DataError(
            f"{where}: joints are up to {extent:.3g} from the pelvis; the unit must be metres"
        )
    return np.asarray(joints * 1000, np.float32)


def _views(
    flat: dict[Any, Any], path: Path, subject: str, action: str, frames: int, joints: int
) -> list[NDArray[Any]]:
    where = f"{path}, {subject} {action}"
    try:
        views = flat[subject][action]
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: not in the file, but in {FILE_3D}") from error
    if not isinstance(views, list | tuple | np.ndarray) or len(views) != len(CAMERAS):
        raise DataError(f"{where}: expected a list of {len(CAMERAS)} cameras")
    found = []
    for camera, view in zip(CAMERAS, views, strict=True):
        good = isinstance(view, np.ndarray) and view.dtype.kind == "f" and view.ndim == 3
        if not good or view.shape[1] != joints or view.shape[2] not in (2, 3):
            shape = getattr(view, "shape", type(view).__name__)
            raise DataError(f"{where}, camera {camera}: {shape}, expected (frames, {joints}, 2)")
        if len(view) < frames:
            raise DataError(
                f"{where}, camera {camera}: {len(view)} frames, fewer than the 3D's {frames}"
            )
        found.append(view[:frames, :, :2])
    return found


def _with_cameras(
    root: Path,
    subject: str,
    views: dict[str, list[tuple[str, int, NDArray[Any], NDArray[Any]]]],
    layout: Skeleton,
    path: Path,
    fault: Fault,
) -> list[Recording]:
    known: dict[tuple[str, str], Camera] = {}
    metadata, pickled = find_metadata(root), find_cameras(root)
    try:
        if metadata is not None:
            known = read_metadata(metadata).cameras
        elif pickled is not None:
            known = read_cameras(pickled)
    except DataError as error:
        fault(error)
    to_h36m = joint_map(layout)
    found: list[Recording] = []
    for name, takes in views.items():
        mapped = []
        for _, _, _, pixels in takes:
            joints, valid = to_h36m(np.asarray(pixels, np.float64))
            mapped.append(np.where(valid[..., None], joints, np.nan).astype(np.float32))
        camera = known.get((subject, name))
        if camera is None:
            direct = [j not in to_h36m.derived and j not in to_h36m.missing
                      for j in to_h36m.target.joints]  # fmt: skip
            points = np.concatenate([t[2][:, direct].reshape(-1, 3) for t in takes])
            seen = np.concatenate([m[:, direct].reshape(-1, 2) for m in mapped])
            camera = resect(name, points, seen, CAMERA_SIZES[name])
        if camera is None:
            fault(DataError(f"{path}: too few joints of {subject} to find camera {name} from"))
            continue
        for (action, trial, world, _), pixels in zip(takes, mapped, strict=True):
            found.append(
                Recording(
                    subject=subject,
                    action=action,
                    trial=trial,
                    camera=camera,
                    joints_2d=pixels,
                    joints_3d=world,
                    space="world",
                    fps=FPS,
                    where=f"{path}, {subject} {action}",
                )
            )
    order = {name: i for i, name in enumerate(CAMERAS)}
    return sorted(
        found, key=lambda r: (r.action, r.trial, order[r.camera.name if r.camera else ""])
    )


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    lines = what_is_missing(recordings, videos=False)
    lines.append(
        "no pictures in this format: image methods need the official videos "
        "(`zoo data prepare human36m`)"
    )
    if find_metadata(root) is None and find_cameras(root) is None:
        lines.append(
            "no cameras: found from 3D and 2D; metadata.xml or mmpose's cameras.pkl has them"
        )
    return lines
