"""Who is who from frame to frame: people's boxes matched by overlap."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Box", "Tracker", "overlap"]

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in px."""


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return both / (areas - both)


class Tracker:
    """Numbers people so that a person keeps the number.

    In each frame the known person and the new box with the largest overlap are matched, then the
    next two, down to ``min_overlap``. A person who is not seen is kept for ``max_gap`` frames; who
    comes later gets a new number. Nothing else is looked at: people who cross may swap.

    Args:
        max_gap: frames that a person may be missing.
        min_overlap: least intersection over union with the box where the person was last.
    """

    def __init__(self, max_gap: int, min_overlap: float = 0.2) -> None:
        self.max_gap, self.min_overlap = max_gap, min_overlap
        self._last: dict[int, tuple[int, Box]] = {}
        self._next = 0

    def __call__(self, frame: int, boxes: Sequence[Box]) -> list[int]:
        """The person of each box.

        Args:
            frame: number of the frame, growing.
            boxes: of the people in it; the first of new ones gets the lowest number.
        """
        self._last = {k: v for k, v in self._last.items() if frame - v[0] <= self.max_gap + 1}
        pairs = sorted(
            (
                (-overlap(box, last), person, index)
                for index, box in enumerate(boxes)
                for person, (_, last) in self._last.items()
            ),
        )
        found: dict[int, int] = {}
        for negative, person, index in pairs:
            if -negative < self.min_overlap:
                break
            if index not in found and person not in found.values():
                found[index] = person
        for index in range(len(boxes)):
            if index not in found:
                found[index] = self._next
                self._next += 1
            self._last[found[index]] = (frame, boxes[index])
        return [found[index] for index in range(len(boxes))]
