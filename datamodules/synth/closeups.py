"""Single pictures of the synthetic people, each filling its picture: what photo data sets have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.recordings import Float, Pixels
from datamodules.synth.joints import named_joints
from datamodules.synth.people import People

__all__ = ["Closeup", "closeups"]


class Closeup(NamedTuple):
    """A picture of one person.

    Attributes:
        pixels: (S, S, 3) uint8 RGB.
        joints: (J, 2) px, pixel centres at integers from 0.
        box: (4,) px, x0 y0 x1 y1 around the joints.
        take: number of the take that it is from.
    """

    pixels: Pixels
    joints: Float
    box: NDArray[np.float64]
    take: int


def closeups(people: People, names: Sequence[str], size: int) -> list[Closeup]:
    """Pictures of every frame of every take, the cameras in turn.

    Args:
        people: their cameras give the view points.
        names: joints, see :func:`~datamodules.synth.joints.named_joints`.
        size: side of the pictures in px.
    """
    found = []
    for number, take in enumerate(people.takes):
        world = named_joints(take.world, names)
        cameras = people.cameras[take.subject]
        for turn, camera in enumerate(cameras):
            # The next take begins with another camera.
            frames = np.arange(len(world))[(turn - number) % len(cameras) :: len(cameras)]
            if not len(frames):
                continue
            assert camera.matrix is not None
            plain = replace(camera, radial=None, tangential=None)
            own = people.pixels(take, plain)[frames].reshape(-1, 2)
            low, high = own.min(0), own.max(0)
            side = 1.4 * float((high - low).max())
            # px of the close-up = zoom (px - corner); the centres of its pixels are 0 ... size - 1.
            zoom, corner = size / side, (low + high) / 2 - side / 2
            move = np.diag([zoom, zoom, 1.0])
            move[:2, 2] = -zoom * corner - 0.5
            near = replace(plain, size=(size, size), matrix=move @ camera.matrix)
            joints = near.project(near.to_camera(world[frames]))
            for xy, pixels in zip(
                joints, people.pictures(take, near, frames.tolist()), strict=True
            ):
                box = np.concatenate([xy.min(0), xy.max(0)])
                found.append(Closeup(pixels, xy, box, number))
    return found
