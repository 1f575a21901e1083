"""CMU motion capture: official ASF/AMC files to one motion file (``zoo data prepare cmu``).

The CMU Graphics Lab Motion Capture Database (mocap.cs.cmu.edu) gives a skeleton ``NN.asf`` for each
subject and a motion ``NN_MM.amc`` for each recording, at 120 frames a second. It is free for all
uses, but the motion itself may not be resold. Its owners ask for this statement with every copy:
"The data used in this project was obtained from mocap.cs.cmu.edu. The database was created with
funding from NSF EIA-0196217."
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from datamodules.asfamc import AsfSkeleton, bone_ends, read_amc, read_asf
from datamodules.motion import FPS, JOINT_NAMES, PARENTS, MotionBank, write_npz
from zoo.errors import DataError, OutputError

__all__ = ["cut_glitches", "joints", "prepare_cmu", "resample"]

Array = NDArray[np.float64]

SOURCE_FPS = 120
ANKLE_ABOVE_FLOOR = 80.0
"""Height of a standing ankle, mm: so far below the 2nd percentile of the lower one is the floor."""
GLITCH = 100.0
"""Largest second difference of a joint at 50 fps, mm per frame^2, that counts as motion."""
SHORTEST = 25
"""Frames at 50 fps that a part between two glitches must have to be kept."""

JOINT_ENDS: tuple[tuple[str, ...], ...] = (
    ("lhipjoint", "rhipjoint"),
    ("rhipjoint",), ("rfemur",), ("rtibia",),
    ("lhipjoint",), ("lfemur",), ("ltibia",),
    ("lowerback",), ("thorax", "lowerneck"), ("upperneck",), ("head",),
    ("lclavicle",), ("lhumerus",), ("lwrist",),
    ("rclavicle",), ("rhumerus",), ("rwrist",),
)  # fmt: skip
"""For each joint of ``h36m_17`` the CMU bones whose ends it is the middle of."""


def joints(skeleton: AsfSkeleton, motion: dict[str, Array]) -> Array:
    """The 17 joints of a motion.

    Args:
        skeleton: of the subject.
        motion: values of :func:`~datamodules.asfamc.read_amc`.

    Returns:
        (frames, 17, 3) mm, right-handed world frame with z up: X = x, Y = -z, Z = y of the file.

    Raises:
        zoo.errors.DataError: the skeleton lacks a bone that a joint needs.
    """
    for name in [name for names in JOINT_ENDS for name in names]:
        if name not in skeleton.bones:
            raise DataError(f"{skeleton.path}: no bone {name!r}; CMU's skeletons have it")
    ends = bone_ends(skeleton, motion)
    y_up = np.stack([np.mean([ends[name] for name in names], axis=0) for names in JOINT_ENDS], 1)
    return np.stack([y_up[..., 0], -y_up[..., 2], y_up[..., 1]], -1)


def resample(positions: Array, source_fps: float) -> Array:
    """(F, 17, 3) at ``source_fps`` -> 50 fps by linear interpolation of the positions."""
    last = len(positions) - 1
    at = np.arange(int(last * FPS / source_fps + 1e-9) + 1) * (source_fps / FPS)
    low = np.minimum(at.astype(np.int64), max(last - 1, 0))
    share = (at - low)[:, None, None]
    return np.asarray(positions[low] * (1 - share) + positions[np.minimum(low + 1, last)] * share)


def cut_glitches(positions: Array) -> list[slice]:
    """The parts of (F, 17, 3) mm at 50 fps that are free of jumps.

    A frame whose second difference exceeds ``GLITCH`` at any joint is cut with its two neighbours,
    which the difference involves too; parts shorter than ``SHORTEST`` are dropped.
    """
    good = np.ones(len(positions), dtype=bool)
    second = np.linalg.norm(np.diff(positions, 2, axis=0), axis=-1).max(-1, initial=0.0)
    for centre in np.flatnonzero(second > GLITCH) + 1:
        good[centre - 1 : centre + 2] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    parts = [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
    return [part for part in parts if part.stop - part.start >= SHORTEST]


def _find(root: Path) -> list[tuple[str, Path, Path]]:
    """(recording, motion file, skeleton file) of everything under ``root``, in order of names."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; it should hold CMU's NN.asf and NN_MM.amc files")
    skeletons: dict[str, list[Path]] = {}
    motions: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in (".asf", ".amc")):
        if path.suffix.lower() == ".asf":
            skeletons.setdefault(path.stem, []).append(path)
        elif path.stem in motions:
            raise DataError(f"{path}: recording {path.stem} is also {motions[path.stem]}")
        else:
            motions[path.stem] = path
    if not motions:
        raise DataError(f"{root}: no .amc file in it; it should hold CMU's NN.asf and NN_MM.amc")
    found = []
    for name, path in motions.items():
        near = skeletons.get(name.split("_")[0], [])
        if not near:
            subject = name.split("_")[0]
            raise DataError(f"{path}: its skeleton {subject}.asf is nowhere under {root}")
        beside = [p for p in near if p.parent == path.parent]
        found.append((name, path, (beside or near)[0]))
    return sorted(found)


