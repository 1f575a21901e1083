"""Numbers in text files, with one-line errors: calibrations, synchronisation, KTH's arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = ["read_column", "read_lines"]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without blanks at their ends; any kind of line end.

    Raises:
        zoo.errors.DataError: no such file, empty, or no text.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file") from error
    lines = [line.strip() for line in content.replace("\r", "\n").split("\n")]
    if not any(lines):
        raise DataError(f"{path}: the file is empty; copy or unpack it again")
    return lines


def read_column(path: Path, multiple_of: int = 1) -> NDArray[np.float64]:
    """All numbers of a file with one number a line; blank lines do not count.

    Args:
        path: the file.
        multiple_of: how many numbers belong together.

    Raises:
        zoo.errors.DataError: something else is in it, or a part is missing.
    """
    values = []
    for place, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        try:
            values.append(float(line))
        except ValueError as error:
            raise DataError(
                f"{path}: line {place} is {line[:40]!r}; expected one number"
            ) from error
    if len(values) % multiple_of:
        raise DataError(
            f"{path}: {len(values)} numbers, expected a multiple of {multiple_of}; it is cut off"
        )
    return np.array(values)
