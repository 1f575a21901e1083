"""Frames of a video with skeletons on them, and the 3D poses beside; fast enough for video.

Colours, views and floor are those of :mod:`zoo.draw`. Here the scale is fixed: people do not change
size from frame to frame, as long as they are as many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.draw import (
    GRID_MM,
    LOW_SCORE,
    NEUTRAL,
    NEUTRAL_ON_IMAGE,
    VIEWS,
    known_points,
    pose_bones,
    side_colour,
    view_3d,
)
from zoo.pose import Pose
from zoo.video import opencv

__all__ = ["draw_frame"]

Frame = npt.NDArray[np.uint8]

_LARGEST = 1080  # px, height of a drawn frame
_SMALLEST = 360
_REACH_MM = 2300.0  # of one view
_STEP_MM = 1500.0  # from a person to the next
_SHIFT = 4  # fractional bits: lines end between pixels
_DARK = (32, 32, 32)


def draw_frame(image: Frame, poses: Sequence[Pose], note: str = "") -> Frame:
    """A frame with the 2D skeletons of its people, and their 3D poses from two views beside it.

    Red is the person's right, blue the left. A method without 2D shows the person's box. Several
    people stand side by side in 3D, in the order of their numbers.

    Args:
        image: (H, W, 3) uint8 RGB.
        poses: of the frame.
        note: a line of ASCII text at the bottom of the 3D side.

    Returns:
        (H', W', 3) uint8 RGB, of the same size for every frame of a video; H' and W' are even. H'
        is H, but between 360 and 1080 px.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    tall = min(max(height, _SMALLEST), _LARGEST) // 2 * 2
    factor = tall / height
    wide = max(2, round(width * factor) // 2 * 2)
    if (wide, tall) == (width, height):
        picture = image.copy()
    else:
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        picture = np.ascontiguousarray(cv2.resize(image, (wide, tall), interpolation=how))
    scale = (wide / width, tall / height)
    for pose in poses:
        _draw_2d(picture, pose, scale)
    panel = np.full((tall, tall * 3 // 4 // 2 * 2, 3), 255, np.uint8)
    half = tall // 2
    for number, (title, turn) in enumerate(VIEWS):
        view = panel[number * half : (number + 1) * half]
        _draw_view(view, poses, turn)
        _text(view, title.replace("°", " deg"), (8, 4), NEUTRAL)
    _text(panel, "right", (8, 22), side_colour("r_", NEUTRAL))
    _text(panel, "left", (8 + _text_width("right ", panel), 22), side_colour("l_", NEUTRAL))
    if not poses:
        _text(panel, "no person", (panel.shape[1] // 2 - 30, half // 2), NEUTRAL)
    if note:
        _text(panel, note, (8, tall - 20), NEUTRAL)
    return np.hstack((picture, panel))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _fixed(point: Any) -> tuple[int, int]:
    """A point in px for OpenCV's fixed-point drawing; far ones are brought near."""
    x, y = (min(max(float(v), -1e4), 1e4) for v in point)
    return round(x * 2**_SHIFT), round(y * 2**_SHIFT)


def _line(canvas: Frame, one: Any, other: Any, colour: str, width: int, rim: bool) -> None:
    cv2 = opencv()
    ends = (_fixed(one), _fixed(other))
    if rim:
        cv2.line(canvas, *ends, _DARK, width + 2, cv2.LINE_AA, _SHIFT)
    cv2.line(canvas, *ends, _rgb(colour), width, cv2.LINE_AA, _SHIFT)


def _dot(canvas: Frame, point: Any, colour: str, radius: float, rim: bool) -> None:
    cv2 = opencv()
    if rim:
        size = round((radius + 1) * 2**_SHIFT)
        cv2.circle(canvas, _fixed(point), size, _DARK, -1, cv2.LINE_AA, _SHIFT)
    size = round(radius * 2**_SHIFT)
    cv2.circle(canvas, _fixed(point), size, _rgb(colour), -1, cv2.LINE_AA, _SHIFT)


def _font(canvas: Frame) -> float:
    return 0.45 if canvas.shape[1] < 500 else 0.6


def _text(canvas: Frame, text: str, place: tuple[int, int], colour: str) -> None:
    """Text whose upper left corner is at ``place``."""
    cv2 = opencv()
    size = _font(canvas)
    at = (place[0], place[1] + round(24 * size))
    cv2.putText(
        canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, _rgb(colour), 1, cv2.LINE_AA
    )  # fmt: skip


def _text_width(text: str, canvas: Frame) -> int:
    cv2 = opencv()
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _font(canvas), 1)
    return int(width)


def _draw_2d(picture: Frame, pose: Pose, scale: tuple[float, float]) -> None:
    """The skeleton; a pixel centre at k goes to ``scale * (k + 1/2) - 1/2``."""
    line = max(2, round(picture.shape[0] / 180))
    factor = np.array(scale)
    if pose.joints_2d is None:
        if pose.box is not None:
            corners = factor * (pose.box.reshape(2, 2) + 0.5) - 0.5
            (x0, y0), (x1, y1) = corners
            outline = ((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0))
            for one, other in itertools.pairwise(outline):
                _line(picture, one, other, NEUTRAL_ON_IMAGE, max(1, line // 2), True)
        return
    points = factor * (pose.joints_2d + 0.5) - 0.5
    known = np.isfinite(points).all(1)
    weak = np.zeros(len(points), bool) if pose.scores_2d is None else pose.scores_2d < LOW_SCORE
    for child, parent in pose_bones(pose):
        if known[child] and known[parent]:
            thin = weak[child] or weak[parent]
            colour = side_colour(pose.joint_names[child], NEUTRAL_ON_IMAGE)
            width = max(1, line // 2) if thin else line
            _line(picture, points[parent], points[child], colour, width, True)
    for joint in np.flatnonzero(known):
        colour = side_colour(pose.joint_names[joint], NEUTRAL_ON_IMAGE)
        _dot(picture, points[joint], colour, line * (0.6 if weak[joint] else 1.1), True)


def _draw_view(canvas: Frame, poses: Sequence[Pose], turn: float) -> None:
    """The 3D poses from a direction, the group in the middle."""
    height, width = canvas.shape[:2]
    if not poses:
        return
    offsets = [_STEP_MM * k for k in range(len(poses))]
    span = offsets[-1]
    px = min(height / _REACH_MM, width / (_REACH_MM + span))
    middle = np.array([span / 2, 0])

    def place(points: Any) -> Any:
        """(..., 2) mm right and up -> px."""
        at = (points - middle) * px
        return np.stack((width / 2 + at[..., 0], height * 0.47 - at[..., 1]), -1)

    for pose, offset in zip(poses, offsets, strict=True):
        # People are turned where they stand, not around the group's middle.
        side = np.array([offset * math.cos(turn), 0, offset * math.sin(turn)])
        joints = pose.joints_3d + side
        _draw_floor(canvas, known_points(joints), turn, place)
        seen = view_3d(joints, turn)
        points, away = place(seen[:, :2]), seen[:, 2]
        known = np.isfinite(joints).all(1)
        line = max(2, round(height / 110))
        bones = [b for b in pose_bones(pose) if known[b[0]] and known[b[1]]]
        for child, parent in sorted(bones, key=lambda b: -(away[b[0]] + away[b[1]])):
            colour = side_colour(pose.joint_names[child], NEUTRAL)
            _line(canvas, points[parent], points[child], colour, line, False)
        for joint in np.flatnonzero(known):
            colour = side_colour(pose.joint_names[joint], NEUTRAL)
            _dot(canvas, points[joint], colour, 0.8 * line, False)
        if len(poses) > 1:
            top = points[known].min(0)[1] if known.any() else height / 2
            at = (int(place(view_3d(side, turn)[:2])[0]) - 4, int(top) - 24)
            _text(canvas, str(pose.person), at, NEUTRAL)


def _draw_floor(canvas: Frame, points: Any, turn: float, place: Any) -> None:
    low = np.floor((points.min(0) - 100) / GRID_MM) * GRID_MM
    high = np.ceil((points.max(0) + 100) / GRID_MM) * GRID_MM
    floor = points[:, 1].max()
    xs, zs = (np.arange(low[k], high[k] + 1, GRID_MM)[:40] for k in (0, 2))
    ends = [([x, floor, zs[0]], [x, floor, zs[-1]]) for x in xs]
    ends += [([xs[0], floor, z], [xs[-1], floor, z]) for z in zs]
    for one, other in place(view_3d(np.array(ends), turn)[..., :2]):
        _line(canvas, one, other, "#d4d4d4", 1, False)
