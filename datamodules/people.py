"""Samples of synthetic people as numbers: pose, body, clothes, camera, light.

The numbers of a sample come from a hash of (seed, split, epoch, index), so they are the same for
any number of workers, processes and batch sizes. :mod:`datamodules.synthetic` makes pictures of
them, on the device that trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SplitName
from datamodules.figure import GIRTHS, NUM_OUTFIT_UNIFORMS
from datamodules.motion import PARENTS, Body, MotionBank, retarget
from datamodules.render import NUM_BOX_UNIFORMS, NUM_SCENE_UNIFORMS
from zoo.base import InputSpec
from zoo.errors import UsageError, suggest
from zoo.skeleton import H36M_17

__all__ = ["Samples", "SyntheticPeople", "girths_of"]

Float = NDArray[np.float64]
Samples = dict[str, Tensor]

# ---- the room, after Human3.6M's ----------------------------------------------------------------

_AZIMUTH = np.deg2rad([67.0, 112.0, 248.0, 293.0])
_DISTANCE_MM = np.array([4600.0, 4900.0, 5100.0, 4700.0])
_HEIGHT_MM = np.array([1560.0, 1430.0, 1520.0, 1600.0])
_FOCAL_PX = np.array([1145.0, 1149.0, 1146.0, 1144.0])
_CENTRE_PX = np.array([[512.5, 515.5], [508.8, 508.1], [519.8, 501.4], [514.9, 501.9]])
_TARGET_MM = np.array([0.0, 0.0, 950.0])
_MIRROR = np.array([-1.0, 1.0, 1.0])
_ROOM_RADIUS_MM = 1000.0
"""The pelvis of a clip's centre frame stays within this distance of the room's middle."""

_DOMAINS = ("studio", "outdoor")

_SPLIT_NUMBER = {"train": 0, "val": 1, "test": 2}
_SEQUENCE_STEP = 100_000
_NUM_GEOMETRY, _NUM_AUGMENT = 11, 9
_PICTURE_PX = 1000
_BLOCK_FRAMES = 250
"""In validation and test another body takes over a recording every so many frames (5 s)."""
_OUTFITS = 64
"""Sets of clothes a training body owns; validation and test bodies own one each."""


# ---- numbers ------------------------------------------------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection that scatters bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _key(*parts: int | NDArray[Any]) -> NDArray[np.uint64]:
    """One 64-bit key from integers or arrays of them."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix(key + _GOLDEN + _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return key


