"""A user's own recordings: one documented folder layout, its reader and its data module.

``docs/own-data.md`` is the page for users. A folder holds ``dataset.json``, which lists cameras and
recordings, a file of poses for each recording (``.npz`` or ``.json``), and pictures or videos::

    dataset.json
    poses/S1_Walking_1.front.npz     joints_2d, joints_3d, frames, boxes, scores_2d, occluded
    images/S1_Walking_1.front/*.jpg  or  videos/S1_Walking_1.front.mp4

Only ``dataset.json`` and joints, 2D or 3D, are needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, FrameSource, ImageFiles, Recording, VideoFile
from zoo.errors import DataError, suggest
from zoo.protocols import Protocol
from zoo.skeleton import SKELETONS

__all__ = ["FORMAT", "INDEX", "OwnDataModule", "identify", "missing", "read"]

INDEX = "dataset.json"
FORMAT = "zoo-own-1"

_ARRAYS = ("joints_2d", "joints_3d", "frames", "boxes", "scores_2d", "occluded")
_TOP = (
    "format", "name", "licence", "skeleton", "units", "up", "fps", "test_subjects", "val_subjects",
    "cameras", "recordings", "notes",
)  # fmt: skip
_CAMERA = ("size", "matrix", "lens", "radial", "tangential", "rotation", "position")
_RECORDING = (
    "subject", "action", "trial", "camera", "poses", "images", "video", "split", "space", "fps",
    "skeleton", "units", "notes",
)  # fmt: skip
_UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""(3, 3) from a world with y up to one with z up."""
_BODY_MM = (150.0, 4000.0)
"""What a person's joints may span."""


