"""A small copy of RPSM's and SSC's text lists of Human3.6M, from synthetic people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.human36m import ACTIONS, TEST_SUBJECTS
from datamodules.synth.people import People

__all__ = ["write", "write_ssc"]

STEP = 5


def _text(values: NDArray[np.float64]) -> str:
    return ",".join(f"{v:.6f}" for v in values.ravel())


def write(root: Path, people: People) -> None:
    """RPSM's pairs of lists in ``img_list`` and the pictures they name."""
    lines: dict[tuple[str, int], list[tuple[str, str, str]]] = {}
    for take in people.takes:
        part = "val" if take.subject in TEST_SUBJECTS else "train"
        for number, camera in enumerate(people.cameras[take.subject], 1):
            frames = np.arange(0, len(take.world), STEP)
            pixels, joints = people.pixels(take, camera), camera.to_camera(take.world)
            action = f"{ACTIONS.index(take.action) + 2}_{take.trial}"
            folder = f"linux_imgs/{part}/camera_{number}/{int(take.subject[1:])}/{action}"
            (root / folder).mkdir(parents=True, exist_ok=True)
            for frame, picture in zip(frames, people.pictures(take, camera, frames), strict=True):
                name = f"{folder}/{frame + 1}.jpg"
                Image.fromarray(picture).save(root / name, quality=92)
                # The official tool wrote the absolute path of the machine that ran it.
                line = (f"/data/human3.6m/{name}", _text(pixels[frame]), _text(joints[frame]))
                lines.setdefault((part, number), []).append(line)
    (root / "img_list").mkdir(exist_ok=True)
    for (part, number), content in lines.items():
        stem = root / "img_list" / f"linux_accv_{part}_camera_{number}_label_"
        _write(Path(f"{stem}2d.txt"), (f"{name} {flat} " for name, flat, _ in content))
        _write(Path(f"{stem}3d.txt"), (f"{name} {deep} " for name, _, deep in content))


def write_ssc(root: Path, people: People) -> None:
    """SSC's lists: 16 joints, limb lengths as they are, root-relative, (x - min) / (max - min)."""
    sixteen = [j for j in range(17) if j != 9]
    rows: dict[str, list[tuple[str, NDArray[np.float64], NDArray[np.float64], int]]] = {}
    for take in people.takes:
        part = "test" if take.subject in TEST_SUBJECTS else "train"
        for number, camera in enumerate(people.cameras[take.subject], 1):
            joints = camera.to_camera(take.world)[:, sixteen]
            joints = joints - joints[:, :1]
            pixels = people.pixels(take, camera)[:, sixteen]
            action = f"{ACTIONS.index(take.action) + 2}_{take.trial}"
            folder = f"{part}/camera_{number}/{int(take.subject[1:])}/{action}"
            for frame in range(0, len(joints), STEP):
                name = f"{folder}/{frame + 1}.jpg"
                rows.setdefault(part, []).append(
                    (name, pixels[frame], joints[frame], int(frame > 0))
                )
    every = np.concatenate([np.stack([row[2] for row in part]) for part in rows.values()])
    high, low = every.max(0).ravel(), every.min(0).ravel()
    high[:3], low[:3] = 1e-4, 0
    root.mkdir(parents=True, exist_ok=True)
    ranges = (",".join(repr(float(v)) for v in values) for values in (high, low))
    _write(root / "16point_mean_limb_scaled_max_min.csv", ranges)
    for part, content in rows.items():
        _write(
            root / f"16skel_{part}_2d3d_clip.txt",
            (
                f"{name} {_text(flat)},{_text((deep.ravel() - low) / (high - low))} {clip}"
                for name, flat, deep, clip in content
            ),
        )


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
