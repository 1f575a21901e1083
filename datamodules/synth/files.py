"""Writing the kinds of files that data sets come in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import OutputError
from zoo.video import opencv

__all__ = ["column", "struct_array", "write_avi", "write_image", "write_mat", "write_mat73"]

Pixels = NDArray[np.uint8]

_MAT73_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 ."


def write_image(path: Path, pixels: Pixels) -> None:
    """Writes (H, W, 3) uint8 RGB as a JPEG or PNG, by the name's ending."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)  # PNG takes no notice of it


def write_avi(path: Path, frames: Iterable[Pixels], fps: float) -> None:
    """Writes (H, W, 3) uint8 RGB frames of one size as an AVI with MPEG-4 video.

    Raises:
        zoo.errors.OutputError: it cannot be written.
    """
    cv2 = opencv()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*"XVID")
            writer = cv2.VideoWriter(str(path), code, fps, size)
            if not writer.isOpened():
                raise OutputError(f"{path}: cannot write a video there")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()


def write_mat(path: Path, variables: Mapping[str, Any]) -> None:
    """Writes a MATLAB 5 file, compressed as MATLAB does."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(str(path), dict(variables), do_compression=True, oned_as="column")


def write_mat73(path: Path, variables: Mapping[str, NDArray[Any]]) -> None:
    """Writes a MATLAB 7.3 file of numeric arrays.

    Args:
        path: the file.
        variables: with the axes as MATLAB has them; HDF5 holds them reversed.
    """
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            entry = file.create_dataset(name, data=np.asarray(value).T)
            entry.attrs["MATLAB_class"] = np.bytes_("double")
    header = _MAT73_HEADER.ljust(116) + b"\0" * 8 + b"\x00\x02IM"
    with path.open("r+b") as raw:
        raw.write(header)


def struct_array(rows: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> NDArray[Any]:
    """A 1 x N MATLAB struct array for :func:`write_mat`; a missing field is an empty matrix."""
    rows, fields = list(rows), list(fields)
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    empty = np.zeros((0, 0))
    for i, row in enumerate(rows):
        for field in fields:
            array[0, i][field] = row.get(field, empty)
    return array


def column(path: Path, values: NDArray[np.float64]) -> None:
    """Writes numbers one a line, so that they read back exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{float(value)!r}\n" for value in values))
