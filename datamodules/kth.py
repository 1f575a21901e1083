"""KTH Multiview Football II: football players seen by three affine cameras that follow them.

Facts (Kazemi, Burenius, Azizpour, Sullivan, BMVC 2013; the readme of the official ``code3d.zip``):

* A sequence is a folder with ``positions2d.txt`` (2 x 14 x 3 x T), ``positions3d.txt`` (3 x 14 x T)
  and ``cameras.txt`` (2 x 4 x 3 x T): one number a line, first index fastest (joints, cameras,
  frames follow), and ``Camera 1`` ... ``Camera 3`` with images ``00001.png`` (or ``.jpg``) ...
* Each camera and frame has its own affine 2 x 4 matrix: (x, y) = M (X, Y, Z, 1). Cameras follow
  the player, so only the pose is in 3D, not its path; depth is not defined.
* 3D is in metres with z up, reconstructed from the 2D annotations of the three views; it projects
  to within some pixels of them, not exactly.
* Pixels count from 1, as MATLAB's do, so 1 is taken off here, from the cameras too.
* The readme names no frame rate; 25 Hz is assumed. Papers report PCP: the ends of a limb may be off
  by half its length, on average, in 3D.

Joint order: ``kth_14`` (that of LSP; "bottom head" and "top head").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.plausible import check_reprojection, check_trunk
from datamodules.readers import Fault, stop
from datamodules.recordings import Camera, ImageFiles, Recording
from datamodules.textfiles import read_column
from zoo.errors import DataError

__all__ = ["FILES", "NUM_CAMERAS", "KthDataModule", "Sequence3D", "identify", "missing"]
__all__ += ["parse_sequence", "read"]

Split = Literal["train", "val", "test"]
NUM_JOINTS, NUM_CAMERAS = 14, 3
FIRST_PIXEL = 1
MM = 1000.0
"""The files' unit, the metre, in mm."""
FPS = 25.0
ACTION = "Football"
FILES = ("positions2d.txt", "positions3d.txt", "cameras.txt")


@dataclass(frozen=True, eq=False)
class Sequence3D:
    """One sequence.

    Attributes:
        joints_2d: (3, T, 14, 2) px, pixel centres at integers from 0, by camera.
        joints_3d: (T, 14, 3) mm, z up, near the player.
        cameras: (3, T, 2, 4) px from homogeneous mm.
    """

    joints_2d: NDArray[np.float64]
    joints_3d: NDArray[np.float64]
    cameras: NDArray[np.float64]


def parse_sequence(folder: Path) -> Sequence3D:
    """Reads the three files of a sequence.

    Raises:
        zoo.errors.DataError: a file is missing, damaged, or does not fit the others.
    """
    shapes = {
        "positions2d.txt": (NUM_CAMERAS, NUM_JOINTS, 2),
        "positions3d.txt": (NUM_JOINTS, 3),
        "cameras.txt": (NUM_CAMERAS, 4, 2),
    }
    arrays = {}
    for name in FILES:
        values = read_column(folder / name, int(np.prod(shapes[name])))
        arrays[name] = values.reshape(-1, *shapes[name])
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"{folder}: the files have different numbers of frames: {told}")
    if not np.isfinite(arrays["cameras.txt"]).all():
        raise DataError(f"{folder / 'cameras.txt'}: a camera is not finite")
    joints_3d = arrays["positions3d.txt"] * MM
    check_trunk(f"{folder / 'positions3d.txt'} (metres)", "kth_14", joints_3d)
    cameras = arrays["cameras.txt"].transpose(1, 0, 3, 2).copy()
    cameras[..., :3] /= MM
    cameras[..., 3] -= FIRST_PIXEL
    if (np.linalg.norm(cameras[..., :3], axis=-1) == 0).any():
        raise DataError(f"{folder / 'cameras.txt'}: a camera has a row of zeros")
    joints_2d = arrays["positions2d.txt"].transpose(1, 0, 2, 3) - FIRST_PIXEL
    return Sequence3D(joints_2d, joints_3d, cameras)


# ---- reader -----------------------------------------------------------------------------------

_HOW = "https://www.csc.kth.se/cvap/cvg/?page=footballdataset2"
_PLAYER = re.compile(r"player[ _-]?(\d+)", re.IGNORECASE)
_SEQUENCE = re.compile(r"sequence[ _-]?(\d+)", re.IGNORECASE)
_DEPTH = ("", "*/", "*/*/")
HELD_OUT = 10
"""The last one of so many parts of the training frames is for validation ..."""
MIN_HELD_OUT = 5
"""... unless it would have fewer frames."""


