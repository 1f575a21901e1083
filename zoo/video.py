"""Video files: frames in order in bounded memory, and MP4s that are whole or not there.

Frames are (H, W, 3) uint8 RGB, upright. One frame is decoded at a time and nothing is sought, so a
frame's number is exact. Reading and writing goes through OpenCV, in whichever of its packages
provides ``cv2``: what is used here is in all of them.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from zoo.errors import DataError, OutputError, UsageError
from zoo.files import whole_file

__all__ = [
    "MAX_FPS",
    "VIDEO_SUFFIXES",
    "VideoInfo",
    "VideoWriter",
    "camera_frames",
    "check_fps",
    "is_video",
    "opencv",
    "read_frames",
    "video_info",
]

Frame = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp", ".ogv"}
)
"""What tells a video from a picture; the content decides whether it can be read."""

MAX_FPS = 1000.0

_BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"moof", b"mfra", b"sidx",
     b"styp", b"pnot", b"meta", b"ssix", b"prft", b"emsg", b"pdin"}
)  # fmt: skip


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself.

    Attributes:
        path: the file.
        width: px, upright.
        height: px, upright.
        fps: frames a second, the mean one where the rate varies.
        frames: their number as the container states it; 0 where it does not.
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int


def is_video(source: Any) -> bool:
    """Whether ``source`` is a path with a video's suffix (the file need not exist)."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES


def check_fps(fps: float, where: str) -> float:
    """The rate, if it is one.

    Raises:
        zoo.errors.UsageError: it is not above 0 and at most ``MAX_FPS``.
    """
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        raise UsageError(f"{where} is {fps:g} frames a second, expected 0 < fps <= {MAX_FPS:g}")
    return float(fps)


# ---- reading ------------------------------------------------------------------------------------


def video_info(path: str | Path, fps: float | None = None) -> VideoInfo:
    """Opens a video and reads its header and first frame.

    Args:
        path: the file.
        fps: its rate, for a file whose header has none or a wrong one.

    Raises:
        zoo.errors.DataError: no such file, no video, a truncated or corrupt one, or no rate.
    """
    capture, info = _open(Path(path), fps)
    capture.release()
    return info


