"""A synthetic copy of MPII: the official .mat, with its quirks, and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.mpii import FIRST_PIXEL, MAT_NAME, SCALE_PX, video_held_out
from datamodules.synth.closeups import Closeup, closeups
from datamodules.synth.files import struct_array, write_image, write_mat
from datamodules.synth.people import People
from zoo.skeleton import get_skeleton

__all__ = ["ACTIONS", "SUBJECTS", "images_of", "write"]

SUBJECTS = ("S1", "S5", "S6")
ACTIONS = ("Walking", "Directions")
PICTURE_SHARE = 0.5
"""Side of a person's picture over the longer side of the data set's cameras."""
_HEAD = (8, 9)
_RECT = ("x1", "y1", "x2", "y2", "annopoints", "scale", "objpos")


def images_of(people: People) -> list[tuple[str, list[Closeup]]]:
    """Names of images, and who is in each: one person, or two side by side in every third."""
    sizes = [max(c.size) for cameras in people.cameras.values() for c in cameras]
    size = max(round(PICTURE_SHARE * max(sizes)), 16)
    left = closeups(people, get_skeleton("mpii_16").joints, size)
    images: list[tuple[str, list[Closeup]]] = []
    shift = np.array([size, 0, size, 0])
    while left:
        count = 2 if len(images) % 3 == 2 and len(left) > 1 else 1
        crowd, left = left[:count], left[count:]
        moved = [
            c._replace(joints=c.joints + i * shift[:2], box=c.box + i * shift)
            for i, c in enumerate(crowd)
        ]
        images.append((f"{len(images) + 1:09d}.jpg", moved))
    return images


def write(root: Path, people: People) -> None:
    """Writes the copy; some people lack a joint, some joints are marked as hidden."""
    entries: list[dict[str, Any]] = []
    # A take is a video; the last one is among those that are held out for validation.
    videos = [v for v in range(1, 1000) if not video_held_out(v)][: len(people.takes)]
    videos[-1] = next(v for v in range(1, 1000) if video_held_out(v))
    for index, (name, crowd) in enumerate(images_of(people)):
        write_image(root / "images" / name, np.concatenate([c.pixels for c in crowd], axis=1))
        rects = [_rect(index + i, person) for i, person in enumerate(crowd)]
        entries.append(
            {
                "image": struct_array([{"name": name}], ["name"]),
                "annorect": struct_array(rects, _RECT),
                "frame_sec": float(index),
                "vididx": float(videos[crowd[0].take]),
            }
        )
    # A test image, whose people have neither points nor head; an image with nobody annotated.
    blank = np.full((64, 64, 3), 128, np.uint8)
    for name in ("900000001.jpg", "900000002.jpg"):
        write_image(root / "images" / name, blank)
    nobody = {"frame_sec": np.zeros((0, 0)), "vididx": np.zeros((0, 0))}
    tested = struct_array([{"scale": 1.0, "objpos": _position([30, 30])}], ["scale", "objpos"])
    entries.append(
        {"image": struct_array([{"name": "900000001.jpg"}], ["name"]), "annorect": tested, **nobody}
    )
    entries.append({"image": struct_array([{"name": "900000002.jpg"}], ["name"]), **nobody})
    in_train = np.ones((1, len(entries)), dtype=np.uint8)
    in_train[0, -2] = 0
    release = {
        "annolist": struct_array(entries, ["image", "annorect", "frame_sec", "vididx"]),
        "img_train": in_train,
        "version": "synthetic",
    }
    write_mat(root / MAT_NAME, {"RELEASE": struct_array([release], list(release))})


def _position(xy: Any) -> Any:
    return struct_array([{"x": float(xy[0]), "y": float(xy[1])}], ["x", "y"])


def absent_joints(number: int) -> tuple[int, ...]:
    """Joints that the person of that number lacks."""
    return (15,) if number % 4 == 3 else ()


def hidden_joints(number: int) -> tuple[int, ...]:
    """Joints of the person of that number that are marked as hidden."""
    return (10,) if number % 2 else ()


def _rect(number: int, person: Closeup) -> dict[str, Any]:
    joints = person.joints + FIRST_PIXEL
    points = []
    for joint, (x, y) in enumerate(joints):
        if joint in absent_joints(number):
            continue
        # The real file stores visibility as a number, as a character, or (for the head) not at all.
        visible: Any = 0 if joint in hidden_joints(number) else 1
        points.append(
            {
                "x": float(x),
                "y": float(y),
                "id": joint,
                "is_visible": np.zeros((0, 0)) if joint in _HEAD else
                str(visible) if number % 3 else visible,
            }
        )  # fmt: skip
    head = joints[list(_HEAD)]
    half = 0.35 * np.linalg.norm(head[0] - head[1])
    middle = head.mean(0)
    low, high = person.box[:2] + FIRST_PIXEL, person.box[2:] + FIRST_PIXEL
    return {
        "x1": middle[0] - half, "y1": middle[1] - half,
        "x2": middle[0] + half, "y2": middle[1] + half,
        "annopoints": struct_array(
            [{"point": struct_array(points, ["x", "y", "id", "is_visible"])}], ["point"]
        ),
        "scale": float((high - low).max() / SCALE_PX),
        "objpos": _position((low + high) / 2),
    }  # fmt: skip
