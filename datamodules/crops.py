"""Person crops cut once (``zoo data prepare``) and read many times: the store and its reader.

A store is a folder. Each recording is a pair of files in ``recordings/``: ``NAME.bin``, its crops
as JPEG one behind the other, and ``NAME.npz``, where they are, which part of the source picture
they show, the poses and the camera. ``store.json`` says how they were made; it is written last. A
crop is read with one seek, so memory stays that of one batch whatever the size of the store.

A recording's ``.npz`` is renamed into place after its ``.bin``: what is there is whole, and a
killed preparation goes on where it was.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from datamodules.human36m import EXCLUSIONS, NOTED, what_is_missing
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, Picture, Recording
from datamodules.safe_pickle import load_npz
from zoo.errors import DataError, OutputError

__all__ = [
    "EXCLUSIONS",
    "NOTED",
    "STORE",
    "StoredCrops",
    "file_name",
    "identify",
    "is_stored",
    "missing",
    "read",
    "temporary",
    "write_json",
    "write_recording",
]

STORE = "store.json"
FOLDER = "recordings"
VERSION = 1
_ARRAYS = ("offsets", "to_source", "frames", "joints_2d", "joints_3d", "numbers", "words")
_CAMERA_NUMBERS = 2 + 9 + 3 + 2 + 9 + 3


@dataclass(frozen=True)
class StoredCrops:
    """Crops of one recording in a ``.bin`` file; see :class:`~datamodules.recordings.FrameSource`.

    Attributes:
        path: the ``.bin`` file.
        offsets: (F + 1,) int64 bytes; crop r lies from offset r to offset r + 1.
        to_source: (F, 2, 3) affine maps from px of the crops to px of the source pictures.
    """

    path: str
    offsets: NDArray[np.int64]
    to_source: NDArray[np.float64]

    def read(self, rows: Sequence[int]) -> list[Picture]:
        """See :class:`~datamodules.recordings.FrameSource`."""
        from PIL import Image

        found: dict[int, Picture] = {}
        try:
            with open(self.path, "rb", buffering=0) as stream:
                for row in sorted(set(rows)):
                    stream.seek(int(self.offsets[row]))
                    data = stream.read(int(self.offsets[row + 1] - self.offsets[row]))
                    with Image.open(io.BytesIO(data)) as picture:
                        pixels = np.array(picture.convert("RGB"))
                    found[row] = Picture(pixels, np.array(self.to_source[row], np.float64))
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: no such file; prepare the data again") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self.path}: a damaged crop; prepare the data again") from error
        return [found[row] for row in rows]

    def missing(self) -> str:
        """Whether the file is there, as long as its index says."""
        try:
            size = os.stat(self.path).st_size
        except OSError:
            return f"no file {self.path}"
        if size != self.offsets[-1]:
            return f"{self.path} has {size} bytes, its index says {self.offsets[-1]}"
        return ""


def file_name(recording: Recording) -> str:
    """The recording's name without ending."""
    camera = "" if recording.camera is None else f"_{recording.camera.name}"
    part = f"_part{recording.part}" if recording.part else ""
    return f"{recording.subject}_{recording.action}_{recording.trial}{part}{camera}"