def identify(root: Path) -> bool:
    """Whether there is a ``dataset.json``."""
    return (root / INDEX).is_file()


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What other parts of the zoo could use and the folder lacks."""
    lines = []
    if not any(r.joints_3d is not None for r in recordings):
        lines.append("no 3D: for training 2D parts and for --data mixed only (add joints_3d)")
    if not any(r.pictures is not None for r in recordings):
        lines.append("no pictures: for methods that take keypoints only (add images or video)")
    if not any(r.split == "test" for r in recordings):
        lines.append(f"nothing to test on: name test_subjects in {INDEX}, or split: test")
    if len({r.subject for r in recordings if r.split != "test"}) < 2:
        lines.append("one subject for training: none can be held out, so nothing chooses the best")
    if any(r.joints_3d is not None and r.camera is None for r in recordings):
        lines.append("3D without a camera: its projection cannot be checked (add cameras)")
    return lines


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    path = root / INDEX
    try:
        document = _index(path)
        tests = _names(document, "test_subjects", str(path))
    except DataError as error:
        fault(error)
        return []
    cameras: dict[str, Camera] = {}
    for name, entry in document.get("cameras", {}).items():
        try:
            cameras[name] = _camera(name, entry, document, f"{path}: camera {name}")
        except DataError as error:
            fault(error)
    found: list[Recording] = []
    seen: set[tuple[Any, ...]] = set()
    for number, entry in enumerate(document["recordings"], 1):
        where = f"{path}: recording {number}"
        try:
            recording = _recording(root, entry, document, cameras, tests, where)
            camera = recording.camera.name if recording.camera else ""
            key = (recording.subject, recording.action, recording.trial, camera)
            if key in seen:
                raise DataError(f"{where}: {recording.label} stands twice; give it another trial")
            seen.add(key)
            found.append(recording)
        except DataError as error:
            fault(error)
    skeletons = sorted({r.skeleton for r in found})
    if len(skeletons) > 1:
        fault(DataError(f"{path}: recordings of different skeletons: {', '.join(skeletons)}"))
        found = [r for r in found if r.skeleton == found[0].skeleton]
    return sorted(found, key=lambda r: r.label)


# ---- dataset.json --------------------------------------------------------------------------------


def _index(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {' '.join(str(error).split())}") from error
    _keys(document, _TOP, str(path))
    if document.get("format") != FORMAT:
        raise DataError(f"{path}: format is {document.get('format')!r}, not {FORMAT!r}")
    if not isinstance(document.get("recordings"), list) or not document["recordings"]:
        raise DataError(f"{path}: recordings must be a list with at least one entry")
    if not isinstance(document.get("cameras", {}), dict):
        raise DataError(f"{path}: cameras must map names to cameras")
    if document.get("up", "z") not in ("z", "y"):
        raise DataError(
            f"{path}: up is {document['up']!r}; the world's axis that points up, z or y"
        )
    return dict(document)


def _keys(entry: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected keys such as {', '.join(known[:4])}")
    for key in entry:
        if key not in known:
            raise DataError(f"{where}: {suggest(str(key), known, 'key')}")


def _names(document: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    names = document.get(key, [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(f"{where}: {key} must be a list of subjects' names")
    return tuple(names)


def _unit(entry: Mapping[str, Any], document: Mapping[str, Any], where: str) -> float:
    unit = entry.get("units", document.get("units", "mm"))
    if unit not in _UNITS:
        raise DataError(f"{where}: {suggest(str(unit), _UNITS, 'unit')}")
    return _UNITS[unit]


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} must be {shape} numbers") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{where} must be {shape} finite numbers, not {array.shape}")
    return array


def _camera(name: str, entry: Any, document: Mapping[str, Any], where: str) -> Camera:
    _keys(entry, _CAMERA, where)
    shapes = {
        "size": (2,), "matrix": (3, 3), "radial": (3,), "tangential": (2,), "rotation": (3, 3),
        "position": (3,),
    }  # fmt: skip
    if isinstance(entry.get("radial"), list) and len(entry["radial"]) == 2:
        entry = {**entry, "radial": [*entry["radial"], 0.0]}
    given: dict[str, Any] = {
        key: _numbers(entry[key], shape, f"{where}: {key}")
        for key, shape in shapes.items()
        if entry.get(key) is not None
    }
    lens = entry.get("lens", "opencv")
    if lens not in ("opencv", "h36m"):
        raise DataError(f"{where}: {suggest(str(lens), ('opencv', 'h36m'), 'lens')}")
    if ("rotation" in given) != ("position" in given):
        raise DataError(f"{where}: rotation and position belong together")
    if "position" in given:
        given["position"] = given["position"] * _unit({}, document, where)
        if document.get("up") == "y":
            given["position"] = _Y_UP @ given["position"]
            given["rotation"] = given["rotation"] @ _Y_UP.T
    size = given.pop("size", (0, 0))
    return Camera(name=name, size=(int(size[0]), int(size[1])), lens=lens, **given)


# ---- recordings ----------------------------------------------------------------------------------


def _recording(
    root: Path,
    entry: Any,
    document: Mapping[str, Any],
    cameras: Mapping[str, Camera],
    tests: Sequence[str],
    where: str,
) -> Recording:
    _keys(entry, _RECORDING, where)
    for key in ("subject", "poses"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise DataError(f"{where}: {key} is missing")
    where = f"{where} ({entry['poses']})"
    skeleton = entry.get("skeleton", document.get("skeleton", "h36m_17"))
    if skeleton not in SKELETONS:
        raise DataError(f"{where}: {suggest(str(skeleton), SKELETONS, 'skeleton')}")
    trial = entry.get("trial", 1)
    if not isinstance(trial, int) or isinstance(trial, bool) or trial < 1:
        raise DataError(f"{where}: trial is {trial!r}; it is a number from 1")
    split = entry.get("split", "test" if entry["subject"] in tests else "")
    if split not in ("", "train", "val", "test"):
        raise DataError(f"{where}: {suggest(str(split), ('train', 'val', 'test'), 'split')}")
    space = entry.get("space", "camera")
    if space not in ("camera", "world"):
        raise DataError(f"{where}: {suggest(str(space), ('camera', 'world'), 'space')}")
    name = entry.get("camera")
    if name is not None and name not in cameras:
        raise DataError(f"{where}: {suggest(str(name), cameras, 'camera')}")
    fps = entry.get("fps", document.get("fps"))
    if fps is not None and not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
        raise DataError(
            f"{where}: fps is {fps!r}; frames a second, or left out for single pictures"
        )
    arrays = _poses(_inside(root, entry["poses"], where), where)
    deep = arrays.get("joints_3d")
    if deep is not None:
        deep = deep * _unit(entry, document, where)
        if space == "world" and document.get("up") == "y":
            deep = deep @ _Y_UP.T
        _check_span(deep, where)
    flat = arrays.get("joints_2d")
    for key in ("joints_2d", "joints_3d"):
        if key in arrays and not np.isfinite(arrays[key]).any():
            raise DataError(
                f"{where}: {key} has no finite number; leave it out where there is none"
            )
    count = len(flat if flat is not None else deep if deep is not None else [])
    frames = arrays.get("frames")
    return Recording(
        subject=entry["subject"],
        action=str(entry.get("action", "")),
        trial=trial,
        camera=None if name is None else cameras[name],
        skeleton=skeleton,
        joints_2d=None if flat is None else flat.astype(np.float32),
        joints_3d=None if deep is None else deep.astype(np.float32),
        space=space,
        fps=None if fps is None else float(fps),
        frames=None if frames is None else _whole(frames, where),
        pictures=_pictures(root, entry, frames, count, where),
        boxes=arrays.get("boxes"),
        scores_2d=arrays.get("scores_2d"),
        occluded=_flags(arrays.get("occluded"), where),
        split=split,
        where=where,
    )


def _inside(root: Path, name: str, where: str) -> Path:
    """A path below the folder: files from elsewhere would make the data set incomplete."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{where}: {name} is outside of the folder")
    return path


