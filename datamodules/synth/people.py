"""The people, cameras and pictures that synthetic copies of data sets are made of.

A format's writer is ``datamodules/synth/MODULE.py`` with::

    SUBJECTS, ACTIONS (optional): what its small copy has by default
    def write(root: Path, people: People) -> None

which writes ``people`` below ``root`` with exactly the files, names, keys, shapes, types and units
of the real data set. Everything is deterministic from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from datamodules.bodies import PARENTS, bodies, retarget
from datamodules.figure import NUM_OUTFIT_UNIFORMS
from datamodules.generator import ACTIONS
from datamodules.motion import FPS, MotionBank
from datamodules.people import girths_of
from datamodules.recordings import Camera
from datamodules.render import NUM_BOX_UNIFORMS, NUM_SCENE_UNIFORMS, Scene, occluding_boxes, render

__all__ = ["People", "Take", "h36m_cameras", "make_people"]

Float = NDArray[np.float64]

H36M_IDS = ("54138969", "55011271", "58860488", "60457274")
H36M_SIZES = ((1000, 1002), (1000, 1000), (1000, 1000), (1000, 1002))
_CAMERA_SEED = 0xCA3E


@dataclass(frozen=True, eq=False)
class Take:
    """One subject doing one action once.

    Attributes:
        subject: such as ``S1``.
        action: as :data:`datamodules.generator.ACTIONS` names it.
        trial: 1-based.
        world: (F, 17, 3) mm, world frame (z up), ``h36m_17``; float64.
        girth: (6,) of the body, see ``datamodules.figure.GIRTHS``.
        outfit: uniforms of the clothes.
        scene: uniforms of light and background.
    """

    subject: str
    action: str
    trial: int
    world: Float
    girth: NDArray[np.float32]
    outfit: NDArray[np.float32]
    scene: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class People:
    """Everything that a writer may put into files.

    Attributes:
        takes: subjects x actions x trials, in that order.
        cameras: of each subject (a data set calibrates anew for each one).
        fps: rate of the takes, Hz.
        detail: px that a whole picture is rendered with before it is enlarged: a small number is
            quick and blurry. Geometry is exact to about one such pixel.
        seed: of everything.
    """

    takes: tuple[Take, ...]
    cameras: dict[str, tuple[Camera, ...]]
    fps: float
    detail: int = 128
    seed: int = 0

    @property
    def subjects(self) -> tuple[str, ...]:
        """In the order of the takes, each once."""
        return tuple(dict.fromkeys(take.subject for take in self.takes))

    def pixels(self, take: Take, camera: Camera) -> Float:
        """(F, 17, 2) px: the take through the camera, lens distortion included."""
        if camera.affine is not None:
            return camera.project(take.world)
        return camera.project(camera.to_camera(take.world))

    def pictures(
        self, take: Take, camera: Camera, frames: ArrayLike | None = None
    ) -> NDArray[np.uint8]:
        """(F, H, W, 3) uint8 RGB of the camera's size; lens distortion is not drawn.

        An affine camera is drawn by a pinhole 50 m away.

        Args:
            take: who and what.
            camera: with a size; one that follows the person has a matrix for each frame.
            frames: of the take; ``None`` = all.
        """
        from PIL import Image

        chosen = np.arange(len(take.world)) if frames is None else np.asarray(frames)
        width, height = camera.size
        side = max(width, height)
        if camera.affine is not None:
            seen, depth = camera.at(chosen), 50_000.0
            assert seen.affine is not None
            scale = np.linalg.norm(seen.affine[..., :3], axis=-1).mean(-1)
            scale = np.broadcast_to(scale, len(chosen))
            world = take.world[chosen]
            joints = world @ np.swapaxes(seen.orientation(), -1, -2)
            middle = np.array([width, height]) / 2
            matrix = np.zeros((len(chosen), 3, 3))
            matrix[:, [0, 1], [0, 1]] = depth * scale[:, None]
            matrix[:, :2, 2], matrix[:, 2, 2] = middle, 1
            away = np.full((len(chosen), 3), depth)
            away[:, :2] = (seen.project(world)[:, 0] - middle) / scale[:, None]
            joints = joints - joints[:, :1] + away[:, None]
        else:
            assert camera.matrix is not None
            joints, matrix = camera.to_camera(take.world[chosen]), camera.matrix[None]
        small = min(self.detail, side)
        zoom = np.diag([small / side, small / side, 1.0])
        zoom[:2, 2] = (small / side - 1) / 2  # pixel centres at integers
        count = len(chosen)
        generator = np.random.default_rng((self.seed, 0xB0C5))
        boxes = torch.from_numpy(generator.random((1, NUM_BOX_UNIFORMS)).astype(np.float32))

        def rows(values: NDArray[Any]) -> torch.Tensor:
            wide = np.broadcast_to(values.astype(np.float32), (count, *values.shape))
            return torch.from_numpy(wide.copy())

        drawn = render(
            Scene(
                torch.from_numpy(joints.astype(np.float32)),
                torch.from_numpy((zoom @ matrix).astype(np.float32)).expand(count, -1, -1),
                rows(take.girth),
                rows(take.outfit),
                rows(take.scene),
                occluding_boxes(boxes, 0.0).expand(count, -1, -1),
            ),
            small,
            noise=0.01,
            buffers=False,
        )
        pixels = (drawn.image * 255).round().byte().permute(0, 2, 3, 1).numpy()
        if small == side:
            return np.ascontiguousarray(pixels[:, :height, :width])
        large = [
            np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BILINEAR))
            for p in pixels
        ]
        return np.stack(large)[:, :height, :width]


def h36m_cameras(
    subject: int = 1, sizes: Sequence[tuple[int, int]] = H36M_SIZES
) -> tuple[Camera, ...]:
    """Four cameras in the corners of a room, like Human3.6M's but not its calibration.

    Args:
        subject: each subject's cameras stand a little elsewhere; their lenses are the same.
        sizes: of the pictures, px; another size scales the focal length.
    """
    lens = np.random.default_rng(_CAMERA_SEED)
    place = np.random.default_rng((_CAMERA_SEED, subject))
    azimuths = np.deg2rad([67.0, 112.0, 248.0, 293.0])
    cameras = []
    for name, size, azimuth in zip(H36M_IDS, sizes, azimuths, strict=False):
        scale = max(size) / 1000
        focal = 1145 + lens.uniform(-3, 3, 2)
        middle = 500 + lens.uniform(0, 20, 2)
        radial = np.array([-0.2, 0.24, -0.002]) + lens.uniform(-0.01, 0.01, 3)
        tangential = lens.uniform(-0.003, 0.003, 2)
        distance, height = place.uniform(4500, 5200), place.uniform(1450, 1600)
        eye = np.array([np.cos(azimuth) * distance, np.sin(azimuth) * distance, height])
        forward = np.array([*place.uniform(-150, 150, 2), 950.0]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        matrix = np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1 / scale]])
        cameras.append(
            Camera(
                name=name,
                size=size,
                matrix=matrix * scale,
                radial=radial,
                tangential=tangential,
                rotation=np.stack([right, np.cross(forward, right), forward]),
                position=eye,
            )
        )
    return tuple(cameras)


def make_people(
    subjects: Sequence[str] = ("S1", "S5", "S9"),
    actions: Sequence[str] = ("Directions", "Walking"),
    trials: Sequence[int] = (1, 2),
    frames: int = 12,
    *,
    sizes: Sequence[tuple[int, int]] = H36M_SIZES,
    detail: int = 128,
    seed: int = 0,
) -> People:
    """People doing things at 50 fps, seen by Human3.6M-like cameras.

    Args:
        subjects: a letter and a number each; another number is another body.
        actions: names of :data:`datamodules.generator.ACTIONS`.
        trials: numbers.
        frames: of each take.
        sizes: one for each camera, at most four, px.
        detail: see :class:`People`.
        seed: another seed gives other people and motions.
    """
    bank = MotionBank.generated(
        seed, splits=["train"], actions=[a for a in ACTIONS if a in actions],
        recordings={"train": max(1, len(trials))}, seconds=max(frames / FPS + 0.1, 1.0),
    )  # fmt: skip
    crowd = bodies("train", seed, 8)
    takes, cameras = [], {}
    for subject in subjects:
        number = int("".join(c for c in subject if c.isdigit()) or 0)
        body = crowd[number % len(crowd)]
        cameras[subject] = h36m_cameras(number, sizes)
        for action in actions:
            mine = [i for i, name in enumerate(bank.actions) if name == action]
            for trial in trials:
                rng = np.random.default_rng((seed, number, ACTIONS.index(action), trial))
                motion = bank.recording(mine[(trial - 1) % len(mine)])[:frames]
                world = retarget(motion, PARENTS, body.lengths).astype(np.float64)
                world[..., :2] += rng.uniform(-300, 300, 2) - world[:, :1, :2].mean(0)
                takes.append(
                    Take(
                        subject,
                        action,
                        trial,
                        world,
                        np.array(girths_of(body), dtype=np.float32),
                        rng.random(NUM_OUTFIT_UNIFORMS).astype(np.float32),
                        rng.random(NUM_SCENE_UNIFORMS).astype(np.float32),
                    )
                )
    return People(tuple(takes), cameras, float(FPS), detail, seed)
