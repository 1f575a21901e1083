"""A small copy of Human3.6M's official files, from synthetic people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.human36m import ACTIONS, CAMERAS, JOINTS_32_TO_17, SUBJECTS
from datamodules.recordings import Camera
from datamodules.synth.people import People, Take

__all__ = ["file_stem", "joints_32", "metadata_xml", "write", "write_cdf", "write_poses"]

_S1_NAMES = {"Photo": "TakingPhoto", "WalkDog": "WalkingDog"}


def file_stem(take: Take) -> str:
    """The official name: trial 1 is ``X 1`` and 2 is ``X``, but for the known swaps."""
    name = _S1_NAMES.get(take.action, take.action) if take.subject == "S1" else take.action
    first, second = f"{name} 1", name
    if take.action == "SittingDown" and take.subject not in ("S1", "S6"):
        first, second = second, first
    if take.action == "Photo" and take.subject in ("S5", "S6", "S7"):
        first, second = second, first
    if (take.subject, take.action) == ("S11", "Phoning"):
        first, second = f"{name} 3", f"{name} 2"
    return first if take.trial == 1 else second


def joints_32(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F, 17, D) -> (F, 32, D): the joints in between stand still, as many do in the files."""
    full = np.repeat(joints[:, :1], 32, 1)
    full[:, list(JOINTS_32_TO_17)] = joints
    full[:, [4, 5, 9, 10]] = joints[:, [3, 3, 6, 6]]  # toes
    full[:, [16, 20, 21, 22, 23]] = joints[:, [8, 13, 13, 13, 13]]
    full[:, [24, 28, 29, 30, 31]] = joints[:, [8, 16, 16, 16, 16]]
    full[:, 11] = joints[:, 0]
    return full


def write_cdf(path: Path, pose: NDArray[np.float64]) -> None:
    """A CDF file with ``Pose``, (F, 32, D) as (1, F, 32 D) float32."""
    from cdflib.cdfwrite import CDF

    path.parent.mkdir(parents=True, exist_ok=True)
    data = pose.reshape(1, len(pose), -1).astype(np.float32)
    cdf = CDF(path, cdf_spec={"Compressed": False}, delete=True)
    cdf.write_var(
        {
            "Variable": "Pose", "Data_Type": CDF.CDF_REAL4, "Num_Elements": 1, "Rec_Vary": True,
            "Dim_Sizes": list(data.shape[1:]), "Compress": 0,
        },
        var_data=data,
    )  # fmt: skip
    cdf.close()


def metadata_xml(cameras: dict[str, tuple[Camera, ...]], people: People) -> str:
    """The parts of ``metadata.xml`` that are read: file names, actions, camera ids, ``w0``."""
    numbers = np.zeros(300)
    for c in range(4):
        for s in range(1, 12):
            camera = cameras.get(f"S{s}", next(iter(cameras.values())))[c]
            rotation, position = camera.rotation, camera.position
            assert rotation is not None
            assert position is not None
            angles = (
                np.arctan2(-rotation[1, 2], rotation[2, 2]),
                np.arcsin(rotation[0, 2]),
                np.arctan2(-rotation[0, 1], rotation[0, 0]),
            )
            numbers[6 * (11 * c + s - 1) :][:6] = [*angles, *position]
        camera = next(iter(cameras.values()))[c]
        matrix, radial, bend = camera.matrix, camera.radial, camera.tangential
        assert matrix is not None
        assert radial is not None
        assert bend is not None
        focal = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
        numbers[264 + 9 * c : 273 + 9 * c] = [*focal, *radial, *bend]

    def row(*cells: Any) -> str:
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

    rows = [row("", "", *SUBJECTS)]
    empty = np.zeros((1, 17, 3))
    template = people.takes[0]
    for number, action in enumerate(ACTIONS, 2):
        for trial in (1, 2):
            stems = [
                file_stem(Take(s, action, trial, empty, template.girth, template.outfit,
                               template.scene))
                for s in SUBJECTS
            ]  # fmt: skip
            rows.append(row(number, trial, *stems))
    official = {"WalkDog": "WalkingDog", "WalkTogether": "WalkingTogether", "Photo": "TakingPhoto"}
    names = "".join(f"<action>{official.get(a, a)}</action>" for a in ("_ALL", *ACTIONS))
    ids = "".join(f"<value>{c}</value>" for c in CAMERAS)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<metadata>\n'
        f"<mapping>{''.join(rows)}</mapping>\n<actionnames>{names}</actionnames>\n"
        f"<dbcameras><index2id>{ids}</index2id></dbcameras>\n"
        f"<w0>[{' '.join(repr(float(n)) for n in numbers)}]</w0>\n</metadata>\n"
    )


def write_poses(root: Path, people: People, layout: str = "MyPoseFeatures/{}") -> None:
    """The CDF files of all takes.

    Args:
        root: made if missing.
        people: who and what.
        layout: ``MyPoseFeatures/{}`` or ``Poses_{}``.
    """
    for take in people.takes:
        stem = file_stem(take)
        folder = root / take.subject
        write_cdf(folder / layout.format("D3_Positions") / f"{stem}.cdf", joints_32(take.world))
        for camera in people.cameras[take.subject]:
            name = f"{stem}.{camera.name}.cdf"
            pixels = joints_32(people.pixels(take, camera))
            write_cdf(folder / layout.format("D2_Positions") / name, pixels)
            joints = joints_32(camera.to_camera(take.world))
            write_cdf(folder / layout.format("D3_Positions_mono") / name, joints)


def write(root: Path, people: People) -> None:
    """Poses, videos and ``metadata.xml``; the first recording's video has two frames more."""
    from zoo.video import VideoWriter

    write_poses(root, people)
    (root / "metadata.xml").write_text(metadata_xml(people.cameras, people), encoding="utf-8")
    for number, take in enumerate(people.takes):
        for camera in people.cameras[take.subject]:
            path = root / take.subject / "Videos" / f"{file_stem(take)}.{camera.name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = people.pictures(take, camera)
            extra = [pictures[-1]] * 2 if number == 0 else []
            with VideoWriter(path, people.fps) as video:
                for picture in [*pictures, *extra]:
                    video.write(picture)
