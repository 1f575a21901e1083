"""A small copy of mmpose's Human3.6M files (10 fps), from synthetic people."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.human36m import TEST_SUBJECTS
from datamodules.synth.human36m_cdf import file_stem
from datamodules.synth.people import People

__all__ = ["write"]

STEP = 5


def write(root: Path, people: People) -> None:
    """``annotation_body3d/fps10/h36m_{train,test}.npz``, ``cameras.pkl`` and ``images/``."""
    folder = root / "annotation_body3d" / "fps10"
    folder.mkdir(parents=True, exist_ok=True)
    cameras: dict[tuple[str, str], dict[str, Any]] = {}
    rows: dict[str, list[tuple[str, Any, float, Any, Any]]] = {"train": [], "test": []}
    for take in people.takes:
        for number, camera in enumerate(people.cameras[take.subject], 1):
            assert camera.matrix is not None
            assert camera.rotation is not None
            assert camera.position is not None
            assert camera.radial is not None
            assert camera.tangential is not None
            cameras[take.subject, camera.name] = {
                "R": camera.rotation.T, "T": camera.position[:, None] / 1000,
                "c": camera.matrix[:2, 2:], "f": np.diag(camera.matrix)[:2, None],
                "k": np.reshape(camera.radial, (3, 1)), "p": np.reshape(camera.tangential, (2, 1)),
                "w": camera.size[0], "h": camera.size[1], "name": f"camera{number}",
                "id": camera.name,
            }  # fmt: skip
            base = f"{take.subject}_{file_stem(take).replace(' ', '_')}.{camera.name}"
            frames = np.arange(0, len(take.world), STEP)
            pixels, joints = people.pixels(take, camera), camera.to_camera(take.world) / 1000
            pictures = people.pictures(take, camera, frames)
            (root / "images" / take.subject / base).mkdir(parents=True, exist_ok=True)
            part = "test" if take.subject in TEST_SUBJECTS else "train"
            for frame, picture in zip(frames, pictures, strict=True):
                name = f"{take.subject}/{base}/{base}_{frame + 1:06d}.jpg"
                Image.fromarray(picture).save(root / "images" / name, quality=92)
                low, high = pixels[frame].min(0), pixels[frame].max(0)
                rows[part].append(
                    (name, (low + high) / 2, 1.2 * (high - low).max() / 200,
                     np.concatenate([pixels[frame], np.ones((17, 1))], 1),
                     np.concatenate([joints[frame], np.ones((17, 1))], 1))
                )  # fmt: skip
    for part, content in rows.items():
        if content:
            names, centres, scales, flat, deep = zip(*content, strict=True)
            np.savez(
                folder / f"h36m_{part}.npz", imgname=np.array(names), center=np.array(centres),
                scale=np.array(scales), part=np.array(flat), S=np.array(deep),
            )  # fmt: skip
    with (folder.parent / "cameras.pkl").open("wb") as stream:
        pickle.dump(cameras, stream)
