"""Who is where in each frame of a video: boxes and 2D joints from the sources that there are.

A finder is called with one frame after the other and returns the people in it, as :class:`Seen`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import DataError, UsageError
from zoo.keypoints import Keypoints, read_keypoints
from zoo.pose import Pose
from zoo.predict import Picture, outside
from zoo.predict_keypoints import BODY_OVER_JOINTS
from zoo.track import Box, Tracker

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Detected",
    "Everywhere",
    "Finder",
    "Following",
    "Listed",
    "People",
    "Seen",
    "box_of",
    "frame_numbers",
    "read_people",
]

_HOLD = 0.8  # of a followed box's side is kept from frame to frame: it does not breathe


@dataclass(frozen=True)
class Seen:
    """One person in one frame.

    Attributes:
        person: number, the same in all frames.
        box: px of the frame; None: the whole frame.
        keypoints: 2D joints, where the source has them.
    """

    person: int
    box: Box | None = None
    keypoints: Keypoints | None = None


Finder = Callable[[Picture], list[Seen]]
People = Mapping[int, Sequence[Box | Keypoints]]
"""The people of each frame, by its number."""


class Everywhere:
    """The same people in every frame: given boxes, or one person as large as the frame."""

    def __init__(self, boxes: Sequence[Box] | None = None) -> None:
        self.boxes = boxes

    def __call__(self, picture: Picture) -> list[Seen]:
        """The people.

        Raises:
            zoo.errors.DataError: a box lies outside the frame.
        """
        if self.boxes is None:
            return [Seen(0)]
        height, width = picture.image.shape[:2]
        for box in self.boxes:
            if outside(box, width, height):
                raise DataError(f"the box {box} lies outside the video of {width} x {height} px")
        return [Seen(number, box) for number, box in enumerate(self.boxes)]


class Listed:
    """People from a list of each frame's; a frame that is not listed has nobody.

    Args:
        people: by frame number, of :func:`read_people`.
        max_gap: of the :class:`~zoo.track.Tracker` that says who is who.
    """

    def __init__(self, people: People, max_gap: int) -> None:
        self.people, self._tracker = people, Tracker(max_gap)

    def __call__(self, picture: Picture) -> list[Seen]:
        """The people of the frame; those outside of it, or without a joint, are left out."""
        height, width = picture.image.shape[:2]
        found: list[tuple[Box, Keypoints | None]] = []
        for one in self.people.get(picture.frame, ()):
            box = box_of(one) if isinstance(one, Keypoints) else one
            if box is not None and not outside(box, width, height):
                found.append((box, one if isinstance(one, Keypoints) else None))
        return _numbered(self._tracker, picture, found)


class Detected:
    """People that a detector finds.

    Args:
        detector: of :func:`zoo.detect.load_detector`.
        min_score: least confidence of a person.
        max_gap: of the :class:`~zoo.track.Tracker` that says who is who.
        every: look at each such frame; in between people stay where they were seen last.
    """

    def __init__(self, detector: nn.Module, min_score: float, max_gap: int, every: int = 1) -> None:
        if every < 1:
            raise UsageError(f"a detector looks at every frame or each N-th, not {every}")
        self.detector, self.min_score, self.every = detector, min_score, every
        self._tracker = Tracker(max(max_gap, every))
        self._count, self._held = 0, list[Seen]()

    def __call__(self, picture: Picture) -> list[Seen]:
        """The people of the frame."""
        from zoo.detect import detect

        if self._count % self.every == 0:
            people = detect(self.detector, [picture], self.min_score)
            found = [(box_of(one), replace(one, frame=picture.frame)) for one in people]
            known = [(box, one) for box, one in found if box is not None]
            self._held = _numbered(self._tracker, picture, known)
        self._count += 1
        return self._held


class Following:
    """One or more people whose boxes follow their own 2D estimates.

    The box of a frame is that around the 2D joints of the frame before, its side slowly changing.
    A person whose estimate has left the frame, or shrunk to nothing, is looked for where ``start``
    says.

    Args:
        start: finds the people at first, and those who were lost.
        every: ask ``start`` anew at each such frame; 0: only for who was lost.
    """

    def __init__(self, start: Finder, every: int = 0) -> None:
        self.start, self.every = start, every
        self.fresh = True
        """Whether the people of the last frame came from ``start``."""
        self._boxes: dict[int, Box] = {}
        self._count = 0

    def again(self) -> list[Seen]:
        """The people of the frame by their estimates, for a second look at a first frame."""
        return [Seen(person, box) for person, box in self._boxes.items()]

    def __call__(self, picture: Picture) -> list[Seen]:
        """The people of the frame."""
        height, width = picture.image.shape[:2]
        due = self.every > 0 and self._count % self.every == 0
        self._count += 1
        self.fresh = due or not self._boxes
        if self.fresh:
            whole = (-0.5, -0.5, width - 0.5, height - 0.5)
            found = self.start(picture)
            self._boxes = {one.person: one.box or whole for one in found}
            return [replace(one, keypoints=None) for one in found]
        return self.again()

    def tell(self, picture: Picture, poses: Iterable[Pose]) -> None:
        """Takes the estimates of the frame.

        Raises:
            zoo.errors.UsageError: the method estimates no 2D.
        """
        poses = list(poses)
        if any(pose.joints_2d is None for pose in poses):
            raise UsageError(
                f"{poses[0].method} estimates no 2D joints that a box could follow; give boxes or "
                "a detector"
            )
        height, width = picture.image.shape[:2]
        boxes: dict[int, Box] = {}
        for pose in poses:
            new = None if pose.joints_2d is None else _around(pose.joints_2d)
            old = self._boxes.get(pose.person)
            if new is None or old is None or outside(new, width, height):
                continue
            side, before = _side(new), _side(old)
            if side < 8 or side < 0.1 * before or side > 10 * max(width, height):
                continue
            kept = _HOLD * before + (1 - _HOLD) * side
            if before > 1.5 * side or side > 1.5 * before:
                kept = side  # from the whole frame to the person at once
            x, y = (new[0] + new[2]) / 2, (new[1] + new[3]) / 2
            factor = kept / side
            half_x, half_y = factor * (new[2] - new[0]) / 2, factor * (new[3] - new[1]) / 2
            boxes[pose.person] = (x - half_x, y - half_y, x + half_x, y + half_y)
        self._boxes = boxes


def _side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _numbered(
    tracker: Tracker, picture: Picture, found: Sequence[tuple[Box, Keypoints | None]]
) -> list[Seen]:
    numbers = tracker(picture.frame, [box for box, _ in found])
    return [
        Seen(
            number, box, None if one is None else replace(one, person=number, frame=picture.frame)
        )
        for number, (box, one) in zip(numbers, found, strict=True)
    ]  # fmt: skip


def _around(joints: Any) -> Box | None:
    """A person's box from (J, 2) joints; None without any, or if they lie in one place."""
    points = np.asarray(joints, dtype=np.float64)
    points = points[np.isfinite(points).all(1)]
    if len(points) < 2:
        return None
    low, high = points.min(0), points.max(0)
    extra = (BODY_OVER_JOINTS - 1) / 2 * float((high - low).max())
    if extra <= 0:
        return None
    return (
        float(low[0] - extra), float(low[1] - extra), float(high[0] + extra), float(high[1] + extra)
    )  # fmt: skip


