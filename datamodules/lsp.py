"""Leeds Sports Pose (LSP) and its extended training set (LSPET), 2D only.

Facts (Johnson and Everingham, BMVC 2010 and CVPR 2011; the readme files of the sets):

* ``joints.mat`` holds ``joints``: (3, 14, 2000) in LSP, (14, 3, 10000) in LSPET; x, y, and a third
  value that is **inverted between the two**: in LSP 1 is a hidden joint, in LSPET 1 is a joint that
  is visible. Hidden joints are annotated in LSP; in LSPET their coordinates are no annotation
  (often outside the image), so they are not valid here.
* Images are ``images/im0001.jpg`` (LSP) and ``images/im00001.jpg`` (LSPET), in the array's order.
* Pixels count from 1, as MATLAB's do, so 1 is taken off here.
* LSP's first 1000 images are for training, the rest for test; all of LSPET is for training.

Joint order: ``lsp_14``, left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import FileDataModule
from datamodules.matlab import load_mat, numbers
from datamodules.readers import Fault, stop
from datamodules.recordings import ImageFiles, Recording
from zoo.errors import DataError

__all__ = ["Annotation", "LspDataModule", "identify", "missing", "parse_joints", "read"]

Split = Literal["train", "val", "test"]
NUM_JOINTS = 14
FIRST_PIXEL = 1
TRAIN_IMAGES = 1000
"""Of LSP, from the first on."""
VALIDATION_IMAGES = 100
"""The last ones of these are held out of training."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """What ``joints.mat`` says.

    Attributes:
        kind: ``lsp`` or ``lspet``, by the shape of the array.
        joints: (N, 14, 2) px, pixel centres at integers from 0, NaN = not annotated.
        occluded: (N, 14) bool.
        names: N names of image files, relative to the set's folder.
    """

    kind: Literal["lsp", "lspet"]
    joints: NDArray[np.float64]
    occluded: NDArray[np.bool_]
    names: tuple[str, ...]


def parse_joints(path: Path) -> Annotation:
    """Reads ``joints.mat`` of either set.

    Raises:
        zoo.errors.DataError: not such a file, or values that cannot be.
    """
    array = numbers(path, "joints", load_mat(path, ["joints"])["joints"], 3)
    kind: Literal["lsp", "lspet"]
    if array.shape[:2] == (3, NUM_JOINTS):
        kind, rows = "lsp", array.transpose(2, 1, 0)
    elif array.shape[:2] == (NUM_JOINTS, 3):
        kind, rows = "lspet", array.transpose(2, 0, 1)
    else:
        raise DataError(
            f"{path}: joints is {array.shape}; expected (3, 14, images) of LSP or "
            "(14, 3, images) of LSPET"
        )
    third = rows[..., 2]
    if not np.isin(third, (0, 1)).all():
        raise DataError(f"{path}: the third value of a joint must be 0 or 1")
    xy = rows[..., :2] - FIRST_PIXEL
    if kind == "lsp":
        occluded, digits = third == 1, 4
    else:
        xy = np.where(third[..., None] == 1, xy, np.nan)
        occluded, digits = np.zeros(third.shape, dtype=bool), 5
    gone = ~np.isfinite(xy).all(-1)
    names = tuple(f"images/im{i + 1:0{digits}d}.jpg" for i in range(len(rows)))
    return Annotation(kind, np.where(gone[..., None], np.nan, xy), occluded & ~gone, names)


# ---- reader -----------------------------------------------------------------------------------

_HOW = "http://sam.johnson.io/research (lsp.html, lspet.html)"


def _folders(root: Path) -> list[Path]:
    """Folders of either set: the root itself, or folders in it."""
    inside = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    places = [root, *inside]
    return [p for p in places if (p / "joints.mat").is_file() and (p / "images").is_dir()]


def identify(root: Path) -> bool:
    """Whether there is a ``joints.mat`` beside ``images/im...``, here or one folder down."""
    try:
        return any(next((p / "images").glob("im*.jpg"), None) for p in _folders(root))
    except OSError:
        return False


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All people of LSP, LSPET, or both; see :mod:`datamodules.readers`."""
    found: list[Recording] = []
    for folder in _folders(root):
        path = folder / "joints.mat"
        try:
            annotation = parse_joints(path)
        except DataError as error:
            fault(error)
            continue
        count = len(annotation.names)
        bounds: dict[Split, tuple[int, int]] = {"train": (0, count)}
        if annotation.kind == "lsp":
            last = TRAIN_IMAGES - VALIDATION_IMAGES
            bounds = {
                "train": (0, last),
                "val": (last, TRAIN_IMAGES),
                "test": (TRAIN_IMAGES, count),
            }
            if count < TRAIN_IMAGES:  # a small copy: the same shares
                half, tenth = count // 2, max(count // 20, 1)
                bounds = {
                    "train": (0, half - tenth),
                    "val": (half - tenth, half),
                    "test": (half, count),
                }
        for split, (first, stop_at) in bounds.items():
            rows = np.arange(first, stop_at)
            if len(rows):
                found.append(
                    Recording(
                        subject=annotation.kind.upper(),
                        skeleton="lsp_14",
                        joints_2d=annotation.joints[rows],
                        occluded=annotation.occluded[rows],
                        frames=rows,
                        pictures=ImageFiles(str(folder), annotation.names[first:stop_at]),
                        split=split,
                        where=str(path),
                    )
                )
    return found


def missing(root: Path, recordings: Sequence[Recording]) -> list[str]:
    """What the folder lacks of the two sets; see :mod:`datamodules.readers`."""
    lines = []
    for subject, complete in (("LSP", 2000), ("LSPET", 10000)):
        mine = [r for r in recordings if r.subject == subject]
        if not mine:
            lines.append(f"{subject}: not there; {_HOW}")
            continue
        count = sum(len(r) for r in mine)
        if count < complete:
            lines.append(f"{subject}: {count} of {complete} images annotated; {_HOW}")
    return lines


class LspDataModule(FileDataModule):
    """Leeds Sports Pose and its extension: 2D only; see the base class for the arguments.

    Training: the first 900 images of LSP and all of LSPET, as far as the folder has them;
    validation: the next 100 of LSP; test: its last 1000.
    """

    dataset = "lsp"
