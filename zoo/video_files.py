"""Files of a video's poses, one record a frame, written while the frames come.

The JSON is that of :func:`zoo.pose.save_poses`, with ``frames`` in the place of ``poses``;
:func:`zoo.pose.load_poses` reads both. What is in memory does not grow with the video.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError, OutputError
from zoo.files import whole_file
from zoo.pose import FORMAT, SHARED, VERSION, Pose, plain_record
from zoo.predict_video import FramePoses
from zoo.skeleton import get_skeleton

__all__ = ["JsonWriter", "NpzWriter", "VideoHeader"]


@dataclass(frozen=True)
class VideoHeader:
    """What all records of a video share.

    Attributes:
        source: path of the video.
        fps: frames a second.
        skeleton: of the poses, for a video without any.
        method: its name.
        smoothing: what the 3D was smoothed with; ``""``: nothing.
    """

    source: str
    fps: float
    skeleton: str = "h36m_17"
    method: str = ""
    smoothing: str = ""

    def empty_pose(self) -> Pose:
        """A pose with what the header says."""
        joints = len(get_skeleton(self.skeleton))
        zeros = np.zeros((joints, 3), np.float32)
        return Pose(zeros, skeleton=self.skeleton, method=self.method)


class _Writer:
    """A file that is whole when the block ends well, or not there; a context manager."""

    def __init__(self, path: str | Path, header: VideoHeader) -> None:
        self.path, self.header = Path(path), header
        self._stack = contextlib.ExitStack()
        self._temporary = Path()

    def __enter__(self) -> Any:
        self._temporary = self._stack.enter_context(whole_file(self.path))
        try:
            self._open()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                raise error
            with self._named():
                self._close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _open(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class JsonWriter(_Writer):
    """Writes poses as JSON, a frame a line."""

    def _open(self) -> None:
        self._file: IO[str] = self._stack.enter_context(self._temporary.open("w", encoding="utf-8"))
        self._shared: dict[str, Any] | None = None

    def write(self, frame: FramePoses) -> None:
        """Appends a frame."""
        with self._named():
            first = ",\n"
            if self._shared is None:
                first = self._head(frame.poses[0] if frame.poses else self.header.empty_pose())
            people = [plain_record(pose, self._shared or {}) for pose in frame.poses]
            record = {"frame": frame.frame, "time_s": round(frame.time, 6), "poses": people}
            self._file.write(first + json.dumps(record, allow_nan=False))

    def _head(self, first: Pose) -> str:
        from zoo import __version__

        values = first.to_dict()
        header = self.header
        self._shared = {**{key: values[key] for key in SHARED}, "source": header.source}
        document = {
            "format": FORMAT, "version": VERSION, "zoo_version": __version__, **self._shared,
            "fps": header.fps, "smoothing": header.smoothing,
        }  # fmt: skip
        return json.dumps(document, indent=1)[:-2] + ',\n "frames": [\n'

    def _close(self) -> None:
        if self._shared is None:
            self._file.write(self._head(self.header.empty_pose()))
        self._file.write("\n]}\n")
        self._file.flush()


class NpzWriter(_Writer):
    """Writes poses as NumPy arrays, a row a frame.

    ======================================  =======================================================
    ``joints_3d`` (F, P, J, 3)              mm; NaN where there is nobody, or no such joint
    ``joints_2d`` (F, P, J, 2)              px of the frame
    ``scores_2d``, ``std_3d`` (F, P, J)     as in :class:`~zoo.pose.Pose`
    ``box`` (F, P, 4), ``root_3d`` (F, P, 3)  px; mm
    ``person`` (F, P)                       number of the person; -1: nobody
    ``frame_index``, ``time_s`` (F,)        number and time of the frame
    ``fps``, ``source``, ``smoothing``, ``units``, ``frame``, ``origin``, ``skeleton``,
    ``joint_names``, ``method``             as in the JSON file
    ======================================  =======================================================

    P is the largest number of people in a frame; those of a frame stand in the order of their
    numbers. An array that no pose has is left out.
    """

    _BLOCK = 512  # frames

    def _open(self) -> None:
        self._spool: IO[bytes] = self._stack.enter_context(
            tempfile.TemporaryFile(dir=self.path.parent)
        )
        self._frames, self._counts = array("q"), array("q")
        self._kind: np.dtype[Any] | None = None
        self._first: Pose | None = None
        self._has: set[str] = set()

    def write(self, frame: FramePoses) -> None:
        """Appends a frame.

        Raises:
            zoo.errors.DataError: its poses have other joints than those before.
        """
        with self._named():
            for pose in frame.poses:
                self._row(pose)
            self._frames.append(frame.frame)
            self._counts.append(len(frame.poses))

    def _row(self, pose: Pose) -> None:
        if self._kind is None or self._first is None:
            self._first, self._kind = pose, _row_type(len(pose.joint_names))
        if pose.joint_names != self._first.joint_names:
            raise DataError(
                f"{self.path}: frame {pose.frame_index} has other joints than the first"
            )
        row = np.zeros((), self._kind)
        row["person"] = pose.person
        for name in _ARRAYS:
            value = getattr(pose, name)
            row[name] = np.nan if value is None else value
            if value is not None:
                self._has.add(name)
        self._spool.write(row.tobytes())

    def _close(self) -> None:
        first = self._first or self.header.empty_pose()
        kind = self._kind or _row_type(len(first.joint_names))
        frames = np.array(self._frames, dtype=np.int64)
        people = max(self._counts, default=0)
        with zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as target:
            for name in ("person", *(n for n in _ARRAYS if n in self._has or n == "joints_3d")):
                field = kind[name]
                empty = np.array(-1 if name == "person" else np.nan, field.base)
                shape = (len(frames), people, *field.shape)
                with _member(target, name) as file:
                    _header(file, field.base, shape)
                    for block in self._blocks(name, kind, people, empty):
                        file.write(block.tobytes())
            header = self.header
            small: dict[str, Any] = {
                "frame_index": frames, "time_s": frames / header.fps, "fps": header.fps,
                "source": header.source, "smoothing": header.smoothing, "units": first.units,
                "frame": first.frame, "origin": first.origin, "skeleton": first.skeleton,
                "joint_names": first.joint_names, "method": first.method,
            }  # fmt: skip
            for name, value in small.items():
                with _member(target, name) as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)

    def _blocks(
        self, name: str, kind: np.dtype[Any], people: int, empty: npt.NDArray[Any]
    ) -> Iterator[npt.NDArray[Any]]:
        """The (frames, P, ...) rows of one array, some frames at a time."""
        self._spool.seek(0)
        for start in range(0, len(self._counts), self._BLOCK):
            counts = self._counts[start : start + self._BLOCK]
            rows = np.frombuffer(self._spool.read(sum(counts) * kind.itemsize), kind)
            block = np.empty((len(counts), people, *kind[name].shape), kind[name].base)
            block[...] = empty
            at = 0
            for row, count in enumerate(counts):
                block[row, :count] = rows[name][at : at + count]
                at += count
            yield block


_ARRAYS = ("joints_3d", "joints_2d", "scores_2d", "std_3d", "box", "root_3d")


def _row_type(joints: int) -> np.dtype[Any]:
    shapes: dict[str, tuple[int, ...]] = {
        "joints_3d": (joints, 3), "joints_2d": (joints, 2), "scores_2d": (joints,),
        "std_3d": (joints,), "box": (4,), "root_3d": (3,),
    }  # fmt: skip
    fields: list[Any] = [("person", "<i8")]
    return np.dtype(fields + [(name, "<f4", shapes[name]) for name in _ARRAYS])


def _member(target: zipfile.ZipFile, name: str) -> IO[bytes]:
    return target.open(f"{name}.npy", "w", force_zip64=True)


def _header(file: IO[bytes], kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape},
    )
