"""Clips side by side: every frame that counts is in one clip, at its place in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.filedata import RecordingDataset, number_recordings
from datamodules.recordings import Recording
from datamodules.tiles import clip_tiles
from zoo.base import InputSpec


@given(
    numbers=st.lists(st.integers(0, 120), min_size=1, max_size=60, unique=True).map(sorted),
    stride=st.integers(1, 6),
    every=st.integers(1, 4),
    frames=st.integers(1, 6),
)
def test_every_kept_row_is_in_one_clip_and_clips_keep_time(
    numbers: list[int], stride: int, every: int, frames: int
) -> None:
    at = np.array(numbers)
    kept = np.flatnonzero(at % stride == 0)
    tiles = clip_tiles(at, kept, stride, every * stride, frames)
    assert tiles is not None
    assert tiles.shape == (len(tiles), frames)
    assert sorted(tiles[tiles >= 0].tolist()) == kept.tolist()
    for tile in tiles:
        length = int((tile >= 0).sum())
        assert (tile[:length] >= 0).all()
        assert (np.diff(at[tile[:length]]) == every * stride).all()
        if length < frames and length:  # nothing goes on where a clip is cut short
            assert at[tile[length - 1]] + every * stride not in at[kept]


def test_a_rate_that_does_not_fit_has_no_such_clips() -> None:
    numbers = np.arange(40)
    assert clip_tiles(numbers, numbers, 2, 5.0, 3) is None
    assert clip_tiles(numbers, numbers, 4, 2.0, 3) is None
    assert clip_tiles(numbers, numbers[:0], 1, 2.0, 3).shape == (0, 3)  # type: ignore[union-attr]


def recording(frames: int, fps: float | None = 50.0) -> Recording:
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 300, (frames, 17, 3))
    pose[..., 2] += 4000
    return Recording("S9", "Walking", 1, None, joints_3d=pose, space="camera", fps=fps)


def dataset(given: list[Recording], spec: InputSpec, **arguments: Any) -> RecordingDataset:
    return RecordingDataset(given, number_recordings(given, ["Walking"]), spec, **arguments)


SPEC = InputSpec("keypoints", 64, frames=5, clip_fps=2.0, tiled=True)


def test_samples_are_clips_side_by_side_and_the_last_one_is_cut() -> None:
    one = recording(300)  # 12 frames at 2 fps
    data = dataset([one], SPEC, step=25)
    assert len(data) == 3
    batch = data.__getitems__(range(3))
    assert batch["valid_3d"].all(-1).sum(1).tolist() == [5, 5, 2]
    assert batch["frame"].tolist() == [50, 175, 300]  # the distance that goes on is always the same
    assert one.joints_3d is not None
    relative = one.joints_3d[::25] - one.joints_3d[::25, :1]
    seen = batch["joints_3d"].flatten(0, 1)[batch["valid_3d"].all(-1).flatten()]
    np.testing.assert_allclose(seen, relative, atol=1e-2)
    # At the protocol's 10 fps, five chains of clips at 2 fps.
    finer = dataset([one, one], SPEC, step=5)
    valid = finer.__getitems__(range(len(finer)))["valid_3d"].all(-1)
    assert int(valid.sum()) == 2 * 60
    assert len(finer) == 2 * 5 * 3
    assert len(dataset([one, one], SPEC, step=5, samples=7)) == 7


@pytest.mark.parametrize(
    ("changes", "fps"),
    [({"tiled": False}, 50.0), ({"frames": 1}, 50.0), ({"clip_fps": 3.0}, 50.0), ({}, None)],
)
def test_else_every_frame_has_a_clip_of_its_own(changes: dict[str, Any], fps: float | None) -> None:
    data = dataset([recording(100, fps)], replace(SPEC, **changes), step=25)
    assert data.tiles is None
    assert len(data) == 4
    training = dataset([recording(100)], SPEC, step=25, train=True)
    assert len(training) == 4
