"""From a list of recordings to batches: splits, clips, crops, and the data module of all files.

:class:`FileDataModule` is what a data set of files subclasses; all that is its own is where its
recordings come from and what its protocols, subjects and actions are called. Pictures are decoded
on the loader's workers; a method that takes keypoints causes no decoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast
from typing import Protocol as Structural

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augment import make_augmentation
from datamodules.base import PoseDataModule, SplitName
from datamodules.readers import read_recordings
from datamodules.recordings import LEVEL, SYNTHETIC_MARK, Recording, nominal_intrinsics
from datamodules.tiles import clip_tiles
from datamodules.transforms import (
    apply_colour,
    flip_batch,
    jitter_matrix,
    pca_of_pixels,
    pca_offset,
    standard_normal,
)
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.crop import crop_image
from zoo.errors import DataError, UsageError, suggest
from zoo.geometry import affine_compose, affine_inverse, crop_affine, intrinsics_for_crop
from zoo.protocols import Exclusion, Protocol, get_protocol
from zoo.skeleton import get_skeleton, joint_map

__all__ = [
    "BODY_MARGIN",
    "Augmentation",
    "FileDataModule",
    "RecordingDataset",
    "Sample",
    "excluded",
    "number_recordings",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Sample = dict[str, NDArray[Any]]
"""One sample: the keys of a PoseBatch without the batch axis; ``image`` is (T, S, S, 3) uint8."""

BODY_MARGIN = 1.1
"""The longer side of a person's box over that of the box around their joints: feet, hands, hair."""

_AFFINE_DEPTH_MM = 50_000.0
_AUGMENT = 9


