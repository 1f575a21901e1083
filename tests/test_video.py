"""Video files: frames in order, sizes, rates, bounded memory; broken files give one line."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from zoo.errors import DataError, OutputError, UsageError
from zoo.video import (
    VideoWriter,
    camera_frames,
    is_video,
    read_frames,
    video_info,
)

Frame = npt.NDArray[np.uint8]


def numbered(number: int, width: int = 64, height: int = 48) -> Frame:
    """A frame whose left half's grey says its number; the right half is red."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2] = 20 + 7 * (number % 30)  # the codec takes some 2 of it
    frame[:, width // 2 :, 0] = 200
    return frame


def number_of(frame: Frame) -> int:
    return round((float(frame[10:-10, 8 : frame.shape[1] // 2 - 8].mean()) - 18) / 7)


def write(path: Path, frames: int = 30, fps: float = 25.0, **size: int) -> Path:
    with VideoWriter(path, fps) as writer:
        for number in range(frames):
            writer.write(numbered(number, **size))
    return path


def only(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("fps", [25.0, 50.0, 29.97, 12.5])
def test_frames_come_back_in_order_with_size_rate_and_number(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "deep" / "a.mp4", 30, fps)
    info = video_info(path)
    assert (info.width, info.height, info.frames) == (64, 48, 30)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    got = list(read_frames(path))
    assert [n for n, _ in got] == list(range(30))
    assert [number_of(f) for _, f in got] == list(range(30))
    right = got[0][1][8:-8, 40:-8].reshape(-1, 3).mean(0)
    assert right == pytest.approx([200, 0, 0], abs=12)
    assert all(f.dtype == np.uint8 and f.shape == (48, 64, 3) for _, f in got)
    assert only(path.parent) == ["a.mp4"]


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, None, 1), (3, None, 5), (0, 7, 2), (29, None, 1), (4, 4, 1)]
)
def test_a_range_is_the_slice_of_all_frames(
    tmp_path: Path, start: int, stop: int | None, step: int
) -> None:
    path = write(tmp_path / "a.mp4")
    got = list(read_frames(path, start=start, stop=stop, step=step))
    assert [n for n, _ in got] == list(range(30))[start:stop:step]
    assert [number_of(f) for _, f in got] == [n for n, _ in got]


def test_odd_sides_get_one_px_more(tmp_path: Path) -> None:
    info = video_info(write(tmp_path / "a.mp4", 3, width=63, height=47))
    assert (info.width, info.height) == (64, 48)


def test_frames_are_decoded_when_asked_for_and_one_is_in_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 40, width=320, height=240)
    tracemalloc.start()
    try:
        peaks = []
        for length in (5, 40):
            tracemalloc.reset_peak()
            for _ in itertools.islice(read_frames(path), length):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    size = 320 * 240 * 3
    assert peaks[0] > size  # the frames are what is measured
    assert peaks[1] < peaks[0] + size


def _empty(path: Path, good: bytes) -> None:
    path.write_bytes(b"")


def _text(path: Path, good: bytes) -> None:
    path.write_text("this is no video\n" * 100)


def _half(path: Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


def _last_byte(path: Path, good: bytes) -> None:
    path.write_bytes(good[:-1])


def _zeros(path: Path, good: bytes) -> None:
    path.write_bytes(b"\0" * len(good))


def _header_broken(path: Path, good: bytes) -> None:
    at = good.index(b"moov")
    path.write_bytes(good[: at + 4] + b"\xff" * 200 + good[at + 204 :])


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_empty, "0 bytes"),
        (_text, "not a video"),
        (_half, "truncated"),
        (_last_byte, "truncated"),
        (_zeros, "not a video"),
        (_header_broken, "not a video"),
    ],
)
def test_a_broken_file_gives_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], breaks: Any, says: str
) -> None:
    good, path = write(tmp_path / "good.mp4").read_bytes(), tmp_path / "bad.mp4"
    breaks(path, good)
    for call in (video_info, read_frames):
        with pytest.raises(DataError, match=says) as caught:
            call(path)
        assert "\n" not in str(caught.value)
        assert "bad.mp4" in str(caught.value)
    assert capfd.readouterr().err == ""  # and nothing of the decoder's


def test_frames_that_are_lost_in_the_middle_are_told(tmp_path: Path) -> None:
    """The container states 30; the data of the last 15 is gone, sizes and index still agree."""
    path = write(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = (start + end) // 2
    data[middle:end] = b"\0" * (end - middle)
    path.write_bytes(bytes(data))
    got = []
    with pytest.raises(DataError, match=r"truncated or corrupt: frame \d+ of 30"):  # noqa: PT012
        for number, _ in read_frames(path):
            got.append(number)
    assert 0 < len(got) < 30
    assert got == list(range(len(got)))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video"):
        video_info(tmp_path / "none.mp4")
    with pytest.raises(DataError, match="is a folder"):
        read_frames(tmp_path)


def test_a_rate_of_zero_is_an_error_and_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    path = write(tmp_path / "a.mp4")
    original = cv2.VideoCapture

    class Rateless:
        def __init__(self, *args: Any) -> None:
            self.capture = original(*args)

        def get(self, what: int) -> float:
            return 0.0 if what == cv2.CAP_PROP_FPS else float(self.capture.get(what))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", Rateless)
    with pytest.raises(DataError, match="0 frames a second; give the rate with --fps"):
        video_info(path)
    assert video_info(path, fps=30).fps == 30
    assert len(list(read_frames(path))) == 30
    for wrong in (0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="expected 0 < fps"):
            video_info(path, fps=wrong)


@pytest.mark.parametrize("options", [{"start": -1}, {"step": 0}, {"start": 5, "stop": 2}])
def test_ranges_that_are_none(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="no range"):
        read_frames(tmp_path / "a.mp4", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = write(tmp_path / "a.mp4", 4)
    before = path.read_bytes()
    for target in (path, tmp_path / "b.mp4"):
        with pytest.raises(error):  # noqa: PT012
            with VideoWriter(target, 25) as writer:
                writer.write(numbered(0))
                raise error
    assert path.read_bytes() == before
    assert only(tmp_path) == ["a.mp4"]


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.mp4"):
        VideoWriter(tmp_path / "a.avi", 25)
    for wrong in (0.0, -5.0, float("inf")):
        with pytest.raises(UsageError, match="frames a second"):
            VideoWriter(tmp_path / "a.mp4", wrong)
    with pytest.raises(OutputError, match="no frames"), VideoWriter(tmp_path / "a.mp4", 25):
        pass
    with pytest.raises(DataError, match="60 x 48 px, the first 64 x 48"):  # noqa: PT012
        with VideoWriter(tmp_path / "a.mp4", 25) as writer:
            writer.write(numbered(0))
            writer.write(numbered(1, width=60))
    for frame in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(DataError, match="uint8"), VideoWriter(tmp_path / "a.mp4", 25) as writer:
            writer.write(frame)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        VideoWriter(tmp_path / "file" / "a.mp4", 25).__enter__()
    assert only(tmp_path) == ["file"]


def test_no_webcam_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="no webcam 93") as caught:
        camera_frames(93)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="numbered from 0"):
        camera_frames(-1)
    assert capfd.readouterr().err == ""


def test_suffixes_tell_a_video() -> None:
    assert is_video("a/B.MP4")
    assert is_video(Path("x.mov"))
    assert not is_video("x.png")
    assert not is_video("mp4")
    assert not is_video(np.zeros(3))
