"""A small folder in the layout for own data, from synthetic people: a pattern to copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.own import FORMAT, INDEX
from datamodules.recordings import Camera
from datamodules.synth.people import People

__all__ = ["camera_entry", "write"]

TEST_SUBJECTS = ("S9", "S11")


def camera_entry(camera: Camera) -> dict[str, Any]:
    """A camera as ``dataset.json`` has it."""
    entry: dict[str, Any] = {"size": list(camera.size), "lens": camera.lens}
    for key in ("matrix", "radial", "tangential", "rotation", "position"):
        value = getattr(camera, key)
        if value is not None:
            entry[key] = value.tolist()
    return entry


def write(root: Path, people: People) -> None:
    """``dataset.json``, ``poses/*.npz`` and ``images/*/*.jpg``; two cameras of each subject."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "poses").mkdir(exist_ok=True)
    cameras, recordings = {}, []
    for take in people.takes:
        for camera in people.cameras[take.subject][:2]:
            name = f"{take.subject}-{camera.name}"  # each subject's calibration is its own
            cameras[name] = camera_entry(camera)
            stem = f"{take.subject}_{take.action}_{take.trial}.{camera.name}"
            pixels = people.pixels(take, camera)
            np.savez_compressed(
                root / "poses" / f"{stem}.npz",
                joints_2d=pixels.astype(np.float32),
                joints_3d=take.world.astype(np.float32),
                boxes=np.concatenate([pixels.min(1) - 20, pixels.max(1) + 20], -1),
            )
            folder = root / "images" / stem
            folder.mkdir(parents=True, exist_ok=True)
            for frame, picture in enumerate(people.pictures(take, camera)):
                Image.fromarray(picture).save(folder / f"{frame:06d}.jpg", quality=92)
            recordings.append(
                {"subject": take.subject, "action": take.action, "trial": take.trial,
                 "camera": name, "space": "world", "poses": f"poses/{stem}.npz",
                 "images": f"images/{stem}"}
            )  # fmt: skip
    document = {
        "format": FORMAT, "name": "synthetic people", "licence": "free", "skeleton": "h36m_17",
        "units": "mm", "fps": people.fps,
        "test_subjects": [s for s in people.subjects if s in TEST_SUBJECTS],
        "cameras": cameras, "recordings": recordings,
    }  # fmt: skip
    (root / INDEX).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
