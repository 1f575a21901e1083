"""A synthetic copy of KTH Multiview Football II: affine cameras that follow the player."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.kth import FIRST_PIXEL, MM, NUM_CAMERAS
from datamodules.recordings import Camera, Float
from datamodules.synth.files import column, write_image
from datamodules.synth.joints import named_joints
from datamodules.synth.people import People, Take
from zoo.skeleton import get_skeleton

__all__ = ["ACTIONS", "SIZES", "SUBJECTS", "affine_cameras", "centred", "write"]

SUBJECTS = ("S2",)
ACTIONS = ("Walking",)
SIZES = ((480, 640),) * NUM_CAMERAS
_PERSON_SHARE = 0.45
"""Height of a 1.7 m person over that of the picture."""


def centred(take: Take) -> Take:
    """The take around the player, as the set has it: the pelvis of every frame at the origin."""
    return replace(take, world=take.world - take.world[:, :1])


def affine_cameras(people: People, take: Take) -> Float:
    """(3, F, 2, 4) px from homogeneous mm, pixels from 0: nearer and elsewhere in each frame."""
    cameras = people.cameras[take.subject][:NUM_CAMERAS]
    frames = np.arange(len(take.world))
    result = np.empty((len(cameras), len(frames), 2, 4))
    for i, camera in enumerate(cameras):
        assert camera.rotation is not None
        width, height = camera.size
        scale = _PERSON_SHARE * height / 1700 * (1 + 0.01 * frames + 0.03 * i)
        result[i, :, :, :3] = scale[:, None, None] * camera.rotation[:2]
        result[i, :, 0, 3] = width / 2 + 0.004 * width * frames
        result[i, :, 1, 3] = height / 2 - 0.003 * height * frames
    return result


def write(root: Path, people: People) -> None:
    """Writes the copy: a take is a sequence of the player whose number the subject has."""
    counts: dict[str, int] = {}
    for take in people.takes:
        counts[take.subject] = counts.get(take.subject, 0) + 1
        player = "".join(c for c in take.subject if c.isdigit())
        folder = root / f"player{player}" / f"Sequence {counts[take.subject]}"
        mine = centred(take)
        world = named_joints(mine.world, get_skeleton("kth_14").joints)
        cameras = affine_cameras(people, take)
        pixels = (
            np.einsum("cfij,fnj->cfni", cameras[..., :3], world) + cameras[:, :, None, :, 3]
        )  # (3, F, 14, 2)
        column(folder / "positions3d.txt", (world / MM).reshape(-1))
        column(folder / "positions2d.txt", (pixels.transpose(1, 0, 2, 3) + FIRST_PIXEL).reshape(-1))
        stored = cameras.copy()
        stored[..., :3] *= MM
        stored[..., 3] += FIRST_PIXEL
        column(folder / "cameras.txt", stored.transpose(1, 0, 3, 2).reshape(-1))
        for i, of_frames in enumerate(cameras):
            size = people.cameras[take.subject][i].size
            camera = Camera(f"Camera {i + 1}", size, affine=of_frames)
            for frame, picture in enumerate(people.pictures(mine, camera)):
                write_image(folder / camera.name / f"{frame + 1:05d}.png", picture)