class Augmentation(Structural):
    """What a training sample goes through on the worker, before batches are made.

    ``rng`` is keyed by seed, epoch and item: the same for any number of workers and processes.
    """

    def box(self, centre: Float, side: float, rng: np.random.Generator) -> tuple[Float, float]:
        """Changes the crop's centre (2,) and side, px of the source picture."""
        ...

    def sample(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Changes the crop and all that belongs to it together; keys and shapes stay."""
        ...


# ---- numbers for names --------------------------------------------------------------------------


def _subject_number(subject: str, subjects: Sequence[str]) -> int:
    """The number in a name (``S11`` -> 11) if all names have one of their own, else its rank."""
    found = [re.fullmatch(r"\D*(\d+)", name) for name in subjects]
    numbers = [int(match.group(1)) for match in found if match]
    if len(set(numbers)) == len(subjects):
        return numbers[list(subjects).index(subject)]
    return list(subjects).index(subject)


def number_recordings(recordings: Sequence[Recording], actions: Sequence[str]) -> Int:
    """(R, 4) subject, action, camera and sequence of each recording, as batches have them.

    Cameras count in the order of their names; a sequence is a subject's trial of an action, seen
    by all cameras. The numbers depend on the whole list, so make them before a split.

    Raises:
        DataError: an action is not in ``actions``.
    """
    subjects = sorted({r.subject for r in recordings})
    cameras = sorted({r.camera.name if r.camera else "" for r in recordings})
    keys = [(r.subject, r.action, r.trial, r.part, r.split) for r in recordings]
    sequence = {key: i for i, key in enumerate(sorted(set(keys)))}
    action = {name: i for i, name in enumerate(actions)}
    for recording in recordings:
        if recording.action not in action:
            where = recording.where or recording.label
            raise DataError(f"{where}: {suggest(recording.action, actions, 'action')}")
    subject = {name: _subject_number(name, subjects) for name in subjects}
    rows = [
        (
            subject[r.subject],
            action[r.action],
            cameras.index(r.camera.name if r.camera else ""),
            sequence[key],
        )
        for r, key in zip(recordings, keys, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _kept_frames(recording: Recording) -> tuple[int, bool]:
    """Every how many-th frame of the source is there at most, and whether each of these is."""
    numbers = recording.numbers
    if len(numbers) < 2:
        return 1, True
    kept = int(np.gcd.reduce(numbers)) or 1
    return kept, bool((np.diff(numbers) == kept).all())


def excluded(recording: Recording, exclusions: Sequence[Exclusion]) -> Exclusion | None:
    """The exclusion that leaves a recording out, if one does."""
    for exclusion in exclusions:
        if (recording.subject, recording.action, recording.trial) == (
            exclusion.subject,
            exclusion.action,
            exclusion.trial,
        ) and exclusion.camera in (None, recording.camera.name if recording.camera else ""):
            return exclusion
    return None


# ---- samples ------------------------------------------------------------------------------------


class RecordingDataset(Dataset[Any]):
    """Samples of recordings; ``__getitems__`` gives a whole batch.

    The batch is a :class:`~zoo.batch.PoseBatch` whose ``image`` is still uint8 (the data module
    turns it to float32 on the device that trains) and, in training, an ``augment`` (B, 9) of
    numbers in [0, 1) that the data module draws colours and mirror images from.

    What a recording lacks is made up so that any data share a batch: no 3D gives zeros with
    ``valid_3d`` false; no camera gives nominal intrinsics (a person 2 m tall at 5 m in the middle
    of the crop); an unknown orientation is that of a level camera. An affine camera becomes a
    pinhole 50 m away whose axis shows each frame's root exactly where the affine one does.

    Args:
        recordings: all of the same skeleton.
        ids: (R, 4) of :func:`number_recordings`.
        step: every step-th frame of the source recordings is a sample, counted from frame 0;
            a function of the recording, or one number.
        spec: what the method wants to be fed. If it is ``tiled``, validation and test samples are
            clips side by side, and what is missing of a recording's last one is not valid; where
            the clips' rate does not fit the step, every sample is centred on its frame.
        train: whether an index carries an epoch, and samples are augmented.
        samples: at most so many, evenly spread; 0 = all.
        seed: of the augmentation.
        skeleton: of the batches.
        augmentation: of training samples, or ``None``.

    Raises:
        DataError: the recordings have different skeletons.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        ids: Int,
        spec: InputSpec,
        *,
        step: int | Callable[[Recording], int] = 1,
        train: bool = False,
        samples: int = 0,
        seed: int = 0,
        skeleton: str = "h36m_17",
        augmentation: Augmentation | None = None,
    ) -> None:
        names = sorted({r.skeleton for r in recordings})
        if len(names) > 1:
            raise DataError(f"recordings of different skeletons in one data set: {names}")
        self.recordings = list(recordings)
        self.ids = ids
        self.spec = spec
        self.train = train
        self.seed = seed
        self.augmentation = augmentation
        self.skeleton = get_skeleton(skeleton)
        self.joint_map = joint_map(names[0] if names else skeleton, skeleton)
        which, rows = [], []
        tiles: list[Int | None] = []
        for i, recording in enumerate(self.recordings):
            stride = step(recording) if callable(step) else step
            kept = np.flatnonzero(recording.numbers % stride == 0)
            if spec.tiled and not train and spec.frames > 1 and recording.fps is not None:
                pace = recording.fps / spec.clip_fps
                tiles.append(clip_tiles(recording.numbers, kept, stride, pace, spec.frames))
            else:
                tiles.append(None)
            which.append(np.full(len(kept), i, np.int32))
            rows.append(kept.astype(np.int32))
        self.tiles: Int | None = None
        if tiles and all(tile is not None for tile in tiles):
            whole = cast(list[Int], tiles)
            which = [np.full(len(tile), i, np.int32) for i, tile in enumerate(whole)]
            rows = [tile[:, 0].astype(np.int32) for tile in whole]
            self.tiles = np.concatenate(whole)
        self.which = np.concatenate(which) if which else np.zeros(0, np.int32)
        self.rows = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        if samples and len(self.which) > samples:
            self.keep(((np.arange(samples) + 0.5) * len(self.which) / samples).astype(np.int64))

    def keep(self, chosen: Int | slice) -> None:
        """Leaves only some of the samples."""
        self.which, self.rows = self.which[chosen], self.rows[chosen]
        self.tiles = None if self.tiles is None else self.tiles[chosen]

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample, without a batch axis."""
        batch = cast(dict[str, Tensor], self.__getitems__([index]))
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> PoseBatch:
        """A batch; in training an index is ``epoch * len(self) + item``."""
        epochs, items = np.divmod(np.asarray(indices, np.int64), len(self))
        samples = self._poses(items)
        parts = []
        for place, (epoch, item) in enumerate(zip(epochs, items, strict=True)):
            sample = {key: value[place] for key, value in samples.items()}
            rng = np.random.default_rng([self.seed, int(epoch), int(item)]) if self.train else None
            parts.append(self._cut(sample, int(item), rng))
        stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        if "image" in stacked:
            stacked["image"] = stacked["image"].transpose(0, 1, 4, 2, 3)
        return cast(
            PoseBatch, {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in stacked.items()}
        )

    # ---- inside ---------------------------------------------------------------------------------

    def clip_rows(self, item: int) -> tuple[Int, NDArray[np.bool_]]:
        """(T,) rows of a sample's clip, and whether each is near the time that it stands for.

        Past an end of the recording its edge frame repeats; single pictures repeat themselves.
        """
        recording, row = self.recordings[self.which[item]], int(self.rows[item])
        count = self.spec.frames
        if self.tiles is not None:
            tile = self.tiles[item]
            return np.where(tile >= 0, tile, tile.max()), tile >= 0
        if count == 1 or recording.fps is None:
            return np.full(count, row, np.int64), np.ones(count, np.bool_)
        numbers, pace = recording.numbers, recording.fps / self.spec.clip_fps
        offset = np.rint((np.arange(count) - count // 2) * pace).astype(np.int64)
        wanted = np.clip(numbers[row] + offset, numbers[0], numbers[-1])
        after = np.clip(np.searchsorted(numbers, wanted), 0, len(numbers) - 1)
        before = np.maximum(after - 1, 0)
        nearer = np.abs(numbers[before] - wanted) < np.abs(numbers[after] - wanted)
        rows = np.where(nearer, before, after)
        return rows, np.abs(numbers[rows] - wanted) <= max(pace / 2, 0.5)

    def _centre(self, recording: Recording, rows: Int) -> int:
        """Number of a clip's centre frame; of a cut one, where it would be."""
        middle = self.spec.frames // 2
        if self.tiles is None or recording.fps is None:
            return int(recording.numbers[rows[middle]])
        return int(recording.numbers[rows[0]] + round(middle * recording.fps / self.spec.clip_fps))

    def _poses(self, items: Int) -> Sample:
        """Everything but the crop, (B, T, ...), px of the source pictures."""
        count, frames = len(items), self.spec.frames
        source = len(self.joint_map.source)
        flat = np.full((count, frames, source, 2), np.nan)
        deep = np.full((count, frames, source, 3), np.nan)
        scores = np.ones((count, frames, source))
        hidden = np.zeros((count, frames, source))
        boxes = np.full((count, frames, 4), np.nan)
        rotation = np.empty((count, 3, 3))
        rows = np.empty((count, frames), np.int64)
        for place, item in enumerate(items):
            recording = self.recordings[self.which[item]]
            rows[place], near = self.clip_rows(int(item))
            own = rows[place]
            pixels, joints = recording.pixels(own), recording.camera_joints(own)
            if pixels is not None:
                flat[place] = np.where(near[:, None, None], pixels, np.nan)
            if joints is not None:
                deep[place] = np.where(near[:, None, None], joints, np.nan)
            if recording.scores_2d is not None:
                scores[place] = recording.scores_2d[own]
            if recording.occluded is not None:
                hidden[place] = recording.occluded[own]
            if recording.boxes is not None:
                boxes[place] = recording.boxes[own]
            camera = recording.camera
            middle = int(own[frames // 2])
            rotation[place] = LEVEL if camera is None else camera.at(middle).orientation()
        seen = np.isfinite(flat).all(-1)
        joints_2d, scores = self.joint_map(flat, np.where(seen, np.maximum(scores, 1e-6), 0.0))
        joints_3d, valid_3d = self.joint_map(deep)
        root = self.skeleton.index(self.skeleton.root)
        valid_3d &= valid_3d[..., root, None]
        root_3d = joints_3d[..., root, :].copy()
        joints_3d = np.where(valid_3d[..., None], joints_3d - root_3d[..., None, :], 0.0)
        occluded = self.joint_map(1 - hidden[..., None])[0][..., 0] < 0.999
        ids = self.ids[self.which[items]]
        numbers = [
            self._centre(self.recordings[self.which[item]], rows[place])
            for place, item in enumerate(items)
        ]
        return {
            "joints_2d": joints_2d,
            "scores_2d": scores,
            "valid_2d": scores > 0,
            "valid_3d": valid_3d,
            "occluded": occluded & (scores > 0),
            "joints_3d": joints_3d,
            "root_3d": root_3d,
            "world_to_camera": rotation,
            "rows": rows,
            "boxes": boxes,
            "subject": ids[:, 0],
            "action": ids[:, 1],
            "camera": ids[:, 2],
            "sequence": ids[:, 3],
            "frame": np.array(numbers, dtype=np.int64),
        }

    def _box(self, sample: Sample, size: tuple[int, int]) -> tuple[Float, float]:
        """Centre and longer side of the person's box over all frames of the clip."""
        boxes = sample["boxes"][np.isfinite(sample["boxes"]).all(-1)]
        margin = 1.0
        if not len(boxes):
            points = sample["joints_2d"][sample["valid_2d"]]
            boxes = np.concatenate([points, points], axis=-1)
            margin = BODY_MARGIN
        if not len(boxes):
            width, height = size if size[0] else (1, 1)
            return np.array([width - 1, height - 1]) / 2, float(max(width, height))
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        return (low + high) / 2, max(margin * float((high - low).max()), 1.0)

    def _cut(self, sample: Sample, item: int, rng: np.random.Generator | None) -> Sample:
        """Crops one sample: pixels of the crop from here on."""
        recording = self.recordings[self.which[item]]
        camera, size = recording.camera, self.spec.image_size
        pictures = None
        if self.spec.kind == "image":
            if recording.pictures is None:
                raise DataError(f"{recording.label}: no pictures, and the method takes images")
            pictures = recording.pictures.read([int(r) for r in sample["rows"]])
        whole = (0, 0) if camera is None else camera.size
        if pictures is not None and whole == (0, 0) and pictures[0].to_source is None:
            whole = (pictures[0].pixels.shape[1], pictures[0].pixels.shape[0])
        centre, side = self._box(sample, whole)
        side *= self.spec.crop_scale
        if rng is not None and self.augmentation is not None:
            centre, side = self.augmentation.box(centre, side, rng)
        affine = crop_affine(
            torch.from_numpy(np.asarray(centre)), torch.tensor(side).double(), size
        )
        frames = len(sample["rows"])
        result = {k: v for k, v in sample.items() if k not in ("rows", "boxes")}
        inverse = affine_inverse(affine).numpy()
        moved = sample["joints_2d"] @ inverse[:, :2].T + inverse[:, 2]
        result["joints_2d"] = np.where(sample["valid_2d"][..., None], moved, 0.0)
        result["crop_to_image"] = np.repeat(affine.numpy()[None], frames, 0)
        matrix, root = self._pinhole(recording, sample, affine)
        result["intrinsics"], result["root_3d"] = matrix, root
        if pictures is not None:
            result["image"] = np.stack(
                [_crop(p.pixels, p.to_source, affine, size) for p in pictures]
            )
        if rng is not None:
            if self.augmentation is not None:
                result = self.augmentation.sample(result, rng)
            result["augment"] = rng.random(_AUGMENT)
        floats = [k for k, v in result.items() if v.dtype == np.float64]
        return {**result, **{k: result[k].astype(np.float32) for k in floats}}

    def _pinhole(self, recording: Recording, sample: Sample, affine: Tensor) -> tuple[Float, Float]:
        """(T, 3, 3) intrinsics of the crop and (T, 3) root."""
        camera, root = recording.camera, np.asarray(sample["root_3d"], np.float64)
        frames = len(root)
        if camera is None or not camera.can_project:
            nominal = nominal_intrinsics(self.spec.image_size)
            return np.repeat(nominal[None], frames, 0), root
        if camera.affine is None:
            assert camera.matrix is not None
            matrix = torch.from_numpy(camera.matrix)
        else:
            # Rotated back: the affine map takes world points.
            seen = camera.at(np.asarray(sample["rows"]))
            centre = seen.project(root[:, None] @ seen.orientation())[:, 0]
            assert seen.affine is not None
            scale = np.linalg.norm(seen.affine[..., :3], axis=-1).mean(-1)
            matrix = torch.zeros(frames, 3, 3, dtype=torch.float64)
            matrix[:, 0, 0] = matrix[:, 1, 1] = torch.from_numpy(
                np.broadcast_to(scale * _AFFINE_DEPTH_MM, frames).copy()
            )
            matrix[:, :2, 2], matrix[:, 2, 2] = torch.from_numpy(centre), 1
            known = np.asarray(sample["valid_3d"].any(-1))
            root = np.where(known[:, None], [[0.0, 0.0, _AFFINE_DEPTH_MM]], 0.0)
        crop = intrinsics_for_crop(matrix, affine).numpy()
        return np.broadcast_to(crop, (frames, 3, 3)).copy(), root


def _crop(
    pixels: NDArray[np.uint8], to_source: Float | None, crop_to_source: Tensor, size: int
) -> NDArray[np.uint8]:
    """(S, S, 3) uint8: the crop out of a picture that is itself the source picture or a crop."""
    crop_to_picture = crop_to_source
    if to_source is not None:
        crop_to_picture = affine_compose(
            affine_inverse(torch.from_numpy(to_source)), crop_to_source
        )
    factor = float(crop_to_picture[0, 0])
    low = crop_to_picture[:, 2].numpy() - 0.5 * factor
    box = (low[0], low[1], low[0] + factor * size, low[1] + factor * size)
    cut, _ = crop_image(pixels, box, size)
    return np.asarray((cut * 255).round().byte().permute(1, 2, 0).numpy())


# ---- the data module ----------------------------------------------------------------------------


class FileDataModule(PoseDataModule):
    """Base of the data sets of files; ``own`` data of any known format by itself.

    A subclass sets the class attributes, and overrides :meth:`read` if its recordings do not come
    from a registered reader. Its constructor arguments are flags (``--data.root DIR``).

    Args:
        root: folder of the data set, in any of the formats that ``zoo data check`` knows.
        format: name of the reader, where a folder holds several formats; empty finds out.
        protocol: name of the evaluation protocol; empty takes the data set's first.
        val_subjects: held out of training for validation; ``None`` takes the data set's default,
            ``[]`` trains on all of the protocol's training subjects (validation then shows every
            tenth of their samples, and chooses nothing).
        train_fps: training samples a second of recording; single pictures are all used.
        train_samples: at most so many training samples, evenly spread; 0 = all.
        val_samples: the same of validation.
        test_samples: the same of test; any limit changes the number that is measured.
        batch_size: samples a batch and process.
        num_workers: processes that decode and crop.
        seed: of the training samples' order and augmentation.
        flip: probability that a training sample is mirrored.
        color_jitter: largest relative change of brightness, contrast and saturation in training.
        pca_color: standard deviation of the colour noise along the principal components of the
            training pixels (Krizhevsky et al. 2012); 0 is none.
        augment: scheme of a paper (``rpsm``, ``katircioglu``, ``park``, ``cpm``), or the file of a
            pipeline that ``albumentations.save`` wrote; see :mod:`datamodules.augment`.
        input_spec: what the method wants to be fed; the command line fills it in.
    """

    dataset: ClassVar[str] = ""
    """Readers of this data set are tried; empty = all."""
    default_protocol: ClassVar[str] = ""
    default_val_subjects: ClassVar[tuple[str, ...]] = ()
    actions: ClassVar[tuple[str, ...]] = ()
    """In the papers' order; empty = the recordings' own, sorted."""
    exclusions: ClassVar[tuple[Exclusion, ...]] = ()
    """Recordings that no split has, whatever the protocol; each protocol adds its own."""

    def __init__(
        self,
        root: str = "",
        format: str = "",
        protocol: str = "",
        val_subjects: list[str] | None = None,
        train_fps: float = 10.0,
        train_samples: int = 0,
        val_samples: int = 0,
        test_samples: int = 0,
        batch_size: int = 64,
        num_workers: int = 2,
        seed: int = 0,
        flip: float = 0.5,
        color_jitter: float = 0.2,
        pca_color: float = 0.0,
        augment: str = "",
        input_spec: InputSpec | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, input_spec)
        make_augmentation(augment)  # a wrong name is answered before anything is read
        counts = {
            "train_samples": train_samples, "val_samples": val_samples,
            "test_samples": test_samples, "pca_color": pca_color,
        }  # fmt: skip
        for name, value in counts.items():
            if value < 0:
                raise UsageError(f"{name} is {value}; it must not be negative")
        for name, share in {"flip": flip, "color_jitter": color_jitter}.items():
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share}; it must lie between 0 and 1")
        if not train_fps > 0:
            raise UsageError(f"train_fps is {train_fps}; it must be positive")
        self.root = root
        self.format = format
        self.protocol_name = protocol or self.default_protocol
        self._val_subjects = val_subjects
        self.train_fps = train_fps
        self.limits = {"train": train_samples, "val": val_samples, "test": test_samples}
        self.flip = flip
        self.color_jitter = color_jitter
        self.pca_color = pca_color
        self.augment = augment
        self._recordings: list[Recording] | None = None
        self._sets: dict[str, RecordingDataset] = {}
        self._pca: tuple[Tensor, Tensor] | None = None

    # ---- what a data set may write --------------------------------------------------------------

    def read(self) -> list[Recording]:
        """All recordings of the folder, as its reader finds them.

        Raises:
            DataError: the folder is missing, of no known format, or something in it is wrong.
        """
        return read_recordings(Path(self.root), self.format, self.dataset)

    def held_out(self) -> Sequence[str]:
        """Who is held out of training for validation unless the user says otherwise."""
        return self.default_val_subjects

    @property
    def val_subjects(self) -> tuple[str, ...]:
        """Held out of training for validation."""
        if self._val_subjects is None:
            self._val_subjects = list(self.held_out())
        return tuple(self._val_subjects)

    def base_protocol(self) -> Protocol:
        """The protocol by name; data without one are tested whole, root on root."""
        if self.protocol_name:
            return get_protocol(self.protocol_name)
        train = sorted({r.subject for r in self.recordings if r.split != "test"})
        test = sorted({r.subject for r in self.recordings if r.split == "test"})
        return Protocol(f"{self.dataset or 'own'}-test", self.dataset or "own data",
                        tuple(train), tuple(test))  # fmt: skip

    def augmentation(self) -> Augmentation | None:
        """What training samples go through on the workers: ``augment`` by name."""
        return make_augmentation(self.augment, self.input_spec.image_size, self.skeleton_name)

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def recordings(self) -> list[Recording]:
        """All recordings but the excluded ones; read once."""
        if self._recordings is None:
            if not self.root:
                name = self.dataset or "NAME"
                raise UsageError(f"--data {name} needs --data.root DIR, its folder")
            self._recordings = self.read()
        return self._recordings

    @property
    def action_names(self) -> tuple[str, ...]:
        """The data set's actions in the papers' order."""
        return self.actions or tuple(sorted({r.action for r in self.recordings}))

    def protocol(self, split: SplitName) -> Protocol:
        """The named protocol; for ``val`` with the validation subjects in it."""
        protocol = self.base_protocol()
        if self.root and (Path(self.root) / SYNTHETIC_MARK).is_file():
            protocol = replace(protocol, dataset=f"SYNTHETIC COPY of {protocol.dataset}")
        protocol = replace(
            protocol,
            exclusions=tuple(dict.fromkeys([*protocol.exclusions, *self.exclusions])),
            train_subjects=tuple(s for s in protocol.train_subjects if s not in self.val_subjects),
        )
        if split == "test":
            return replace(protocol, note=f"{protocol.note} {self._shortfall(protocol)}".strip())
        note = "Validation, to choose by."
        subjects = tuple(self.val_subjects)
        if not subjects:
            subjects, note = protocol.train_subjects, "Training subjects: nothing is held out."
        return replace(protocol, name=f"{protocol.name}-val", test_subjects=subjects, note=note)

    def _shortfall(self, protocol: Protocol) -> str:
        """What the tested folder lacks of the protocol; no number is printed without it."""
        have = {r.subject for r in self.recordings}
        absent = [s for s in protocol.test_subjects if s not in have]
        said = []
        if absent and len(absent) < len(protocol.test_subjects):
            said.append(f"THE FOLDER HAS NO {' '.join(absent)}: not the protocol's number.")
        if self.limits["test"]:
            said.append(f"AT MOST {self.limits['test']} SAMPLES: not the protocol's number.")
        return " ".join(said)

    def prepare_data(self) -> None:
        """Reads the recordings and checks that the files of the pictures are there."""
        self.setup(None)

    def setup(self, stage: str | None = None) -> None:
        """Makes the data sets of a stage.

        Raises:
            DataError: a split that the stage needs is empty, or pictures are missing.
        """
        needed: dict[str, tuple[SplitName, ...]] = {
            "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",),
        }  # fmt: skip
        if stage is None:
            self.recordings  # noqa: B018
            return
        for split in needed[stage]:
            dataset = self._set(split)
            if self.input_spec.kind == "image":
                for recording in dataset.recordings:
                    gone = "no pictures" if recording.pictures is None else ""
                    gone = gone or (recording.pictures.missing() if recording.pictures else "")
                    if gone:
                        raise DataError(f"{recording.label}: {gone}; the method takes images")
        if self.pca_color > 0 and stage == "fit":
            self.pca_system()

    @property
    def has_clips(self) -> bool:
        """Whether any recording is a video."""
        return any(recording.fps is not None for recording in self.recordings)

    @property
    def train_set(self) -> RecordingDataset:
        """Training samples."""
        return self._set("train")

    @property
    def val_set(self) -> RecordingDataset:
        """Validation samples."""
        return self._set("val")

    @property
    def test_set(self) -> RecordingDataset:
        """Test samples."""
        return self._set("test")

    def split(self, split: SplitName) -> list[int]:
        """Indices into :attr:`recordings` of a split.

        A recording's own ``split`` decides; else its subject does, by the protocol. Exclusions are
        left out everywhere, the protocol's cameras and trials choose the tested recordings.
        """
        protocol = self.protocol("val" if split == "val" else "test")
        test_subjects = self.base_protocol().test_subjects
        own_val = any(r.split == "val" for r in self.recordings)
        chosen = []
        for i, recording in enumerate(self.recordings):
            if excluded(recording, protocol.exclusions):
                continue
            held_out = recording.subject in self.val_subjects
            if recording.split == "val":
                place = "val"
            elif recording.split:
                place = "val" if recording.split == "train" and held_out else recording.split
            elif held_out:
                place = "val"
            elif recording.subject in test_subjects:
                place = "test"
            elif recording.subject in protocol.train_subjects:
                place = "train"
            else:
                place = ""
            if place == "train" and split == "val" and not (self.val_subjects or own_val):
                place = "val"
            if place != split:
                continue
            if split != "train":
                camera = recording.camera.name if recording.camera else ""
                if protocol.cameras and camera not in protocol.cameras:
                    continue
                if protocol.trials and recording.trial not in protocol.trials:
                    continue
                if split == "test" and not protocol.tests_action(recording.action):
                    continue
            chosen.append(i)
        return chosen

    def training_poses(self, count: int = 20000) -> PoseBatch:
        """Poses spread over the training set; see the base class."""
        spec = InputSpec(
            "keypoints", self.input_spec.image_size, 1, 1.0, self.input_spec.crop_scale
        )
        dataset = self._make("train", spec, augment=False, samples=count)
        parts = [
            cast(dict[str, Tensor], dataset.__getitems__(range(i, min(i + 1000, len(dataset)))))
            for i in range(0, len(dataset), 1000)
        ]
        return cast(PoseBatch, {key: torch.cat([p[key] for p in parts]) for key in parts[0]})

    def pca_system(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Scales (3,) and axes (3, 3) of the RGB values of training pixels, float64."""
        if self._pca is None:
            spec = InputSpec("image", 32, 1, 1.0, self.input_spec.crop_scale)
            dataset = self._make("train", spec, augment=False, samples=256)
            image = dataset.__getitems__(range(len(dataset)))["image"]
            self._pca = pca_of_pixels(image.float() / 255)
        values, vectors = self._pca
        return values.to(device), vectors.to(device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> PoseBatch:
        """uint8 to float32 in [0, 1]; mirrors and colours training samples, on their device."""
        if "image" in batch and batch["image"].dtype == torch.uint8:
            batch["image"] = batch["image"].float() / 255
        u = batch.pop("augment", None)
        if u is None:
            return cast(PoseBatch, batch)
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
            if self.flip > 0:
                batch = flip_batch(
                    batch, self.skeleton, self.input_spec.image_size, u[:, 0] < self.flip
                )
            if "image" in batch and (self.color_jitter > 0 or self.pca_color > 0):
                image = batch["image"]
                matrix, offset = jitter_matrix(image.mean((1, 3, 4)), u[:, 3:6], self.color_jitter)
                if self.pca_color > 0:
                    alpha = self.pca_color * standard_normal(u[:, 6:9])
                    offset = offset + pca_offset(alpha, *self.pca_system(u.device))
                batch["image"] = apply_colour(image, matrix, offset)
        return cast(PoseBatch, batch)

    # ---- inside ---------------------------------------------------------------------------------

    def _step(self, split: SplitName) -> Callable[[Recording], int]:
        protocol = self.base_protocol()

        def step(recording: Recording) -> int:
            if recording.fps is None:
                return 1
            kept, regular = _kept_frames(recording)
            if split == "test":
                if protocol.frame_step % kept:
                    raise DataError(
                        f"{self.root} holds every {kept}th frame, and protocol {protocol.name} "
                        f"wants every {protocol.frame_step}th: read files that have them"
                    )
                return protocol.frame_step
            if not regular:  # frames chosen by movement: all of them
                return 1
            pace = max(1, round(recording.fps / self.train_fps))
            if split == "val":
                pace = max(pace, protocol.frame_step)
            return kept * max(1, round(pace / kept))

        return step

    def _make(
        self, split: SplitName, spec: InputSpec, augment: bool, samples: int | None = None
    ) -> RecordingDataset:
        chosen = self.split(split)
        if not chosen:
            have = sorted({r.subject for r in self.recordings})
            want = {
                "train": self.protocol("test").train_subjects,
                "val": self.protocol("val").test_subjects,
                "test": self.protocol("test").test_subjects,
            }[split]
            raise DataError(
                f"{self.root}: nothing for {split} with protocol {self.protocol('test').name}: it "
                f"wants {' '.join(want) or 'some subject'}, the folder has {' '.join(have)}"
            )
        limit = self.limits[split] if samples is None else samples
        recordings = [self.recordings[i] for i in chosen]
        ids = number_recordings(self.recordings, self.action_names)[chosen]
        dataset = RecordingDataset(
            recordings,
            ids,
            spec,
            step=self._step(split),
            train=augment,
            samples=limit,
            seed=self.seed,
            skeleton=self.skeleton_name,
            augmentation=self.augmentation() if augment else None,
        )
        if (
            split == "val"
            and not self.val_subjects
            and not any(r.split == "val" for r in recordings)
        ):
            dataset.keep(slice(None, None, 10))
        return dataset

    def _set(self, split: SplitName) -> RecordingDataset:
        if split not in self._sets or self._sets[split].spec != self.input_spec:
            self._sets[split] = self._make(split, self.input_spec, augment=split == "train")
        return self._sets[split]
