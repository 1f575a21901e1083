"""A synthetic copy of HumanEva-I: exported poses, calibrations, synchronisation and videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datamodules.humaneva import CAMERAS, FPS, SIZE, TRAIN_FIRST, VALIDATE_FIRST
from datamodules.recordings import Camera, Float, Pixels
from datamodules.synth.files import column, write_avi, write_mat
from datamodules.synth.joints import named_joints
from datamodules.synth.people import People, Take
from zoo.skeleton import get_skeleton

__all__ = ["ACTIONS", "SIZES", "SUBJECTS", "cameras_of", "truth", "write"]

SUBJECTS = ("S1", "S2", "S3")
ACTIONS = ("Walking",)
SIZES = (SIZE,) * 3
NAMES = {
    "Walking": "Walking", "WalkTogether": "Jog", "Photo": "ThrowCatch", "Greeting": "Gestures",
    "Discussion": "Box",
}  # fmt: skip
"""Which movement of the generator stands for which action of the set."""
_SYNC = 3
"""First frame of the videos that belongs to the stream."""
_LENS = (-0.2, 0.17, 0.001, -0.0006, 0.0)
_INVALID_ROW = 1


def cameras_of(people: People, subject: str) -> tuple[Camera, ...]:
    """The three cameras with the set's names, lens model and picture size."""
    found = []
    for name, camera in zip(CAMERAS, people.cameras[subject], strict=False):
        assert camera.matrix is not None
        width, height = camera.size
        matrix = camera.matrix.copy()
        matrix[:2, 2] += [(width - max(width, height)) / 2, (height - max(width, height)) / 2]
        found.append(
            replace(
                camera, name=name, matrix=matrix, lens="opencv",
                radial=np.array([_LENS[0], _LENS[1], _LENS[4]]), tangential=np.array(_LENS[2:4]),
            )
        )  # fmt: skip
    return tuple(found)


def truth(people: People, take: Take) -> tuple[Float, Float]:
    """What the file of a take holds: 3D (F, 15, 3) mm and 2D (cameras, F, 15, 2) px."""
    world = named_joints(take.world, get_skeleton("humaneva_15").joints)
    if len(world) > 2 * _INVALID_ROW:
        world[_INVALID_ROW] = np.nan
    cameras = cameras_of(people, take.subject)
    return world, np.stack([c.project(c.to_camera(world)) for c in cameras])


def write(root: Path, people: People) -> None:
    """Writes the copy: a take's first trial is the validation part, its second the training part.

    Frames of the videos that no file has poses for are grey.
    """
    for subject in people.subjects:
        for camera in cameras_of(people, subject):
            assert camera.matrix is not None
            assert camera.rotation is not None
            assert camera.position is not None
            k = camera.matrix
            translation = -camera.rotation @ camera.position
            values = [k[0, 0], k[1, 1], k[0, 2], k[1, 2], 0.0, *_LENS]
            column(
                root / subject / "Calibration_Data" / f"{camera.name}.cal",
                np.array([*values, *camera.rotation.reshape(-1), *translation]),
            )
        for action in dict.fromkeys(t.action for t in people.takes if t.action in NAMES):
            parts = {}
            name = NAMES[action]
            for take in people.takes:
                if (take.subject, take.action) == (subject, action) and take.trial in (1, 2):
                    split = "Validate" if take.trial == 1 else "Train"
                    start = VALIDATE_FIRST if take.trial == 1 else TRAIN_FIRST[subject][name]
                    parts[start] = take
                    world, pixels = truth(people, take)
                    write_mat(
                        root / split / subject / f"{name}_1.mat",
                        {"poses_3d": world, "poses_2d": pixels},
                    )
            for camera in cameras_of(people, subject):
                stem = f"{name}_1_({camera.name})"
                column(root / subject / "Sync_Data" / f"{stem}.ofs", np.array([_SYNC, 50.0, 2.0]))
                video = root / subject / "Image_Data" / f"{stem}.avi"
                write_avi(video, _frames(people, parts, camera), FPS)


def _frames(people: People, parts: dict[int, Take], camera: Camera) -> Iterator[Pixels]:
    """Frames of a video: grey, but where a take starts."""
    grey = np.full((camera.size[1], camera.size[0], 3), 128, np.uint8)
    number = 0
    for start, take in sorted(parts.items()):
        first = start + _SYNC - 1
        for _ in range(number, first):
            yield grey
        yield from people.pictures(take, camera)
        number = max(number, first) + len(take.world)
