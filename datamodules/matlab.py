"""MATLAB files of data sets: version 5 by scipy, version 7.3 (HDF5) by h5py; no code runs.

Every error is one line that names the file, the variable and what was expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = ["load_hdf5", "load_mat", "number", "numbers", "struct_rows", "text"]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HEADER_BYTES = 512  # version 7.3 puts a text header of this size before the HDF5 file


def _checked_head(path: Path) -> bytes:
    """The first bytes of a file that must exist and hold something."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES + len(_HDF5_MAGIC))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{path}: the file is empty; copy or unpack it again")
    return head


def _is_hdf5(head: bytes) -> bool:
    return head.startswith(_HDF5_MAGIC) or head[_HEADER_BYTES:] == _HDF5_MAGIC


def load_mat(path: Path, variables: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Reads variables of a MATLAB file up to version 7.

    Args:
        path: the file.
        variables: names that must be there.

    Returns:
        Arrays as MATLAB has them, at least two axes; structs are structured object arrays.

    Raises:
        zoo.errors.DataError: no file, not a MATLAB file, damaged, or a variable is missing.
    """
    from scipy.io import loadmat, whosmat

    if _is_hdf5(_checked_head(path)):
        raise DataError(
            f"{path}: a version 7.3 MATLAB file; save it with -v7 (or use the original file)"
        )
    try:
        names = [name for name, _, _ in whosmat(str(path))]
        missing = [name for name in variables if name not in names]
        loaded = {} if missing else loadmat(str(path), variable_names=list(variables))
    except Exception as error:  # a damaged file raises anything: zlib, struct, type and key errors
        raise DataError(f"{path}: not a readable MATLAB file; copy or unpack it again") from error
    if missing:
        raise DataError(
            f"{path}: no variable {missing[0]!r}; the file has {', '.join(sorted(names)) or 'none'}"
        )
    return {name: np.asarray(loaded[name]) for name in variables}


def load_hdf5(path: Path, variables: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Reads numeric variables of a MATLAB 7.3 file (or any HDF5 file).

    Args:
        path: the file.
        variables: names of datasets at the top that must be there.

    Returns:
        Arrays with the axes in the file's order: the reverse of MATLAB's.

    Raises:
        zoo.errors.DataError: no file, not HDF5, damaged, or a variable is missing or not numeric.
    """
    import h5py

    if not _is_hdf5(_checked_head(path)):
        raise DataError(f"{path}: not a version 7.3 (HDF5) MATLAB file")
    result: dict[str, NDArray[Any]] = {}
    try:
        with h5py.File(path, "r") as file:
            for name in variables:
                entry = file.get(name)
                if not isinstance(entry, h5py.Dataset):
                    raise DataError(
                        f"{path}: no variable {name!r}; the file has "
                        f"{', '.join(sorted(k for k in file if not k.startswith('#'))) or 'none'}"
                    )
                if entry.dtype.kind not in "fiub":
                    raise DataError(f"{path}: {name} is not an array of numbers")
                result[name] = np.asarray(entry[()])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a readable HDF5 file; copy or unpack it again") from error
    return result


# ---- values inside structs --------------------------------------------------------------------


def _inner(value: Any) -> Any:
    """A value out of the 1 x 1 arrays and cells that MATLAB wraps it in; ``None`` if empty."""
    while isinstance(value, np.ndarray):
        if value.size == 0:
            return None
        if value.size > 1:
            return value
        value = value.reshape(-1)[0]
    return value


def number(value: Any) -> float | None:
    """A number out of its wrapping (a character too); ``None`` if empty or no number."""
    inner = _inner(value)
    if isinstance(inner, np.void | np.ndarray) or inner is None:
        return None
    try:
        return float(inner)
    except (TypeError, ValueError):
        return None


def text(value: Any) -> str:
    """A string out of its wrapping; empty if there is none."""
    inner = _inner(value)
    return str(inner) if isinstance(inner, str) else ""


def struct_rows(value: Any) -> list[np.void]:
    """The elements of a struct array; none if something else is there, such as an empty matrix."""
    while isinstance(value, np.ndarray) and value.dtype.names is None:
        if value.dtype != object or value.size != 1:
            return []
        value = value.reshape(-1)[0]
    if isinstance(value, np.void) and value.dtype.names is not None:
        return [value]
    return list(value.reshape(-1)) if isinstance(value, np.ndarray) else []


def numbers(path: Path, name: str, value: Any, axes: int) -> NDArray[np.float64]:
    """A numeric array with a given number of axes.

    Raises:
        zoo.errors.DataError: it is not.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.ndim != axes:
        raise DataError(
            f"{path}: {name} must be an array of numbers with {axes} axes, not "
            f"{array.dtype.name} {array.shape}"
        )
    return array.astype(np.float64)
