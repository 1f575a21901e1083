"""Clips side by side: a method that predicts all frames of a clip is tested on each frame once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["clip_tiles"]

Int = NDArray[np.int64]


def clip_tiles(
    numbers: NDArray[Any], kept: NDArray[Any], stride: int, pace: float, frames: int
) -> Int | None:
    """Rows of a recording's clips.

    Frames at the clips' pace form chains (several, if more frames are kept than a clip takes up);
    a chain ends where a frame is missing, and is cut into clips from its start.

    Args:
        numbers: (F,) frame of the source of each row, increasing.
        kept: (N,) rows whose frames count, each a multiple of ``stride``.
        stride: frames of the source between two that count.
        pace: frames of the source between two of a clip.
        frames: T.

    Returns:
        (M, T) rows, chain after chain, every kept row once; -1 after the end of a chain. ``None``
        if the pace is no multiple of the stride: no such clips exist.
    """
    every = round(pace / stride)
    if every < 1 or abs(pace - every * stride) > 1e-6:
        return None
    clips: list[list[int]] = []
    for phase in range(every):
        chain = kept[(numbers[kept] // stride) % every == phase]
        breaks = np.flatnonzero(np.diff(numbers[chain]) != every * stride) + 1
        for run in np.split(chain, breaks):
            for first in range(0, len(run), frames):
                part = run[first : first + frames].tolist()
                clips.append(part + [-1] * (frames - len(part)))
    return np.array(clips, np.int64).reshape(-1, frames)