def box_of(one: Keypoints) -> Box | None:
    """The person's box: the stated one, or that around the joints; None without two joints."""
    if one.box is not None:
        x0, y0, x1, y1 = (float(v) for v in one.box)
        if x1 > x0 and y1 > y0:
            return x0, y0, x1, y1
    return _around(one.joints_2d)


# ---- files --------------------------------------------------------------------------------------


def read_people(
    path: str | Path, skeleton: str | None = None
) -> dict[int, list[Box | Keypoints]]:  # fmt: skip
    """The people of each frame, from a keypoint file or one of boxes.

    A file of boxes holds COCO detections: ``[{image_id, bbox: [x, y, width, height]}, ...]``. Where
    the picture names end in numbers (``image_id``, ``frame_000012.jpg``) these number the frames,
    from 0; else the pictures are the frames in their order.

    Args:
        path: the file, or a folder of OpenPose's files.
        skeleton: joint layout, where the file does not tell it.

    Raises:
        zoo.errors.DataError: see :func:`zoo.keypoints.read_keypoints`.
    """
    path = Path(path)
    boxes = _boxes(path)
    if boxes is None:
        people = read_keypoints(path, skeleton)
        names = [one.image for one in people]
        values: list[Box | Keypoints] = [*people]
    else:
        names, values = [image for image, _ in boxes], [box for _, box in boxes]
    result: dict[int, list[Box | Keypoints]] = {}
    for frame, value in zip(frame_numbers(names), values, strict=True):
        result.setdefault(frame, []).append(value)
    return result


def frame_numbers(names: Sequence[str]) -> list[int]:
    """The frame of each picture name: the number it ends in, if all do, else their order.

    Numbers far beyond the count of names (COCO's picture ids) are no frames either.
    """
    found = [re.search(r"(\d+)$", Path(name).stem) for name in names]
    numbers = [int(number[1]) for number in found if number]
    if len(numbers) == len(names) and max(numbers, default=0) < 20 * len(set(names)) + 1000:
        return numbers
    order = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]


def _boxes(path: Path) -> list[tuple[str, Box]] | None:
    """Boxes without joints by picture; None: another kind of file."""
    if path.is_dir():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # the reader of keypoints says what is wrong
    if not isinstance(document, list) or not document:
        return None
    if not all(isinstance(e, dict) and "bbox" in e and "keypoints" not in e for e in document):
        return None
    result = []
    for number, entry in enumerate(document):
        if entry.get("category_id", 1) != 1:
            continue
        box, image = entry["bbox"], entry.get("image_id", "")
        good = isinstance(box, list) and len(box) == 4
        if not good or not all(isinstance(v, int | float) and np.isfinite(v) for v in box):
            raise DataError(
                f"{path}, record {number}: its bbox is {box!r}, expected [x, y, width, height]"
            )
        if box[2] <= 0 or box[3] <= 0:
            raise DataError(f"{path}, record {number}: its bbox {box} has no area")
        x, y, width, height = (float(v) for v in box)
        result.append((str(image), (x, y, x + width, y + height)))
    return result
