"""Smoothing of pose sequences: the One Euro filter.

Gery Casiez, Nicolas Roussel, Daniel Vogel: "1 Euro Filter: A Simple Speed-based Low-pass Filter for
Noisy Input in Interactive Systems", CHI 2012. A first-order low-pass whose cutoff frequency grows
with the speed: little jitter at rest, little lag in motion. It looks back only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.errors import UsageError, suggest
from zoo.pose import Pose

__all__ = ["BETA", "MAX_GAP", "MIN_CUTOFF", "SMOOTHERS", "OneEuro", "PoseSmoother", "smooth_poses"]

Array = npt.NDArray[np.floating[Any]]

SMOOTHERS = ("one-euro",)
"""What ``--smooth`` takes."""
MIN_CUTOFF = 1.0
"""Hz, at rest."""
BETA = 0.01
"""Hz per mm/s: a hand that moves at 1 m/s is cut off at 11 Hz."""
MAX_GAP = 0.5
"""Seconds that a person may be missing; afterwards the filter starts anew."""
_DERIVATIVE_CUTOFF = 1.0  # Hz, the paper's


class OneEuro:
    """The filter for an array of numbers, each on its own (the paper's Algorithm 1).

    A number that is missing (NaN) stays missing and leaves its filter as it is; the next one comes
    with the longer time step.

    Args:
        min_cutoff: Hz, above 0.
        beta: slope of the cutoff, Hz per unit/s, at least 0.
        derivative_cutoff: Hz, of the speed's own low-pass, above 0.

    Raises:
        zoo.errors.UsageError: a number is out of range.
    """

    def __init__(
        self,
        min_cutoff: float = MIN_CUTOFF,
        beta: float = BETA,
        derivative_cutoff: float = _DERIVATIVE_CUTOFF,
    ) -> None:
        for name, value in (("min_cutoff", min_cutoff), ("derivative_cutoff", derivative_cutoff)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"one-euro: {name} is {value:g}, expected Hz above 0")
        if not (math.isfinite(beta) and beta >= 0):
            raise UsageError(f"one-euro: beta is {beta:g}, expected at least 0")
        self.min_cutoff, self.beta, self.derivative_cutoff = min_cutoff, beta, derivative_cutoff
        self._value: Array | None = None
        self._speed: Array | None = None
        self._time: Array | None = None

    def __call__(self, value: Array, time: float) -> Array:
        """Filters the next array.

        Args:
            value: any shape, the same in every call; NaN is missing.
            time: seconds, later than that of the call before.

        Returns:
            The filtered array, float64; NaN where ``value`` is.
        """
        x = np.asarray(value, dtype=np.float64)
        if self._value is None or self._speed is None or self._time is None:
            self._value, self._speed = np.full(x.shape, np.nan), np.zeros(x.shape)
            self._time = np.full(x.shape, np.nan)
        given, known = np.isfinite(x), np.isfinite(self._value)
        old = given & known
        step = np.where(old, time - self._time, 1.0)
        if (step <= 0).any():
            raise UsageError(f"one-euro: the time {time:g} s does not come after the one before")
        rate = 1 / step
        speed = np.where(old, (x - np.where(old, self._value, 0)) * rate, 0.0)
        a = _alpha(rate, self.derivative_cutoff)
        speed = np.where(old, a * speed + (1 - a) * self._speed, 0.0)
        a = _alpha(rate, self.min_cutoff + self.beta * np.abs(speed))
        filtered = np.where(old, a * x + (1 - a) * np.where(old, self._value, 0), x)
        self._value = np.where(given, filtered, self._value)
        self._speed = np.where(given, speed, self._speed)
        self._time = np.where(given, time, self._time)
        return np.where(given, filtered, np.nan)


def _alpha(rate: Array, cutoff: Array | float) -> Array:
    """The weight of the new value: 1 / (1 + tau / Te), tau = 1 / (2 pi cutoff)."""
    return np.asarray(1 / (1 + rate / (2 * math.pi * cutoff)))


class PoseSmoother:
    """Smooths the 3D joints, and the root, of people in a video, each with filters of their own.

    ``joints_2d`` stay as estimated. A person who was missing for more than ``MAX_GAP`` seconds
    starts anew, so the filters in memory are those of the people now in view.

    Args:
        fps: frames a second; ``frame_index / fps`` is the time.
        min_cutoff: Hz, see :class:`OneEuro`.
        beta: Hz per mm/s.
        max_gap: seconds.
    """

    def __init__(
        self,
        fps: float,
        min_cutoff: float = MIN_CUTOFF,
        beta: float = BETA,
        max_gap: float = MAX_GAP,
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise UsageError(f"smoothing needs the frames a second of the video, not {fps:g}")
        OneEuro(min_cutoff, beta)
        self.fps, self.max_gap = fps, max_gap
        self._arguments = (min_cutoff, beta)
        self._people: dict[int, tuple[int, OneEuro, OneEuro]] = {}

    def __call__(self, pose: Pose) -> Pose:
        """The smoothed pose; a person's poses come in the order of their frames."""
        frame, limit = pose.frame_index, self.max_gap * self.fps
        self._people = {k: v for k, v in self._people.items() if frame - v[0] <= limit}
        fresh = (frame, OneEuro(*self._arguments), OneEuro(*self._arguments))
        _, joints, root = self._people.get(pose.person, fresh)
        self._people[pose.person] = (frame, joints, root)
        time = frame / self.fps
        smooth = joints(pose.joints_3d, time).astype(np.float32)
        place = None if pose.root_3d is None else root(pose.root_3d, time).astype(np.float32)
        return replace(pose, joints_3d=smooth, root_3d=place)


def smooth_poses(
    poses: Sequence[Pose],
    fps: float,
    method: str = "one-euro",
    *,
    min_cutoff: float = MIN_CUTOFF,
    beta: float = BETA,
) -> list[Pose]:
    """Smooths the poses of a video.

    Args:
        poses: in the order of their ``frame_index``; ``person`` tells who is who over the frames.
        fps: frames a second.
        method: ``one-euro``.
        min_cutoff: Hz: lower is calmer.
        beta: Hz per mm/s: higher follows fast motion sooner.

    Returns:
        As many poses, in the same order.

    Raises:
        zoo.errors.UsageError: a number is out of range, another method, or a person twice in a
            frame.
    """
    if method not in SMOOTHERS:
        raise UsageError(suggest(method, SMOOTHERS, "smoothing"))
    smoother = PoseSmoother(fps, min_cutoff, beta)
    return [smoother(pose) for pose in poses]
