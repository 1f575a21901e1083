"""A synthetic copy of MPI-INF-3DHP: training sequences of 14 cameras, and test sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.mpi_inf_3dhp import (
    ACTIVITIES,
    CHEST_CAMERAS,
    JOINTS_28,
    RELEVANT,
    SKELETOOL,
    Y_UP_TO_Z_UP,
)
from datamodules.recordings import Camera
from datamodules.synth.files import write_avi, write_image, write_mat, write_mat73
from datamodules.synth.joints import named_joints
from datamodules.synth.people import People, Take

__all__ = ["ACTIONS", "SIZES", "SUBJECTS", "UNIVERSAL", "ring", "write"]

SUBJECTS = ("S1", "TS1", "S8", "TS5")
ACTIONS = ("Walking", "Sitting")
SIZES = ((2048, 2048),)
NUM_CAMERAS = 14
VIDEO_CAMERAS = (0, 1)
"""The other cameras of the small copy have annotations only."""
UNIVERSAL = 0.95
"""Stature of ``univ_annot3`` over that of ``annot3``; scaled around the camera: pixels stay."""
_ACTIVITY = {"Walking": 1, "Sitting": 3, "Directions": 2, "SittingDown": 4}


def ring(size: tuple[int, int], subject: int) -> tuple[Camera, ...]:
    """The 14 cameras: eight at the height of the chest, the others above, all around the room."""
    cameras = []
    rng = np.random.default_rng((0x3D49, subject))
    for number in range(NUM_CAMERAS):
        azimuth = 2 * np.pi * number / NUM_CAMERAS + 0.3
        height = 1400.0 if number in CHEST_CAMERAS else 3000.0
        eye = np.array([np.cos(azimuth) * 4200, np.sin(azimuth) * 4200, height])
        eye += rng.uniform(-80, 80, 3)
        forward = np.array([0, 0, 950.0]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        focal = 0.73 * max(size)
        middle = np.array(size) / 2 + rng.uniform(-0.01, 0.01, 2) * max(size)
        cameras.append(
            Camera(
                str(number),
                size,
                np.array([[focal, 0, middle[0]], [0, 1.0003 * focal, middle[1]], [0, 0, 1]]),
                rotation=np.stack([right, np.cross(forward, right), forward]),
                position=eye,
            )
        )
    return tuple(cameras)


def write(root: Path, people: People) -> None:
    """Writes the copy; subjects called ``TS...`` are test sequences of all their takes."""
    for subject in people.subjects:
        takes = [t for t in people.takes if t.subject == subject]
        size = people.cameras[subject][0].size
        cameras = ring(size, int("".join(c for c in subject if c.isdigit())))
        if subject.startswith("TS"):
            _write_test(root / subject, people, takes, cameras[0])
        else:
            for number, take in enumerate(takes[:2], start=1):
                _write_train(root / subject / f"Seq{number}", people, take, cameras)


def _write_train(folder: Path, people: People, take: Take, cameras: tuple[Camera, ...]) -> None:
    world = named_joints(take.world, JOINTS_28)
    count = len(world)
    cells = {
        name: np.empty((NUM_CAMERAS, 1), object) for name in ("annot2", "annot3", "univ_annot3")
    }
    for i, camera in enumerate(cameras):
        joints = camera.to_camera(world)
        cells["annot2"][i, 0] = camera.project(joints).reshape(count, -1)
        cells["annot3"][i, 0] = joints.reshape(count, -1)
        cells["univ_annot3"][i, 0] = UNIVERSAL * joints.reshape(count, -1)
    write_mat(
        folder / "annot.mat",
        {
            **cells,
            "frames": np.arange(count, dtype=np.uint32)[:, None],
            "cameras": np.arange(NUM_CAMERAS, dtype=np.uint8)[None],
        },
    )
    lines = [SKELETOOL]
    for camera in cameras:
        lines += _skeletool(camera)
    (folder / "camera.calibration").write_text("\n".join(lines) + "\n")
    for i in VIDEO_CAMERAS:
        video = folder / "imageSequence" / f"video_{i}.avi"
        write_avi(video, people.pictures(take, cameras[i]), people.fps)


def _skeletool(camera: Camera) -> list[str]:
    assert camera.matrix is not None
    assert camera.rotation is not None
    assert camera.position is not None
    intrinsic, extrinsic = np.eye(4), np.eye(4)
    intrinsic[:3, :3] = camera.matrix
    extrinsic[:3, :3] = camera.rotation @ Y_UP_TO_Z_UP
    extrinsic[:3, 3] = -camera.rotation @ camera.position

    def row(matrix: Any) -> str:
        return " ".join(repr(float(v)) for v in np.asarray(matrix).reshape(-1))

    return [
        f"name          {camera.name}",
        "  sensor      10 10",
        f"  size        {camera.size[0]} {camera.size[1]}",
        "  animated    0",
        f"  intrinsic   {row(intrinsic)} ",
        f"  extrinsic   {row(extrinsic)} ",
        "  radial      0",
    ]


def _write_test(folder: Path, people: People, takes: list[Take], camera: Camera) -> None:
    names = [JOINTS_28[i] for i in RELEVANT]
    joints = np.concatenate([camera.to_camera(named_joints(t.world, names)) for t in takes])
    count = len(joints)
    valid = np.arange(count) % 5 != 4
    activity = np.concatenate(
        [np.full(len(t.world), _ACTIVITY.get(t.action, len(ACTIVITIES))) for t in takes]
    )
    pixels = camera.project(joints)

    def matlab(values: Any) -> Any:
        """(n, 17, D) to MATLAB's D x 17 x 1 x n."""
        return np.asarray(values).transpose(2, 1, 0)[:, :, None]

    write_mat73(
        folder / "annot_data.mat",
        {
            "annot2": matlab(pixels),
            "annot3": matlab(joints),
            "univ_annot3": matlab(UNIVERSAL * joints),
            "valid_frame": valid[None].astype(np.float64),
            "activity_annotation": activity[None].astype(np.float64),
            "bb_crop": np.zeros((34, count)),
        },
    )
    number = 0
    for take in takes:
        for picture in people.pictures(take, camera):
            number += 1
            write_image(folder / "imageSequence" / f"img_{number:06d}.jpg", picture)