def temporary(path: Path) -> Path:
    """A name beside ``path`` that says which process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    other = temporary(path)
    other.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(other, path)


def is_stored(out: Path, recording: Recording) -> bool:
    """Whether a recording is whole in the store."""
    base = out / FOLDER / file_name(recording)
    return base.with_name(base.name + ".npz").is_file()


def _camera_numbers(camera: Camera) -> NDArray[np.float64]:
    """Size, matrix, radial, tangential, rotation and position in a row; NaN = not known."""
    shapes = ((camera.matrix, 9), (camera.radial, 3), (camera.tangential, 2),
              (camera.rotation, 9), (camera.position, 3))  # fmt: skip
    parts = [np.full(n, np.nan) if v is None else np.asarray(v).ravel() for v, n in shapes]
    return np.concatenate([np.array(camera.size, dtype=np.float64), *parts])


def _camera(name: str, lens: str, numbers: NDArray[np.float64]) -> Camera:
    size, *parts = np.split(np.array(numbers), np.cumsum([2, 9, 3, 2, 9]))
    matrix, radial, tangential, rotation, position = (
        None if np.isnan(p).any() else p.reshape(-1, 3) if len(p) == 9 else p for p in parts
    )
    return Camera(
        name, (int(size[0]), int(size[1])), matrix, radial, tangential,
        "opencv" if lens == "opencv" else "h36m", rotation, position,
    )  # fmt: skip


def write_recording(
    out: Path,
    recording: Recording,
    rows: NDArray[np.int64],
    crops: Iterable[tuple[bytes, NDArray[np.float64]]],
) -> int:
    """Stores the crops of some rows of a recording, whole or not at all.

    Args:
        out: the store's folder.
        recording: with a camera.
        rows: to store, in order.
        crops: the JPEG and the (2, 3) map to the source picture of each row; consumed one by one.

    Returns:
        Bytes of pictures.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
        DataError: what the iterator raises, e.g. a video that ends too early.
    """
    assert recording.camera is not None
    folder = out / FOLDER
    target = folder / f"{file_name(recording)}.bin"
    index = folder / f"{file_name(recording)}.npz"
    offsets, maps = [0], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(target).open("wb") as stream:
            for data, to_source in crops:
                stream.write(data)
                offsets.append(offsets[-1] + len(data))
                maps.append(to_source)
            stream.flush()
            os.fsync(stream.fileno())
        joints = recording.camera_joints(rows)
        pixels = recording.pixels(rows)
        none = np.zeros((0, 0, 0), np.float32)
        words = [recording.subject, recording.action, recording.skeleton, recording.split,
                 recording.camera.name, recording.camera.lens]  # fmt: skip
        numbers = [recording.trial, recording.part, np.nan if recording.fps is None
                   else recording.fps]  # fmt: skip
        with temporary(index).open("wb") as stream:
            np.savez(
                stream,
                offsets=np.array(offsets, dtype=np.int64),
                to_source=np.array(maps, dtype=np.float64).reshape(-1, 2, 3),
                frames=recording.numbers[rows],
                joints_2d=none if pixels is None else pixels.astype(np.float32),
                joints_3d=none if joints is None else joints.astype(np.float32),
                numbers=np.concatenate([numbers, _camera_numbers(recording.camera)]),
                words=np.array(words),
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary(target), target)
        os.replace(temporary(index), index)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        for path in (temporary(target), temporary(index)):
            path.unlink(missing_ok=True)
    return offsets[-1]


# ---- the reader ---------------------------------------------------------------------------------


def identify(root: Path) -> bool:
    """Whether the folder is a finished or an unfinished store."""
    return (root / STORE).is_file() or (root / "settings.json").is_file()


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All recordings; see :mod:`datamodules.readers`."""
    if not (root / STORE).is_file():
        fault(DataError(f"{root}: its preparation is not finished; run `zoo data prepare` again"))
    else:
        try:
            version = json.loads((root / STORE).read_text(encoding="utf-8"))["version"]
            if version != VERSION:
                raise DataError(f"{root / STORE}: version {version}, expected {VERSION}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault(DataError(f"{root / STORE}: not a readable store; prepare the data again"))
            del error
        except DataError as error:
            fault(error)
            return []
    recordings = []
    for path in sorted((root / FOLDER).glob("*.npz")):
        try:
            recordings.append(_stored(path))
        except DataError as error:
            fault(error)
    return recordings


def _stored(path: Path) -> Recording:
    arrays = load_npz(path, _ARRAYS)
    words, numbers = [str(w) for w in arrays["words"]], arrays["numbers"]
    if len(words) != 6 or numbers.shape != (3 + _CAMERA_NUMBERS,):
        raise DataError(f"{path}: not an index of a store; prepare the data again")
    subject, action, skeleton, split, camera, lens = words
    count = len(arrays["frames"])
    if len(arrays["offsets"]) != count + 1 or arrays["to_source"].shape != (count, 2, 3):
        raise DataError(f"{path}: {count} frames, but another number of crops; prepare again")
    return Recording(
        subject=subject, action=action, trial=int(numbers[0]), part=int(numbers[1]),
        camera=_camera(camera, lens, numbers[3:]), skeleton=skeleton,
        joints_2d=arrays["joints_2d"] if arrays["joints_2d"].size else None,
        joints_3d=arrays["joints_3d"] if arrays["joints_3d"].size else None,
        fps=None if np.isnan(numbers[2]) else float(numbers[2]), frames=arrays["frames"],
        pictures=StoredCrops(
            str(path.with_suffix(".bin")), arrays["offsets"], arrays["to_source"]
        ),
        split=cast(Any, split if split in ("train", "val", "test") else ""), where=str(path),
    )  # fmt: skip


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks; see :mod:`datamodules.readers`."""
    return what_is_missing(recordings)