def prepare_cmu(
    root: Path, out: Path, progress: bool = True, source_fps: int = SOURCE_FPS
) -> MotionBank:  # fmt: skip
    """Reads a folder of official ASF/AMC files and writes one motion file.

    Args:
        root: folder that holds ``NN.asf`` and ``NN_MM.amc`` files, in subfolders or not.
        out: ``.npz`` file to write; an existing one is replaced when all has been read.
        progress: shows a bar with the time left on stderr, if that is a terminal.
        source_fps: rate of the files; CMU's are 120.

    Returns:
        What was written. Recording ``02_01`` is called ``cmu/02_01``, or ``cmu/02_01#1``,
        ``cmu/02_01#2`` where a glitch was cut out of its middle.

    Raises:
        zoo.errors.DataError: a file is missing or malformed.
        zoo.errors.OutputError: ``out`` cannot be written.
    """
    root, out = Path(root), Path(out)
    if out.suffix != ".npz":
        raise OutputError(f"{out}: the motion file must end in .npz")
    if not out.parent.is_dir() or out.is_dir():
        raise OutputError(f"{out}: cannot be written: its folder does not exist, or it is a folder")
    files = _find(root)
    console = Console(stderr=True)
    skeletons: dict[Path, AsfSkeleton] = {}
    recordings: list[tuple[str, str, Array]] = []
    subjects: list[str] = []
    floors: list[float] = []
    silent = not (progress and console.is_terminal)
    for name, amc, asf in track(files, "CMU motion", console=console, disable=silent):
        if asf not in skeletons:
            skeletons[asf] = read_asf(asf)
        motion = read_amc(amc, skeletons[asf])
        positions = resample(joints(skeletons[asf], motion), source_fps)
        lower = positions[:, (3, 6), 2].min(1)
        floor = float(np.percentile(lower, 2) - ANKLE_ABOVE_FLOOR)
        positions[..., 2] -= floor
        parts = cut_glitches(positions)
        for i, part in enumerate(parts, 1):
            suffix = f"#{i}" if len(parts) > 1 else ""
            subject = name.split("_")[0]
            recordings.append((f"cmu/{name}{suffix}", f"subject {subject}", positions[part]))
            subjects.append(subject)
            floors.append(floor)
    if not recordings:
        raise DataError(f"{root}: no recording has {SHORTEST} frames without a glitch")
    bank = MotionBank.from_recordings(recordings)
    write_npz(
        out,
        {
            "names": np.array(bank.names),
            "actions": np.array(bank.actions),
            "starts": bank.starts,
            "lengths": bank.lengths,
            "positions": bank.positions,
            "fps": np.array(FPS),
            "joint_names": np.array(JOINT_NAMES),
            "parents": PARENTS,
            "skeletons": np.array(subjects),
            "floor_offsets": np.array(floors, dtype=np.float32),
        },
    )
    return bank