def _folders(root: Path) -> list[Path]:
    """Folders of sequences: the root, or one or two folders down."""
    found = {p.parent for depth in _DEPTH for name in FILES for p in root.glob(depth + name)}
    return sorted(found)


def identify(root: Path) -> bool:
    """Whether there is a sequence, here or up to two folders down."""
    try:
        return any((p / FILES[1]).is_file() and (p / FILES[2]).is_file() for p in _folders(root))
    except OSError:
        return False


def _number_in(pattern: re.Pattern[str], path: Path) -> str | None:
    """The number after a word in the nearest folder that has the word."""
    for part in reversed(path.absolute().parts):
        match = pattern.search(part)
        if match:
            return match[1]
    return None


def _pictures(folder: Path, camera: int, count: int) -> ImageFiles | None:
    """The images of a camera, as .png or .jpg."""
    place = folder / f"Camera {camera}"
    for suffix in ("png", "jpg"):
        if (place / f"00001.{suffix}").is_file():
            return ImageFiles(str(place), tuple(f"{i + 1:05d}.{suffix}" for i in range(count)))
    return None


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All sequences and cameras; see :mod:`datamodules.readers`.

    The first half of each sequence is for training (its last tenth for validation), the second
    half for test, as in Katircioglu et al. 2018.
    """
    found: list[Recording] = []
    for folder in _folders(root):
        player, trial = _number_in(_PLAYER, folder), _number_in(_SEQUENCE, folder)
        try:
            if player is None or trial is None:
                what = "player" if player is None else "sequence"
                raise DataError(
                    f"{folder}: which {what} is it? Name a folder like the official "
                    "'player2sequence1.zip': 'player2/Sequence 1'"
                )
            sequence = parse_sequence(folder)
        except DataError as error:
            fault(error)
            continue
        count = len(sequence.joints_3d)
        half = count // 2
        held = half - (half // HELD_OUT if half >= HELD_OUT * MIN_HELD_OUT else 0)
        bounds: dict[Split, tuple[int, int]] = {
            "train": (0, held), "val": (held, half), "test": (half, count),
        }  # fmt: skip
        for index in range(NUM_CAMERAS):
            pictures = _pictures(folder, index + 1, count)
            for split, (first, last) in bounds.items():
                rows = np.arange(first, last)
                if not len(rows):
                    continue
                recording = Recording(
                    subject=f"player{player}",
                    action=ACTION,
                    trial=int(trial),
                    camera=Camera(f"Camera {index + 1}", affine=sequence.cameras[index, rows]),
                    skeleton="kth_14",
                    joints_2d=sequence.joints_2d[index, rows],
                    joints_3d=sequence.joints_3d[rows],
                    space="world",
                    fps=FPS,
                    frames=rows,
                    pictures=pictures and replace(pictures, names=pictures.names[first:last]),
                    split=split,
                    where=str(folder),
                )
                try:
                    found.append(check_reprojection(recording, "cameras.txt"))
                except DataError as error:
                    fault(error)
    return found


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks of the set; see :mod:`datamodules.readers`."""
    lines = []
    have = {(r.subject, r.trial) for r in recordings}
    gone = [
        f"{s} sequence {t}" for s in ("player1", "player2") for t in (1, 2) if (s, t) not in have
    ]
    if gone:
        lines.append(f"no {', '.join(gone)}; {_HOW}")
    blind = sorted({r.where for r in recordings if r.pictures is None})
    if blind:
        lines.append(
            f"{blind[0]}: no images 'Camera 1/00001.png' (or .jpg); they are in the same zip"
        )
    return lines


class KthDataModule(FileDataModule):
    """KTH Multiview Football II; see the base class for the other arguments.

    Args:
        player: number of the player whose sequences are used; the paper's is 2, 0 is everybody.
    """

    dataset = "kth"
    default_protocol = "kth-pcp"

    def __init__(self, player: int = 2, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.player = player

    def read(self) -> list[Recording]:
        """The recordings of the chosen player."""
        found = super().read()
        chosen = [r for r in found if self.player in (0, int(r.subject.removeprefix("player")))]
        if not chosen:
            have = ", ".join(sorted({r.subject for r in found}))
            raise DataError(f"{self.root}: no player {self.player}; the folder has {have}")
        return chosen
