"""Augmentation of files' pictures through albumentations, with everything kept in step.

A pipeline of albumentations moves the picture; four reference points that go through it as
keypoints tell how. From them come the 2D joints, the map back to the source picture, the
intrinsics, the 3D pose (a roll of the picture is one of the camera), and, where the picture was
mirrored, left and right in 2D, 3D and all flags. So any transform works that keeps shapes: scale,
shift, turn, mirror, and all that changes pixels only. One that stretches people is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, UsageError, suggest
from zoo.skeleton import Skeleton, get_skeleton

__all__ = ["SCHEMES", "PictureAugmentation", "make_augmentation", "moved"]

Float = NDArray[np.float64]
Sample = dict[str, NDArray[Any]]

SCHEMES: dict[str, str] = {
    "rpsm": "scale 0.9 to 1.1, drawn for each frame, grey borders (Lin et al. 2017, Wang et al. "
    "2019)",
    "katircioglu": "a window of 112/128 of the crop at a random place (Katircioglu et al. 2017); "
    "the zoo's latent methods cut it themselves",
    "park": "a window of 225/250 of the crop at a random place (Park et al. 2016); the zoo's park "
    "cuts it itself. Its colour noise is --data.pca_color 0.1",
    "cpm": "scale 0.7 to 1.3, turned by up to 40 degrees, mirrored half of the time (convolutional "
    "pose machines, Tome et al. 2017)",
}
"""Names for ``--data.augment``, and what they do."""

_MIRROR = np.diag([-1.0, 1.0, 1.0])
_SWAPPED = ("scores_2d", "valid_2d", "valid_3d", "occluded", "joints_2d", "joints_3d")


def _library() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network otherwise
    import albumentations

    return albumentations


def _window(share: float) -> Any:
    """A random part of the crop, ``share`` of its side, enlarged to the whole."""
    scale, shift = 1 / share, (1 / share - 1) / 2
    return _library().Affine(
        scale=(scale, scale), translate_percent=(-shift, shift), keep_ratio=True, p=1.0
    )


def _scheme(name: str) -> tuple[list[Any], bool]:
    """(transforms, whether each frame of a clip has its own draw)."""
    library = _library()
    if name == "rpsm":
        return [library.Affine(scale=(0.9, 1.1), keep_ratio=True, fill=128, p=1.0)], True
    if name == "katircioglu":
        return [_window(112 / 128)], False
    if name == "park":
        return [_window(225 / 250)], False
    return [
        library.Affine(scale=(0.7, 1.3), rotate=(-40, 40), keep_ratio=True, fill=128, p=1.0),
        library.HorizontalFlip(p=0.5),
    ], False


def make_augmentation(
    name: str, size: int = 128, skeleton: str = "h36m_17"
) -> PictureAugmentation | None:
    """The augmentation called ``name``; ``None`` for the empty name.

    Args:
        name: one of :data:`SCHEMES`, or the path of a pipeline that ``albumentations.save`` wrote
            (``.json``, ``.yaml``).
        size: side of the crops in px.
        skeleton: of the samples.

    Raises:
        UsageError: no scheme has that name.
        DataError: the file is missing or holds no pipeline.
    """
    if not name:
        return None
    if name in SCHEMES:
        transforms, per_frame = _scheme(name)
        return PictureAugmentation(transforms, size, skeleton, per_frame)
    path = Path(name)
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UsageError(suggest(name, SCHEMES, "augmentation"))
    try:
        kind = "json" if path.suffix == ".json" else "yaml"
        loaded = _library().load(str(path), data_format=kind)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # the library raises many kinds for what it does not know
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: no pipeline of albumentations ({reason})") from error
    transforms = list(getattr(loaded, "transforms", [loaded]))
    return PictureAugmentation(transforms, size, skeleton)


class PictureAugmentation:
    """Runs a pipeline on the crops of a sample, and moves all that belongs to them.

    Args:
        transforms: of albumentations; together they must keep the picture's size, and may scale,
            shift, turn and mirror, nothing else that moves a pixel.
        size: side of the crops in px, for samples without pictures.
        skeleton: of the samples.
        per_frame: each frame of a clip has its own draw, else the clip has one. A clip has one
            camera orientation, so such transforms may scale and shift only.
    """

    def __init__(
        self,
        transforms: list[Any],
        size: int = 128,
        skeleton: str | Skeleton = "h36m_17",
        per_frame: bool = False,
    ) -> None:
        library = _library()
        self.pipeline = library.Compose(
            transforms,
            keypoint_params=library.KeypointParams(format="xy", remove_invisible=False),
        )
        self.skeleton = get_skeleton(skeleton) if isinstance(skeleton, str) else skeleton
        self.size = size
        self.per_frame = per_frame

    def box(self, centre: Float, side: float, rng: np.random.Generator) -> tuple[Float, float]:
        """The crop stays where it is: what moves is done on the crop."""
        return centre, side

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample; see :class:`datamodules.filedata.Augmentation`.

        Raises:
            UsageError: the pipeline changes the size of the picture or the shape of people.
        """
        frames = len(sample["joints_2d"])
        groups = [[t] for t in range(frames)] if self.per_frame else [list(range(frames))]
        changed = {key: value.copy() for key, value in sample.items()}
        for group in groups:
            pictures = sample["image"][group] if "image" in sample else None
            affine, pictures = self._run(pictures, int(rng.integers(2**31)))
            if pictures is not None:
                changed["image"][group] = pictures
            turn = _orientation(affine)
            if self.per_frame and frames > 1 and np.abs(turn - np.eye(3)).max() > 1e-6:
                raise UsageError("an augmentation drawn for each frame may not turn or mirror")
            part = {k: changed[k][group] for k in changed if k in _OF_FRAMES}
            part["world_to_camera"] = changed["world_to_camera"]
            for key, value in moved(part, affine, self.skeleton).items():
                if key == "world_to_camera":
                    changed[key] = value
                else:
                    changed[key][group] = value
        return changed

    def _run(
        self, pictures: NDArray[np.uint8] | None, seed: int
    ) -> tuple[Float, NDArray[np.uint8] | None]:
        """The affine map (2, 3) of one draw, and the pictures after it."""
        size = self.size if pictures is None else int(pictures.shape[1])
        last = size - 1.0
        marks = np.array([[0.0, 0.0], [last, 0.0], [0.0, last], [last, last]])
        images = np.zeros((1, size, size, 3), np.uint8) if pictures is None else pictures
        self.pipeline.set_random_seed(seed)
        result = self.pipeline(images=images, keypoints=marks)
        after = np.asarray(result["keypoints"], np.float64)
        shape = tuple(np.shape(result["images"])[1:3])
        if shape != (size, size):
            raise UsageError(
                f"the augmentation turns {size} x {size} px into {shape[0]} x {shape[1]}; it must "
                "keep the size"
            )
        columns = (after[1] - after[0]) / last, (after[2] - after[0]) / last
        affine = np.stack([*columns, after[0]], axis=1)
        linear = affine[:, :2]
        scale = np.sqrt(abs(np.linalg.det(linear)))
        straight = after[1] + after[2] - after[0]
        if (
            not scale > 1e-6
            or np.abs(linear.T @ linear - scale**2 * np.eye(2)).max() > 1e-3 * scale**2
            or np.abs(straight - after[3]).max() > 0.01
        ):
            raise UsageError(
                "the augmentation stretches people; only scale, shift, turn and mirror keep 3D true"
            )
        affine[:, :2] = _similar(linear)
        affine[:, 2] = (after - marks @ affine[:, :2].T).mean(0)
        return affine, None if pictures is None else np.asarray(result["images"])


