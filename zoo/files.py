"""Files that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo.errors import OutputError

__all__ = ["whole_file", "write_atomically"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which becomes ``path`` when the block ends well.

    An exception, an interruption included, removes it and leaves what was there before. The folder
    is made when it does not exist; the temporary name has the same suffix.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix
        )
        os.close(handle)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield Path(temporary)
        try:
            # mkstemp makes private files; a result has the permissions of any other new file.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_atomically(path: Path, content: bytes | memoryview, durable: bool = False) -> Path:
    """Writes a file under a temporary name and renames it; makes its folder, returns ``path``.

    Args:
        path: the file.
        content: all of it.
        durable: wait until the disk has it, so that not even a power cut leaves a part.

    Raises:
        zoo.errors.OutputError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path
