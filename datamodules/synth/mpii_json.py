"""A synthetic copy of MPII as the common JSON lists, and images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from datamodules.mpii import FIRST_PIXEL, SCALE_PX
from datamodules.synth.files import write_image
from datamodules.synth.mpii import ACTIONS, SUBJECTS, absent_joints, hidden_joints, images_of
from datamodules.synth.people import People

__all__ = ["ACTIONS", "SUBJECTS", "write"]


def write(root: Path, people: People) -> None:
    """Writes the copy; every fifth image is in ``valid.json``."""
    lists: dict[str, list[dict[str, object]]] = {"train": [], "valid": []}
    for index, (name, crowd) in enumerate(images_of(people)):
        write_image(root / "images" / name, np.concatenate([c.pixels for c in crowd], axis=1))
        for i, person in enumerate(crowd):
            joints = person.joints + FIRST_PIXEL
            visible = np.ones(len(joints), dtype=int)
            visible[list(hidden_joints(index + i))] = 0
            for joint in absent_joints(index + i):
                joints[joint], visible[joint] = -1, 0
            low, high = person.box[:2] + FIRST_PIXEL, person.box[2:] + FIRST_PIXEL
            lists["valid" if index % 5 == 4 else "train"].append(
                {
                    "image": name,
                    "center": ((low + high) / 2).tolist(),
                    "scale": float((high - low).max() / SCALE_PX),
                    "joints": joints.tolist(),
                    "joints_vis": visible.tolist(),
                }
            )
    (root / "annot").mkdir(parents=True, exist_ok=True)
    for name, entries in lists.items():
        (root / "annot" / f"{name}.json").write_text(json.dumps(entries))