_OF_FRAMES = (
    "joints_2d", "scores_2d", "valid_2d", "valid_3d", "occluded", "joints_3d", "root_3d",
    "intrinsics", "crop_to_image",
)  # fmt: skip


def _similar(linear: Float) -> Float:
    """(2, 2) the similarity, or mirrored one, that keypoints in single precision stand for."""
    mirror = np.diag([np.sign(np.linalg.det(linear)), 1.0])
    straight = linear @ mirror
    a, b = (straight[0, 0] + straight[1, 1]) / 2, (straight[1, 0] - straight[0, 1]) / 2
    small = 1e-5 * np.hypot(a, b)
    a, b = (0.0 if abs(value) < small else value for value in (a, b))
    return cast(Float, np.array([[a, -b], [b, a]]) @ mirror)


def _orientation(affine: Float) -> Float:
    """(3, 3) what the camera frame goes through: a roll, after a mirror if there was one."""
    linear = affine[:, :2] / np.sqrt(abs(np.linalg.det(affine[:, :2])))
    turn = np.eye(3)
    turn[:2, :2] = linear  # a rotation, or one times diag(-1, 1)
    return turn


def moved(sample: Sample, affine: Float, skeleton: Skeleton) -> Sample:
    """A sample whose crop went through an affine map.

    The camera frame turns with the picture, so that ``intrinsics`` still project ``joints_3d`` and
    ``root_3d`` onto ``joints_2d``. The world is mirrored with a mirrored picture (x -> -x), so that
    ``world_to_camera`` stays a rotation.

    Args:
        sample: entries (T, ...), and ``world_to_camera`` (3, 3).
        affine: (2, 3) new px from old px: a similarity, possibly with a mirror.
        skeleton: of the joints.

    Returns:
        New arrays; what is not valid stays 0.
    """
    turn = _orientation(affine)
    mirrored = np.linalg.det(affine[:, :2]) < 0
    square = np.vstack([affine, [0.0, 0.0, 1.0]])
    back = np.linalg.inv(square)
    result = dict(sample)
    points = sample["joints_2d"] @ affine[:, :2].T + affine[:, 2]
    result["joints_2d"] = np.where(sample["valid_2d"][..., None], points, 0.0)
    result["joints_3d"] = sample["joints_3d"] @ turn.T
    result["root_3d"] = sample["root_3d"] @ turn.T
    result["intrinsics"] = square @ sample["intrinsics"] @ turn.T
    result["crop_to_image"] = sample["crop_to_image"] @ back
    world = sample["world_to_camera"]
    result["world_to_camera"] = turn @ world @ _MIRROR if mirrored else turn @ world
    if mirrored:
        order = list(skeleton.flip)
        for key in _SWAPPED:
            if key in result:
                result[key] = result[key][:, order]
    return result
