"""Object pickles of public data sets, read without running what is in them.

Several releases are pickles: ``.npz`` files with object arrays, ``cameras.pkl``. Unpickling runs
whatever code the file names, so this module has an unpickler of its own that builds NumPy arrays,
dicts, lists, tuples, sets, strings, bytes and numbers, and refuses the file for anything else.
"""

from __future__ import annotations

import ast
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = ["load_npz", "load_pickle"]

_LARGEST = 32 * 2**30
"""Bytes that one array of a file may claim; more is a damaged or hostile header."""


class _Refused(Exception):
    """What a file wants and does not get."""


def _encode(text: str, encoding: str = "latin1", *rest: Any) -> bytes:
    """What pickles of Python 2 call for bytes; other encodings are refused."""
    if rest or not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("an encoding other than latin1")
    return text.encode("latin1")


def _dtype(*arguments: Any) -> np.dtype[Any]:
    dtype = np.dtype(*arguments[:1])
    if dtype.fields is not None:
        raise _Refused("a structured array")
    return dtype


class _NdarrayName:
    """Stands for ``numpy.ndarray``: an argument of :func:`_reconstruct`, never called."""


def _reconstruct(kind: Any, shape: Any, typecode: Any) -> NDArray[Any]:
    if kind is not _NdarrayName or shape not in ((0,), 0):
        raise _Refused("an array of another class")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes | str):
        raise _Refused("a scalar of objects")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if len(raw) != dtype.itemsize:
        raise _Refused("a scalar of another size")
    return np.frombuffer(raw, dtype, 1)[0]


def _frombuffer(
    buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None
) -> NDArray[Any]:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or axis_order is not None:
        raise _Refused("a buffer of objects")
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _bytes(*arguments: Any) -> bytes:
    """Empty, or from a list of numbers; ``bytes(n)`` would claim memory."""
    if arguments and not isinstance(arguments[0], list | bytes):
        raise _Refused("bytes of a number")
    return bytes(*arguments[:1])


def _plain_default_dict(*arguments: Any) -> dict[Any, Any]:
    """A ``defaultdict`` as a plain dict: its factory is not kept."""
    return {}


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _plain_default_dict,
}
for _home in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_home}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_home}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_home}.numeric", "_frombuffer"] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    for _kind in (dict, list, tuple, set, frozenset, str, int, float, bool, complex):
        _ALLOWED[_builtins, _kind.__name__] = _kind
    _ALLOWED[_builtins, "unicode"] = str
    _ALLOWED[_builtins, "long"] = int
    _ALLOWED[_builtins, "bytes"] = _bytes


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler, restricted: also ``BUILD`` only fills arrays."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Only names of the list; nothing is imported."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """References to outside objects are refused."""
        raise _Refused("a persistent reference")

    def get_extension(self, code: int) -> None:
        """So are the codes of a process-wide registry."""
        raise _Refused("an extension code")

    def load_build(self) -> None:
        """State of an array or a dtype; of nothing else."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is np.ndarray:
            if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[1], tuple)):
                raise _Refused("an array with another kind of state")
            version, shape, dtype, fortran, data = state
            if not isinstance(dtype, np.dtype):
                raise _Refused("an array without a type")
            self._check(shape, dtype, data)
            if isinstance(data, str):
                data = data.encode("latin1")
            target.__setstate__((version, shape, dtype, fortran, data))
            return
        if isinstance(target, np.dtype):
            if not (isinstance(state, tuple) and len(state) >= 8 and state[3] is None
                    and state[2] is None):  # fmt: skip
                raise _Refused("a structured type")
            if state[1] in ("<", ">", "=", "|"):
                self.stack[-1] = target.newbyteorder(state[1])  # type: ignore[attr-defined]
                self._replace(target, self.stack[-1])  # type: ignore[attr-defined]
            return
        raise _Refused(f"state of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def _replace(self, old: Any, new: Any) -> None:
        """The byte order makes a new dtype object: later references must find it."""
        for key, value in list(self.memo.items()):  # type: ignore[attr-defined]
            if value is old:
                self.memo[key] = new  # type: ignore[attr-defined]

    @staticmethod
    def _check(shape: tuple[Any, ...], dtype: np.dtype[Any], data: Any) -> None:
        count = 1
        for size in shape:
            if not isinstance(size, int) or size < 0:
                raise _Refused("an array of another shape")
            count *= size
        if dtype.hasobject:
            if not isinstance(data, list) or len(data) != count:
                raise _Refused("an object array of another size")
        elif not isinstance(data, bytes | str) or len(data) != count * dtype.itemsize:
            raise _Refused("an array of another size")


_FAULTS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
    struct.error, MemoryError, OverflowError, UnicodeDecodeError, RecursionError,
)  # fmt: skip


def _unpickle(stream: Any, where: str) -> Any:
    try:
        return _Unpickler(stream, encoding="latin1").load()
    except _Refused as error:
        raise DataError(
            f"{where}: refused, because it wants {error}; only arrays, dicts, lists, strings and "
            "numbers are read from a pickle"
        ) from error
    except _FAULTS as error:
        raise DataError(f"{where}: not a readable pickle, or a truncated one") from error


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers.

    Raises:
        DataError: no such file, not a pickle, a truncated one, or one that holds anything else.
    """
    try:
        with path.open("rb") as stream:
            return _unpickle(io.BufferedReader(stream), str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def load_npz(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arrays of an ``.npz`` file; object arrays through the restricted unpickler.

    A 0-dimensional object array gives the object itself.

    Args:
        path: the file.
        keys: that must be in it; only these are read. Empty reads all.

    Raises:
        DataError: no such file, no ``.npz``, damaged, a key is missing, or a hostile pickle.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n[:-4] for n in archive.namelist() if n.endswith(".npy")}
            for key in keys:
                if key not in names:
                    raise DataError(
                        f"{path}: no array {key!r}; it has {', '.join(sorted(names)) or 'none'}"
                    )
            found = {}
            for key in keys or tuple(sorted(names)):
                with archive.open(f"{key}.npy") as stream:
                    found[key] = _read_npy(stream, f"{path}, {key}")
            return found
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: not an .npz file, or a damaged one") from error


def _read_npy(stream: Any, where: str) -> Any:
    try:
        version = np.lib.format.read_magic(stream)
        size = struct.unpack("<H", stream.read(2)) if version[0] == 1 else struct.unpack(
            "<I", stream.read(4)
        )  # fmt: skip
        header = ast.literal_eval(stream.read(size[0]).decode("latin1"))
        dtype, shape = np.dtype(header["descr"]), tuple(header["shape"])
        if not dtype.hasobject:
            count = int(np.prod(shape, dtype=np.int64))
            if count < 0 or count * dtype.itemsize > _LARGEST:
                raise ValueError("too large")
            data = stream.read(count * dtype.itemsize)
            array = np.frombuffer(data, dtype, count)
            return array.reshape(shape, order="F" if header["fortran_order"] else "C")
    except (*_FAULTS, SyntaxError) as error:
        raise DataError(f"{where}: a damaged array") from error
    array = _unpickle(stream, where)
    return array.item() if isinstance(array, np.ndarray) and array.shape == () else array
