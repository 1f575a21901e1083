"""Motion for the synthetic people: recordings of 17 joints, clips of them, bodies to wear them.

A :class:`MotionBank` holds recordings in the world frame (right-handed, z up, mm, floor at z = 0,
50 fps), read from an ``.npz`` file or made by :mod:`datamodules.generator`. The bodies that wear
the motion come from :mod:`datamodules.bodies` and can be imported from here.

Layout of the ``.npz`` file, which ``zoo data prepare cmu`` writes: ``names``, ``actions`` (n,) str;
``starts``, ``lengths`` (n,) int: recording i is ``positions[starts[i] : starts[i] + lengths[i]]``;
``positions`` (frames, 17, 3) float32 mm; ``fps`` int; ``joint_names`` (17,) str, ``parents`` (17,)
int. Further keys are ignored. ``NAME#1`` and ``NAME#2`` are parts of one recording.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodules.bodies import (
    LEG_LIMBS,
    LIMB_NAMES,
    MEAN_LIMB_LENGTHS,
    PARENTS,
    SUBJECTS,
    Body,
    bodies,
    retarget,
)
from datamodules.splits import SPLITS, Split, split_of
from zoo.errors import DataError, OutputError, UsageError, suggest
from zoo.skeleton import H36M_17

__all__ = [
    "FPS",
    "JOINT_NAMES",
    "LIMB_NAMES",
    "MEAN_LIMB_LENGTHS",
    "PARENTS",
    "SUBJECTS",
    "Body",
    "MotionBank",
    "bodies",
    "clip_indices",
    "retarget",
    "write_npz",
]

Float = NDArray[np.float32]
Int = NDArray[np.int64]

FPS = 50
"""Frames per second of every recording, as in Human3.6M."""

JOINT_NAMES = (
    "pelvis",
    "right hip", "right knee", "right ankle",
    "left hip", "left knee", "left ankle",
    "spine", "thorax", "neck/nose", "head top",
    "left shoulder", "left elbow", "left wrist",
    "right shoulder", "right elbow", "right wrist",
)  # fmt: skip
"""Names of the joints as motion files spell them, in the order of ``h36m_17``."""

# ---- clips ------------------------------------------------------------------------------------


def clip_indices(
    lengths: ArrayLike, centres: ArrayLike, frames: int, step: float
) -> NDArray[np.float64]:
    """Where the frames of clips lie in their recordings.

    Frame t of a clip is ``centre + (t - frames // 2) * step``, so the centre is index
    ``frames // 2``. Indices beyond an end are held at that end: the edge frame repeats, and a clip
    never reaches into another recording.

    Args:
        lengths: (...) frames of each recording.
        centres: (...) centre frame of each clip, counted in its recording.
        frames: T, frames of a clip.
        step: source frames between two frames of a clip; may be fractional.

    Returns:
        (..., T) float64 in [0, length - 1].
    """
    offsets = (np.arange(frames) - frames // 2) * float(step)
    indices = np.asarray(centres, dtype=np.float64)[..., None] + offsets
    last = np.asarray(lengths, dtype=np.float64)[..., None] - 1
    return np.clip(indices, 0.0, last)


@dataclass(frozen=True, eq=False)
class MotionBank:
    """Recordings of human motion in one array.

    Attributes:
        names: n unique names; the split of a recording follows from its name.
        actions: n action labels.
        starts: (n,) first frame of each recording in ``positions``.
        lengths: (n,) frames of each recording.
        positions: (F, 17, 3) float32 mm, world frame, z up.
        fps: frames per second.
    """

    names: tuple[str, ...]
    actions: tuple[str, ...]
    starts: Int
    lengths: Int
    positions: Float
    fps: int = FPS

    # ---- where it comes from ------------------------------------------------------------------

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str]) -> MotionBank:
        """Reads and checks a motion file.

        Args:
            path: ``.npz`` file in the layout of this module's docstring.

        Raises:
            zoo.errors.DataError: the file is missing, not an ``.npz``, or breaks the layout; the
                line names the key and, where it applies, the recording.
        """
        return _checked(Path(path), _read_npz(Path(path)))

    @classmethod
    def generated(
        cls,
        seed: int = 0,
        *,
        splits: Sequence[Split] = SPLITS,
        actions: Sequence[str] | None = None,
        recordings: Mapping[Split, int] | None = None,
        seconds: float = 10.0,
    ) -> MotionBank:
        """Motion of the built-in generator: no file needed.

        Args:
            seed: the same seed gives the same motion.
            splits: for which splits to make recordings; each has its own.
            actions: names out of ``generator.ACTIONS``; ``None`` takes all 15.
            recordings: recordings an action for each split; ``None`` takes the default.
            seconds: length of a recording.
        """
        from datamodules.generator import generate

        return generate(
            seed, splits=splits, actions=actions, recordings=recordings, seconds=seconds
        )

    @classmethod
    def from_recordings(cls, recordings: Iterable[tuple[str, str, ArrayLike]]) -> MotionBank:
        """A bank of (name, action, positions (F_i, 17, 3) mm at 50 fps) recordings."""
        names, actions, parts = [], [], []
        for name, action, positions in recordings:
            names.append(name)
            actions.append(action)
            parts.append(np.asarray(positions, dtype=np.float32))
        lengths = np.array([len(p) for p in parts], dtype=np.int64)
        frames = np.concatenate(parts) if parts else np.zeros((0, 17, 3), np.float32)
        starts = np.cumsum(lengths) - lengths
        return cls(tuple(names), tuple(actions), starts, lengths, frames)

    # ---- what is in it ------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_frames(self) -> int:
        """Frames of all recordings together."""
        return int(self.lengths.sum())

    @property
    def action_names(self) -> tuple[str, ...]:
        """The different action labels, sorted."""
        return tuple(sorted(set(self.actions)))

    def recording(self, index: int) -> Float:
        """(length, 17, 3) mm, world frame: a view of one recording."""
        start = int(self.starts[index])
        return self.positions[start : start + int(self.lengths[index])]

    def subset(self, names: Iterable[str]) -> MotionBank:
        """The recordings called ``names``, in that order; the frames are copied.

        Raises:
            zoo.errors.DataError: a name is not in the bank.
        """
        index = {name: i for i, name in enumerate(self.names)}
        chosen = list(names)
        for name in chosen:
            if name not in index:
                raise DataError(suggest(name, self.names, "recording"))
        return MotionBank.from_recordings(
            (name, self.actions[index[name]], self.recording(index[name])) for name in chosen
        )

    def split(self, split: Split) -> MotionBank:
        """The recordings of ``train``, ``val`` or ``test``, by ``datamodules.splits.split_of``."""
        return self.subset(name for name in self.names if split_of(name) == split)

    # ---- clips --------------------------------------------------------------------------------

    def centres(self, step: int = 1, first: int = 0) -> tuple[Int, Int]:
        """Every ``step``-th frame of every recording.

        Returns:
            ``(recordings, frames)``, both (N,): index of the recording, and frame in it.
        """
        counts = [np.arange(first, n, step, dtype=np.int64) for n in self.lengths]
        which = np.repeat(np.arange(len(self), dtype=np.int64), [len(c) for c in counts])
        return which, np.concatenate([np.zeros(0, np.int64), *counts])

    def clip(self, recording: int, centre_frame: float, frames: int, clip_fps: float) -> Float:
        """One clip: (T, 17, 3) mm, world frame; see :meth:`clips`."""
        return self.clips(np.array([recording]), np.array([centre_frame]), frames, clip_fps)[0]

    def clips(
        self, recordings: ArrayLike, centre_frames: ArrayLike, frames: int, clip_fps: float
    ) -> Float:
        """Clips of ``frames`` frames at ``clip_fps``, linearly interpolated between source frames.

        Args:
            recordings: (B,) indices of recordings.
            centre_frames: (B,) frame in the recording that becomes index T // 2 of the clip.
            frames: T.
            clip_fps: rate inside the clip; irrelevant for one frame.

        Returns:
            (B, T, 17, 3) float32 mm, world frame. Past an end of a recording its edge frame
            repeats.

        Raises:
            zoo.errors.UsageError: ``frames`` or ``clip_fps`` is not positive.
        """
        if frames < 1 or not clip_fps > 0:
            raise UsageError(
                f"a clip has at least one frame and a positive rate, not frames={frames} and "
                f"clip_fps={clip_fps}"
            )
        which = np.asarray(recordings, dtype=np.int64)
        indices = clip_indices(self.lengths[which], centre_frames, frames, self.fps / clip_fps)
        low = np.floor(indices).astype(np.int64)
        share = (indices - low).astype(np.float32)[..., None, None]
        high = np.minimum(low + 1, self.lengths[which][..., None] - 1)
        start = self.starts[which][..., None]
        first = self.positions[start + low]
        if not share.any():
            return first
        return first + share * (self.positions[start + high] - first)


# ---- files ------------------------------------------------------------------------------------

_KEYS = ("names", "actions", "starts", "lengths", "positions", "fps", "joint_names", "parents")


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise DataError(f"{path}: no such motion file; `zoo data prepare cmu` makes one")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz archive, or a damaged one")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in _KEYS if key not in file.files]
            if missing:
                raise DataError(
                    f"{path}: key {missing[0]!r} is missing; a motion file has {', '.join(_KEYS)}"
                )
            return {key: file[key] for key in _KEYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a readable .npz of plain arrays ({reason})") from None


def _checked(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> MotionBank:
    """A bank from the arrays of a file, or the first thing that is wrong with them."""
    positions = arrays["positions"]
    if positions.ndim != 3 or positions.shape[1:] != (17, 3) or positions.dtype.kind != "f":
        raise DataError(
            f"{path}: positions is {positions.dtype} {positions.shape}; "
            "it must be float (frames, 17, 3), mm"
        )
    count = arrays["names"].shape[0] if arrays["names"].ndim == 1 else -1
    kinds = {"names": "U", "actions": "U", "starts": "iu", "lengths": "iu"}
    for key, kind in kinds.items():
        array = arrays[key]
        if array.shape != (count,) or array.dtype.kind not in kind:
            raise DataError(
                f"{path}: {key} is {array.dtype} {array.shape}; it must be one "
                f"{'text' if kind == 'U' else 'whole number'} per recording ({max(count, 0)})"
            )
    if count == 0:
        raise DataError(f"{path}: holds no recording")
    if arrays["fps"].shape != () or arrays["fps"].dtype.kind not in "iuf":
        raise DataError(f"{path}: fps is not a number; it must be {FPS}")
    if float(arrays["fps"].astype(np.float64)) != FPS:
        raise DataError(f"{path}: fps is {arrays['fps']}; resample the motion to {FPS} fps")
    found = tuple(str(n) for n in arrays["joint_names"].ravel())
    if found not in (JOINT_NAMES, H36M_17.joints):
        wrong = next(
            (f"joint {i} is {a!r}, not {b!r}"
             for i, (a, b) in enumerate(zip(found, JOINT_NAMES, strict=False)) if a != b),
            f"{len(found)} joints",
        )  # fmt: skip
        raise DataError(f"{path}: joint_names: {wrong}; the order is {', '.join(JOINT_NAMES)}")
    if not np.array_equal(arrays["parents"], PARENTS):
        raise DataError(f"{path}: parents is not the tree {PARENTS.tolist()}")
    return _checked_motion(path, arrays)


def _checked_motion(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> MotionBank:
    names = tuple(str(n) for n in arrays["names"])
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise DataError(f"{path}: two recordings are called {twice!r}; names must differ")
    positions = np.ascontiguousarray(arrays["positions"], dtype=np.float32)
    starts, lengths = arrays["starts"].astype(np.int64), arrays["lengths"].astype(np.int64)
    for name, start, length in zip(names, starts, lengths, strict=True):
        if length < 1 or start < 0 or start + length > len(positions):
            raise DataError(
                f"{path}: recording {name!r}: frames {start} to {start + length} do not lie in the "
                f"file's 0 to {len(positions)}"
            )
        part = positions[start : start + length]
        bad = ~np.isfinite(part).all(axis=(1, 2))
        if bad.any():
            raise DataError(
                f"{path}: recording {name!r}: frame {int(bad.argmax())} has a NaN or infinite "
                "position; cut such frames out"
            )
    _check_scale(path, names, starts, lengths, positions)
    actions = tuple(str(a) for a in arrays["actions"])
    return MotionBank(names, actions, starts, lengths, positions)


def _check_scale(
    path: Path, names: Sequence[str], starts: Int, lengths: Int, positions: Float
) -> None:
    """Refuses limbs of no length, wrong units and a wrong vertical axis."""
    for name, start, length in zip(names, starts, lengths, strict=True):
        part = positions[start : start + length]
        limbs = np.linalg.norm(part[:, 1:] - part[:, PARENTS[1:]], axis=-1)  # (frames, 16)
        leg = float(np.median(limbs[:, LEG_LIMBS].sum(-1)) / 2)
        if not 300 < leg < 1500:
            raise DataError(
                f"{path}: recording {name!r}: legs are {leg:.4g} long; positions are in mm, where "
                "a leg from hip to ankle is 600 to 1100"
            )
        if limbs.min() < 1:
            frame, limb = np.unravel_index(int(limbs.argmin()), limbs.shape)
            raise DataError(
                f"{path}: recording {name!r}: frame {frame}: the limb that ends at "
                f"{JOINT_NAMES[int(limb) + 1]} has no length"
            )
    upright = np.median(positions[:, 10] - positions[:, [3, 6]].mean(1), axis=0)
    if abs(upright[1]) > 500 and abs(upright[1]) > 2 * abs(upright[2]):
        raise DataError(
            f"{path}: heads lie along y from the feet; the world frame has z up (from y up: X = x, "
            "Y = -z, Z = y)"
        )


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Writes a motion file under a temporary name beside ``path``, then renames it.

    Raises:
        zoo.errors.OutputError: the folder does not exist or cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