def _uniforms(keys: NDArray[np.uint64], count: int) -> NDArray[np.float32]:
    """(n,) keys -> (n, count) numbers in [0, 1): SplitMix64 with each key as its seed."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + steps)
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


# ---- samples ------------------------------------------------------------------------------------


class SyntheticPeople(Dataset[Samples]):
    """Samples of one split as numbers; ``__getitems__`` makes a whole batch at once.

    Args:
        split: ``train``, ``val`` or ``test``.
        bank: recordings of that split.
        people: bodies of that split.
        actions: names that the action index counts in.
        samples: number of samples; in training an epoch, otherwise evenly spaced over recordings
            and cameras.
        spec: frames of a clip and their rate; whether pictures are needed.
        seed: of the randomness.
        rotation: largest roll of the camera in training, degrees.
        flip: probability that a training sample is the mirror image of its scene: 3D, camera and
            left/right labels, and so all that is projected and rendered from them.
        fresh_epochs: after so many epochs the samples of the first ones come again.
        domain: ``studio`` is the room of the four cameras; ``outdoor`` has other cameras (near or
            far, from knee height to a balcony, wide or long lenses, rolled), patterned and short
            clothes, and colourful, cluttered backgrounds, in all splits.

    An index may carry an epoch, see :class:`~datamodules.base.EpochSampler`.
    """

    def __init__(
        self,
        split: SplitName,
        bank: MotionBank,
        people: Sequence[Body],
        actions: Sequence[str],
        samples: int,
        spec: InputSpec,
        seed: int,
        rotation: float = 0.0,
        flip: float = 0.0,
        fresh_epochs: int = 0,
        domain: str = "studio",
    ) -> None:
        if domain not in _DOMAINS:
            raise UsageError(suggest(domain, _DOMAINS, "domain"))
        if not len(bank):
            raise UsageError(f"the motion file has no recording for the {split} split")
        self.split = split
        self.bank = bank
        self.spec = spec
        self.seed = seed
        self.rotation = math.radians(rotation)
        self.flip = flip
        self.outdoor = domain == "outdoor"
        self.train = split == "train"
        self.fresh_epochs = fresh_epochs if self.train else 0
        self.samples = samples if self.train else min(samples, 4 * bank.num_frames)
        self.lengths = np.stack([body.lengths for body in people])
        self.girths = np.array([girths_of(body) for body in people], dtype=np.float32)
        self.subjects = np.array([body.subject for body in people], dtype=np.int64)
        self.clothing = np.array([body.clothing_seed for body in people], dtype=np.int64)
        self.actions = np.array([list(actions).index(a) for a in bank.actions], dtype=np.int64)
        self.ends = np.cumsum(bank.lengths)
        middles = [bank.recording(i)[:, 0, :2].mean(0) for i in range(len(bank))]
        self.middles = np.array(middles, dtype=np.float64)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Samples:
        """One sample, without a batch axis."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Samples:
        """A batch of samples.

        Returns:
            ``joints`` (B, T, 17, 3) mm, absolute, camera frame; ``camera_matrix`` (B, 3, 3) px of
            the whole picture; ``world_to_camera`` (B, 3, 3); ``girth``, ``outfit``, ``scene``,
            ``boxes`` for the renderer; ``augment`` (training only); ``slot``, the place of a
            sample that comes again; and the ids.
        """
        index = np.asarray(indices, dtype=np.int64)
        epoch, item = np.divmod(index, len(self))
        shown = epoch % self.fresh_epochs if self.fresh_epochs else epoch
        stream = _SPLIT_NUMBER[self.split] + len(_SPLIT_NUMBER) * self.outdoor
        colours = _mix(_key(self.seed, stream, epoch, item) + np.uint64(5))
        epoch = shown
        keys = _key(self.seed, stream, epoch, item)
        # One stream a purpose, so that one with more numbers shifts no other.
        geometry, scenery, boxes, augment = (_mix(keys + np.uint64(i)) for i in range(1, 5))
        u = _uniforms(geometry, _NUM_GEOMETRY).astype(np.float64)
        if self.train:
            place = (u[:, 0] * self.bank.num_frames).astype(np.int64)
            camera = np.minimum((u[:, 1] * 4).astype(np.int64), 3)
        else:
            place = ((item + 0.5) * self.bank.num_frames / len(self)).astype(np.int64)
            camera = item % 4
        recording = np.searchsorted(self.ends, place, side="right")
        frame = place - (self.ends[recording] - self.bank.lengths[recording])
        who, wardrobe = self._cast(recording, frame, u)

        world = self._clips(recording, frame, who)
        eye, target, focal, centre = self._cameras(camera, u)
        roll = self._roll(u)
        rotation = _look_at(eye, target, roll)
        joints = np.einsum("nij,ntkj->ntki", rotation, world - eye[:, None, None])
        matrix = np.zeros((len(item), 3, 3))
        matrix[:, 0, 0] = matrix[:, 1, 1] = focal
        matrix[:, :2, 2] = centre
        matrix[:, 2, 2] = 1
        if self.train:
            mirror = u[:, 10] < self.flip
            joints[mirror] = (joints * _MIRROR)[mirror][:, :, H36M_17.flip]
            matrix[mirror, 0, 2] = _PICTURE_PX - 1 - matrix[mirror, 0, 2]
            # The world is mirrored too (x -> -x): what remains is a rotation, and up stays up.
            rotation[mirror] = _MIRROR[:, None] * rotation[mirror] * _MIRROR
        arrays: dict[str, NDArray[Any]] = {
            "joints": joints.astype(np.float32),
            "camera_matrix": matrix.astype(np.float32),
            "world_to_camera": rotation.astype(np.float32),
            "girth": self.girths[who],
            "outfit": self._outfits(who, wardrobe),
            "boxes": _uniforms(boxes, NUM_BOX_UNIFORMS),
            "subject": self.subjects[who],
            "action": self.actions[recording],
            "camera": camera,
            "sequence": recording + _SEQUENCE_STEP * _SPLIT_NUMBER[self.split],
            "frame": frame,
        }
        if self.spec.kind == "image":
            scene = _uniforms(scenery, NUM_SCENE_UNIFORMS)
            arrays["scene"] = _outdoor_scene(scene) if self.outdoor else scene
        if self.train:
            # The crop belongs to the picture; the colours change each time that it is shown.
            crop, colour = _uniforms(augment, 3), _uniforms(colours, _NUM_AUGMENT - 3)
            arrays["augment"] = np.concatenate([crop, colour], axis=1)
        if self.fresh_epochs:
            arrays["slot"] = epoch * len(self) + item
        elif self.split == "val" and self.spec.kind == "image":
            arrays["slot"] = item  # the same pictures in every epoch
        return {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in arrays.items()}

    def _cast(
        self, recording: NDArray[np.int64], frame: NDArray[np.int64], u: Float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which body, in which clothes."""
        count = len(self.subjects)
        if self.train:
            who = np.minimum((u[:, 2] * count).astype(np.int64), count - 1)
            return who, (u[:, 3] * _OUTFITS).astype(np.int64)
        block = _key(recording, frame // _BLOCK_FRAMES)
        return (block % np.uint64(count)).astype(np.int64), np.zeros(len(frame), np.int64)

    def _clips(
        self, recording: NDArray[np.int64], frame: NDArray[np.int64], who: NDArray[np.int64]
    ) -> Float:
        """(B, T, 17, 3) mm, room frame: on their bodies, and inside the capture space."""
        spec = self.spec
        clips = self.bank.clips(recording, frame, spec.frames, spec.clip_fps)
        world = retarget(clips, PARENTS, self.lengths[who][:, None]).astype(np.float64)
        pelvis = world[:, spec.frames // 2, 0, :2]
        offset = pelvis - self.middles[recording]
        distance = np.linalg.norm(offset, axis=-1, keepdims=True)
        offset = offset * np.minimum(1, _ROOM_RADIUS_MM / np.maximum(distance, 1e-6))
        world[..., :2] += (offset - pelvis)[:, None, None]
        return world

    def _outfits(self, who: NDArray[np.int64], wardrobe: NDArray[np.int64]) -> NDArray[np.float32]:
        u = _uniforms(_key(self.clothing[who], wardrobe), NUM_OUTFIT_UNIFORMS)
        if self.outdoor:
            u[:, 15] = 0.5 + 0.5 * u[:, 15]  # a pattern on every shirt
            u[:, 18] *= 0.4  # often one on the trousers
            u[:, 21] = 0.6 * u[:, 21]  # mostly short sleeves
            u[:, 23] = 0.5 * u[:, 23]  # mostly short trousers
        return u

    def _roll(self, u: Float) -> Float:
        """(n,) roll of the camera, radians."""
        if self.outdoor:
            return math.radians(12.0) * (2 * u[:, 9] - 1)
        return self.rotation * (2 * u[:, 9] - 1) if self.train else np.zeros(len(u))

    def _cameras(self, camera: NDArray[np.int64], u: Float) -> tuple[Float, Float, Float, Float]:
        """Where the cameras stand and look, their focal lengths and principal points."""
        if self.outdoor:
            azimuth = 2 * np.pi * u[:, 4]
            distance = 2800 + 6200 * u[:, 5] ** 2
            height = 500 + 2700 * u[:, 6]
            wander = np.stack([u[:, 7] - 0.5, u[:, 8] - 0.5, 0 * u[:, 8]], -1) * 900
            eye = np.stack([np.cos(azimuth) * distance, np.sin(azimuth) * distance, height], -1)
            # The focal length has no number of its own: one that only the roll uses, stretched.
            focal = 700 + 1100 * np.modf(u[:, 9] * 61)[0]
            return eye, _TARGET_MM + wander, focal, _CENTRE_PX[camera]
        if self.train:
            azimuth = 2 * np.pi * u[:, 4]
            distance = 4000 + 1500 * u[:, 5]
            height = 1250 + 550 * u[:, 6]
            wander = np.stack([u[:, 7] - 0.5, u[:, 8] - 0.5, 0 * u[:, 8]], -1) * 400
        else:
            azimuth, distance, height = _AZIMUTH[camera], _DISTANCE_MM[camera], _HEIGHT_MM[camera]
            wander = np.zeros((len(camera), 3))
        eye = np.stack([np.cos(azimuth) * distance, np.sin(azimuth) * distance, height], -1)
        return eye, _TARGET_MM + wander, _FOCAL_PX[camera], _CENTRE_PX[camera]


def _outdoor_scene(scene: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same numbers, moved to where ``stage_from_uniforms`` makes colour and clutter of them."""
    scene = scene.copy()
    scene[:, 4] = 0.2 + 0.45 * scene[:, 4]  # greens and blues
    scene[:, [5, 7, 8, 9]] **= 0.3  # saturated, rough, detailed, of many colours
    scene[:, 6] = 0.25 + 0.75 * scene[:, 6]
    return scene


def girths_of(body: Body) -> list[float]:
    """Factors of a body in the order of ``datamodules.figure.GIRTHS``."""
    torso, limb, head = body.girth_torso, body.girth_limb, body.girth_head
    factors = {
        "torso": math.sqrt(torso), "depth": torso, "hips": math.sqrt(torso * limb),
        "arms": limb, "legs": math.sqrt(limb), "head": head,
    }  # fmt: skip
    return [factors[name] for name in GIRTHS]


def _look_at(eye: Float, target: Float, roll: Float) -> Float:
    """(n, 3, 3) rotations from the world (z up) to cameras (x right, y down, z forward)."""
    forward = target - eye
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward], axis=1)
