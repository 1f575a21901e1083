"""The readers of data set formats, and the contract that each one keeps.

A format has one module in this package with three functions, and constants on top with the source
of each fact (joint order, camera ids, units, exclusions)::

    def identify(root: Path) -> bool
        Whether the folder looks like this format. Looks at file names only, is quick and never
        raises.

    def read(root: Path, fault: Fault = stop) -> list[Recording]
        All recordings, in mm and px, in the order of their names. Whatever is wrong with one
        recording (missing, damaged, NaN everywhere, wrong number of joints) is handed as a
        DataError of one line (what, where, what would be right) to ``fault``. The default raises
        it; ``zoo data check`` collects them, and the reader goes on with the next recording.
        Units convert here, once. No code from a file ever runs: pickles go through
        :mod:`datamodules.safe_pickle`, .npz through ``numpy.load(allow_pickle=False)``.

    def missing(root: Path, recordings: Sequence[Recording]) -> list[str]
        One line each for what the folder lacks of the complete data set and how to get it; shown
        by ``zoo data check``, no error.

A reader opens no picture and no video: it makes a :class:`~datamodules.recordings.FrameSource`,
whose ``missing`` says whether the files are there.

The same formats are written from synthetic people by ``datamodules/synth/MODULE.py`` with
``write(root: Path, people: People) -> None`` (see :mod:`datamodules.synth.people`), so that a round
trip tests the reader. ``READERS`` below is the only list of formats.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.recordings import Recording
from zoo.errors import DataError, UsageError, suggest

__all__ = ["READERS", "Fault", "Reader", "find_reader", "get_reader", "read_recordings", "stop"]

Fault = Callable[[DataError], None]


def stop(error: DataError) -> None:
    """The default ``fault``: raises the error."""
    raise error


@dataclass(frozen=True)
class Reader:
    """One format of one data set.

    Attributes:
        name: of the format, for ``--data.format`` and ``zoo data synth``.
        dataset: its data set, a name of the registry's ``datasets``.
        module: with ``identify``, ``read`` and ``missing``.
        what: one line for users: what such a folder holds.
    """

    name: str
    dataset: str
    module: str
    what: str

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(self.module)

    def identify(self, root: Path) -> bool:
        """Whether a folder looks like this format."""
        return bool(self.load().identify(root))

    def read(self, root: Path, fault: Fault = stop) -> list[Recording]:
        """All recordings of a folder.

        Raises:
            DataError: as ``fault`` does, or there is nothing to read at all.
        """
        recordings: list[Recording] = self.load().read(root, fault)
        if not recordings:
            fault(DataError(f"{root}: no recording of format {self.name} could be read"))
        return recordings

    def missing(self, root: Path, recordings: Sequence[Recording]) -> list[str]:
        """What the folder lacks, one line each."""
        return list(self.load().missing(root, recordings))

    def exclusions(self) -> tuple[Any, ...]:
        """The named exclusions of the data set (constant ``EXCLUSIONS`` of the module)."""
        return tuple(getattr(self.load(), "EXCLUSIONS", ()))


READERS: tuple[Reader, ...] = (
    Reader(
        "human36m-crops", "human36m", "datamodules.crops",
        "Human3.6M as `zoo data prepare human36m` stores it: store.json, recordings/*.bin",
    ),
    Reader(
        "human36m-cdf", "human36m", "datamodules.human36m_cdf",
        "Human3.6M, official: S1/MyPoseFeatures or S1/Poses_* with .cdf, S1/Videos",
    ),
    Reader(
        "human36m-fetch", "human36m", "datamodules.human36m_fetch",
        "Human3.6M by h36m-fetch: S1/Directions-1/annot.h5",
    ),
    Reader(
        "human36m-mmpose", "human36m", "datamodules.human36m_mmpose",
        "Human3.6M by mmpose: annotation_body3d/fps10/h36m_train.npz",
    ),
    Reader(
        "human36m-videopose3d", "human36m", "datamodules.human36m_videopose3d",
        "Human3.6M by VideoPose3D: data_3d_h36m.npz, data_2d_h36m_*.npz",
    ),
    Reader(
        "human36m-lists", "human36m", "datamodules.human36m_lists",
        "Human3.6M as text lists of RPSM or SSC",
    ),
    Reader("own", "own", "datamodules.own", "own recordings: dataset.json, poses, pictures"),
    Reader(
        "humaneva", "humaneva", "datamodules.humaneva",
        "HumanEva-I: converted_15j/Train|Validate/S1/Walking_1.mat and S1/Calibration_Data/C1.cal",
    ),
    Reader(
        "mpi-inf-3dhp", "mpi-inf-3dhp", "datamodules.mpi_inf_3dhp",
        "MPI-INF-3DHP: S1/Seq1/annot.mat, TS1/annot_data.mat",
    ),
    Reader(
        "kth", "kth", "datamodules.kth",
        "KTH Multiview Football II: player2/Sequence 1/positions3d.txt, cameras.txt",
    ),
    Reader("mpii-json", "mpii", "datamodules.mpii_json", "MPII: annot/train.json, images/"),
    Reader("mpii", "mpii", "datamodules.mpii", "MPII: mpii_human_pose_v1_u12_1.mat, images/"),
    Reader("lsp", "lsp", "datamodules.lsp", "LSP, LSPET: joints.mat, images/im0001.jpg"),
)  # fmt: skip
"""In the order in which they are tried: a folder that several recognise is of the first one."""


def get_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        UsageError: there is none.
    """
    for reader in READERS:
        if reader.name == name:
            return reader
    raise UsageError(suggest(name, [r.name for r in READERS], "data format"))


def find_reader(root: Path, dataset: str = "") -> Reader:
    """The reader that recognises a folder.

    Args:
        root: the folder.
        dataset: only formats of this data set; empty = all.

    Raises:
        DataError: no such folder, or no reader knows it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    known = [r for r in READERS if dataset in ("", r.dataset)]
    for reader in known:
        if reader.identify(root):
            return reader
    formats = "; ".join(f"{r.name} ({r.what})" for r in known)
    raise DataError(f"{root}: of no known format: {formats}")


def read_recordings(root: Path, format: str = "", dataset: str = "") -> list[Recording]:
    """Reads a folder of a named format, or of the one that it is recognised as.

    Raises:
        DataError: no such folder, no known format, or something in it is wrong.
        UsageError: no format has that name.
    """
    if not format:
        return find_reader(root, dataset).read(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    return get_reader(format).read(root)
