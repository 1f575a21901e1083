"""A small copy of h36m-fetch's ``processed`` folder, from synthetic people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.human36m import ACTIONS, TEST_SUBJECTS
from datamodules.synth.human36m_cdf import joints_32
from datamodules.synth.people import People

__all__ = ["write"]


def _frames(subject: str, joints: NDArray[np.float64]) -> NDArray[np.int64]:
    """0-based: every 64th of a test subject, after a movement of 40 mm for the others."""
    if subject in TEST_SUBJECTS:
        return np.arange(0, len(joints), 64)
    kept = [0]
    for i in range(1, len(joints)):
        if np.linalg.norm(joints[i] - joints[kept[-1]], axis=-1).max() >= 40:
            kept.append(i)
    return np.array(kept)


def write(root: Path, people: People) -> None:
    """``S1/Directions-1/annot.h5`` and ``imageSequence/CAM/img_000001.jpg`` ..."""
    import h5py

    names = {"Photo": "TakingPhoto", "WalkDog": "WalkingDog"}
    for take in people.takes:
        action = names.get(take.action, take.action)
        folder = root / take.subject / f"{action}-{take.trial}"
        folder.mkdir(parents=True, exist_ok=True)
        frames = _frames(take.subject, take.world)
        rows: dict[str, list[NDArray[np.float64]]] = {}
        with h5py.File(folder / "annot.h5", "w") as file:
            for camera in people.cameras[take.subject]:
                joints = joints_32(camera.to_camera(take.world))
                pixels = joints_32(people.pixels(take, camera))
                lens = []
                for axis in (0, 1):
                    table = joints[..., [axis, 2]].reshape(-1, 2)
                    target = (pixels[..., axis] * joints[..., 2]).ravel()
                    lens += list(np.linalg.lstsq(table, target, rcond=None)[0])
                file[f"intrinsics/{camera.name}"] = np.array(lens)
                file[f"intrinsics-univ/{camera.name}"] = np.array(lens)
                full = np.full(len(frames), 0)
                for key, value in {
                    "pose/2d": pixels[frames], "pose/3d": joints[frames],
                    "pose/3d-univ": joints[frames], "frame": frames + 1,
                    "camera": full + int(camera.name), "subject": full + int(take.subject[1:]),
                    "action": full + ACTIONS.index(take.action) + 2,
                    "subaction": full + take.trial,
                }.items():  # fmt: skip
                    rows.setdefault(key, []).append(value)
                images = folder / "imageSequence" / camera.name
                images.mkdir(parents=True, exist_ok=True)
                for frame, picture in zip(
                    frames, people.pictures(take, camera, frames), strict=True
                ):
                    path = images / f"img_{frame + 1:06d}.jpg"
                    Image.fromarray(picture).save(path, quality=92)
            for key, parts in rows.items():
                file[key] = np.concatenate(parts)