def read_frames(
    path: str | Path, *, start: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[tuple[int, Frame]]:
    """Yields number and picture of the frames ``start, start + step, ...`` below ``stop``.

    The file is opened at once, frames are decoded as they are asked for, and one is in memory.
    Frames in between are passed over without being converted.

    Args:
        path: the file.
        start: number of the first frame; the video's first is 0.
        stop: number after the last one; ``None`` reads to the end.
        step: distance of the frames.

    Raises:
        zoo.errors.DataError: see ``video_info``; or, after its last good frame, the file ends
            before the number of frames that it states.
        zoo.errors.UsageError: ``start``, ``stop`` or ``step`` make no range.
    """
    if start < 0 or step < 1 or (stop is not None and stop < start):
        raise UsageError(f"frames {start} to {stop} by {step} are no range of a video")
    capture, info = _open(Path(path), fps=1.0)  # the rate is nothing to this function
    return _frames(capture, info, start, stop, step)


def _frames(
    capture: Any, info: VideoInfo, start: int, stop: int | None, step: int
) -> Iterator[tuple[int, Frame]]:
    number = 0
    try:
        while stop is None or number < stop:
            if not capture.grab():
                break
            if number >= start and (number - start) % step == 0:
                good, frame = capture.retrieve()
                if not good or frame is None:
                    break
                yield number, _to_rgb(frame)
            number += 1
    finally:
        capture.release()
    wanted = info.frames if stop is None else min(stop, info.frames)
    # Containers without an index estimate the number, and an edit list hides a frame or two.
    if wanted - number > max(2, wanted // 50):
        raise DataError(
            f"{info.path} is truncated or corrupt: frame {number} of {info.frames} cannot be read"
        )


def camera_frames(number: int) -> tuple[VideoInfo, Iterator[Frame]]:
    """Opens the webcam ``number`` (0 is the first); its frames come until the caller stops.

    Returns:
        Size and rate as the driver states them (30 fps where it does not; ``frames`` is 0), and the
        frames.

    Raises:
        zoo.errors.DataError: there is no such camera, or it gives no picture.
    """
    if number < 0:
        raise UsageError(f"webcams are numbered from 0, not {number}")
    cv2 = opencv()
    with _quiet(cv2):
        capture = cv2.VideoCapture(number)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a slow reader sees the present, not the past
        good, frame = capture.read() if capture.isOpened() else (False, None)
    if not good or frame is None:
        capture.release()
        raise DataError(
            f"no webcam {number}: nothing is connected there, or another program has it"
        )
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    if not (math.isfinite(fps) and 0 < fps <= MAX_FPS):
        fps = 30.0
    info = VideoInfo(f"webcam {number}", frame.shape[1], frame.shape[0], fps, 0)

    def frames(first: Any) -> Iterator[Frame]:
        try:
            yield _to_rgb(first)
            while True:
                good, frame = capture.read()
                if not good or frame is None:
                    raise DataError(f"the webcam {number} gives no more pictures")
                yield _to_rgb(frame)
        finally:
            capture.release()

    return info, frames(frame)


def _open(path: Path, fps: float | None) -> tuple[Any, VideoInfo]:
    """The capture at frame 0, and what is known of the file."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise DataError(f"{path} is a folder, expected a video")
        if size == 0:
            raise DataError(f"{path} is empty (0 bytes), expected a video")
        _check_boxes(path, size)
    except FileNotFoundError as error:
        raise DataError(f"no video {path}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    cv2 = opencv()
    with _quiet(cv2):
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        good, frame = capture.read() if capture.isOpened() else (False, None)
        if good and frame is not None:
            height, width = frame.shape[:2]
            stated, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
            capture.release()
            capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not good or frame is None:
        capture.release()
        raise DataError(
            f"{path} is not a video that can be read (MP4, MOV, AVI, ...): truncated, corrupt, or "
            "of an unknown kind"
        )
    rate = float(stated) if fps is None else check_fps(fps, f"the rate given for {path}")
    if not (math.isfinite(rate) and 0 < rate <= MAX_FPS):
        capture.release()
        raise DataError(f"{path} states {rate:g} frames a second; give the rate with --fps")
    frames = int(count) if math.isfinite(count) and 0 < count < 2**53 else 0
    return capture, VideoInfo(str(path), width, height, rate, frames)


def _check_boxes(path: Path, size: int) -> None:
    """That the top-level boxes of an MP4 or MOV lie inside the file.

    A decoder would read a cut file up to the cut, or say no more than that it cannot.
    """
    at = 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if kind not in _BOXES or (at == 0 and kind not in (b"ftyp", b"moov", b"mdat", b"wide")):
                return  # another kind of file, or something appended
            if length == 0:  # to the end of the file
                return
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                return
            if at + length > size:
                raise DataError(
                    f"{path} is truncated: it has {size} bytes, its parts add up to {at + length}"
                )
            at += length


def _to_rgb(frame: Any) -> Frame:
    cv2 = opencv()
    if frame.ndim == 2 or frame.shape[2] == 1:
        return cast(Frame, cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB))
    return cast(Frame, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def opencv() -> Any:
    """OpenCV, imported when the first video is touched.

    ``opencv-python`` and ``opencv-python-headless`` put their files into the same folder: both
    work, also together, but uninstalling one takes files of the other.
    """
    # FFmpeg's own messages would stand beside the one line of the error.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        reason = (str(error).splitlines() or ["not installed"])[0]
        raise DataError(
            f"videos need OpenCV, which cannot be imported: {reason}{_REPAIR}"
        ) from error
    if not hasattr(cv2, "VideoCapture"):
        raise DataError(f"videos need OpenCV, whose installation is broken{_REPAIR}")
    return cv2


_REPAIR = "; pip install --force-reinstall opencv-python-headless"


@contextlib.contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """No log lines of OpenCV on stderr."""
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 has them there, OpenCV 4 on top
    level = logging.getLogLevel()
    logging.setLogLevel(0)  # silent
    try:
        yield
    finally:
        logging.setLogLevel(level)


# ---- writing ------------------------------------------------------------------------------------


class VideoWriter:
    """Writes an MP4 (MPEG-4 video, no sound); a context manager.

    The file is written under a temporary name and renamed when the block ends well; an exception,
    an interruption included, leaves what was there before.

    Args:
        path: the file, ``.mp4``; its folder is made when it does not exist.
        fps: frames a second.

    Raises:
        zoo.errors.UsageError: another suffix, or a rate that is none.
        zoo.errors.OutputError: the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.fps = Path(path), check_fps(fps, f"the rate of {path}")
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"{path}: videos are written as .mp4")
        self.frames = 0
        """How many were written."""
        self._writer: Any = None
        self._size = (0, 0)
        self._temporary = Path()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VideoWriter:
        self._temporary = self._stack.enter_context(whole_file(self.path))
        return self

    def write(self, frame: Frame) -> None:
        """Appends a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, every one of the first one's size. Odd sides get one more
                px, as the codec wants even ones.

        Raises:
            zoo.errors.DataError: not such a frame.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise DataError(
                f"a video's frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype.name}"
            )
        cv2 = opencv()
        height, width = frame.shape[:2]
        if self._writer is None:
            self._size = (width, height)
            even = (width + width % 2, height + height % 2)
            with _quiet(cv2):
                kind = cv2.VideoWriter_fourcc(*"mp4v")
                self._writer = cv2.VideoWriter(
                    str(self._temporary), cv2.CAP_FFMPEG, kind, self.fps, even
                )
            if not self._writer.isOpened():
                raise OutputError(f"cannot write {self.path}: no MPEG-4 encoder in this OpenCV")
        if (width, height) != self._size:
            first = f"{self._size[0]} x {self._size[1]}"
            raise DataError(
                f"frame {self.frames} of {self.path} has {width} x {height} px, the first {first}"
            )
        if width % 2 or height % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if self._writer is not None:
                self._writer.release()
            if error is not None:
                raise error
            self._check()

    def _check(self) -> None:
        """That the file holds what was written: the encoder does not tell of a full disk."""
        if self.frames == 0:
            raise OutputError(f"cannot write {self.path}: a video of no frames")
        try:
            written = video_info(self._temporary, self.fps).frames
        except DataError as broken:
            raise OutputError(f"cannot write {self.path}: the disk may be full") from broken
        if written != self.frames:
            raise OutputError(
                f"cannot write {self.path}: {written} of {self.frames} frames arrived; the disk "
                "may be full"
            )