def _poses(path: Path, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file of poses, float64; null in JSON is NaN."""
    if path.suffix not in (".npz", ".json"):
        raise DataError(f"{where}: poses are .npz or .json files")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                content: dict[str, Any] = {key: file[key] for key in file.files}
        else:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file") from error
    except Exception as error:  # a damaged archive raises many kinds, also zipfile's own
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: not readable ({reason or type(error).__name__})") from error
    _keys(content, _ARRAYS, where)
    arrays = {}
    for key, value in content.items():
        try:
            arrays[key] = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {key} is no regular array of numbers") from error
    return arrays


def _whole(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or (values < 0).any():
        raise DataError(f"{where}: frames must be whole numbers from 0")
    return values.astype(np.int64)


def _flags(values: NDArray[Any] | None, where: str) -> NDArray[np.bool_] | None:
    if values is None:
        return None
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"{where}: occluded must hold true and false, or 1 and 0")
    return values.astype(np.bool_)


def _check_span(deep: NDArray[np.float64], where: str) -> None:
    """Refuses 3D in another unit than it says."""
    if deep.ndim != 3 or deep.shape[-1] != 3 or not np.isfinite(deep).any():
        return  # said elsewhere
    known = deep[np.isfinite(deep).all((-1, -2))]
    if not len(known):
        return
    span = float(np.median(np.ptp(known, axis=1).max(-1)))
    if not _BODY_MM[0] <= span <= _BODY_MM[1]:
        raise DataError(
            f"{where}: the 3D joints of a person span {span:.3g} mm; is `units` (mm, cm, m) right?"
        )


def _pictures(
    root: Path, entry: Mapping[str, Any], frames: NDArray[Any] | None, count: int, where: str
) -> FrameSource | None:
    """Where the pictures of the rows are."""
    images, video = entry.get("images"), entry.get("video")
    if images is not None and video is not None:
        raise DataError(f"{where}: images or video, not both")
    if video is not None:
        numbers = () if frames is None else tuple(int(f) for f in _whole(frames, where))
        return VideoFile(str(_inside(root, str(video), where)), numbers)
    if images is None:
        return None
    if isinstance(images, list):
        names = [str(_inside(root, str(n), where).relative_to(root.resolve())) for n in images]
        if len(names) != count:
            raise DataError(f"{where}: {len(names)} images for {count} rows of poses")
        return ImageFiles(str(root), tuple(names))
    folder = _inside(root, str(images), where)
    if not folder.is_dir():
        raise DataError(f"{where}: no folder {images}")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES)
    if len(names) != count and frames is not None:
        wanted = _whole(frames, where)
        if len(wanted) and wanted.max() < len(names):
            names = [names[i] for i in wanted]
    if len(names) != count:
        raise DataError(
            f"{where}: {images} has {len(names)} pictures for {count} rows of poses; list the "
            "files, or give frames that count in the folder's order"
        )
    return ImageFiles(str(folder), tuple(names))


# ---- the data module -----------------------------------------------------------------------------


class OwnDataModule(FileDataModule):
    """Own recordings in the layout of ``docs/own-data.md``: ``--data own --data.root DIR``.

    Tested on ``test_subjects`` of ``dataset.json``. Held out of training for validation are its
    ``val_subjects``, by default the last of the other subjects, if there are two or more;
    ``--data.val_subjects "[]"`` trains on all.
    """

    dataset: ClassVar[str] = "own"

    def base_protocol(self) -> Protocol:
        """All frames of the test subjects, root on root; named after the folder's ``name``."""
        protocol = super().base_protocol()
        if self.protocol_name:
            return protocol
        name = _index(Path(self.root) / INDEX).get("name")
        return replace(protocol, dataset=f"own data ({name})" if name else "own data")

    def held_out(self) -> Sequence[str]:
        """The folder's ``val_subjects``, or the last training subject of several."""
        path = Path(self.root) / INDEX
        named = _names(_index(path), "val_subjects", str(path))
        if named:
            return named
        if any(r.split == "val" for r in self.recordings):
            return ()
        others = sorted({r.subject for r in self.recordings if r.split != "test"}, key=_natural)
        return others[-1:] if len(others) > 1 else ()


def _natural(name: str) -> tuple[str, int, str]:
    """S2 before S11."""
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :]
    return letters, int(digits) if digits else -1, name
