"""Pickles of public data sets: arrays come out, code does not run."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.safe_pickle import load_npz, load_pickle
from zoo.errors import DataError

CONTENT: dict[Any, Any] = {
    "S1": {
        "Walking 1": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "mask": np.array([True, False]),
        "words": np.array(["a", "bc"]),
        "views": [np.zeros((1, 2)), np.ones((2, 1), np.int16)],
    },
    ("S1", "54138969"): {"f": np.float64(3.5), "id": "x", "w": 1000, "none": None},
    "set": {1, 2},
    "ordered": collections.OrderedDict(a=1),
    "objects": np.array([{"a": 1}, [2]], dtype=object),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        if a.dtype == object:
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return a.dtype == b.dtype.newbyteorder(a.dtype.byteorder) and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol))
    assert same(CONTENT, load_pickle(path))


def test_object_arrays_of_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    plain = np.arange(6.0).reshape(2, 3)
    np.savez_compressed(path, positions=CONTENT, plain=plain, turned=plain.T)  # type: ignore[arg-type]
    found = load_npz(path)
    assert same(CONTENT, found["positions"])
    np.testing.assert_array_equal(found["plain"], plain)
    np.testing.assert_array_equal(found["turned"], plain.T)
    assert set(load_npz(path, ("plain",))) == {"plain"}


class Call:
    """Pickled as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Stateful:
    """Pickled as an object with a state."""


HOSTILE = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "subprocess": lambda mark: Call(subprocess.check_call, ["touch", mark]),
    "eval": lambda mark: Call(eval, f"open({mark!r}, 'w')"),
    "getattr": lambda mark: Call(getattr, {}, "keys"),
    "open": lambda mark: Call(builtins.open, mark, "w"),
    "numpy.load": lambda mark: Call(np.load, mark),
    "numpy.fromfile": lambda mark: Call(np.fromfile, "/etc/hostname"),
    "much memory": lambda mark: Call(bytes, 10**15),
    "a large array": lambda mark: Call(np.ndarray, (10**9, 10**6)),
    "an object": lambda mark: Stateful(),
    "a partial": lambda mark: Call(collections.namedtuple, "A", "b"),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_else_is_built_or_called(tmp_path: Path, what: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    content = {"S1": {"Walking": np.zeros(3), "x": HOSTILE[what](str(mark))}}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=r"a\.pkl: (refused, because it wants|not a readable)"):
        load_pickle(path)
    npz = tmp_path / "a.npz"
    np.savez(npz, x=np.array(content, dtype=object))
    with pytest.raises(DataError, match=r"a\.npz, x: (refused|not a readable)"):
        load_npz(npz)
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(I0\ntS'b'\ntR.",
        b"cbuiltins\ndict\n)\x81}S'__class__'\ncos\nsystem\nsb.",
        b"cbuiltins\n__import__\n(S'os'\ntR.",
        b"cnumpy\ncore.multiarray.os.system\n.",
        b"Pid\n.",
        b"\x82\x01.",
        b"cbuiltins\nlist\n(I5\ntR.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"garbage", b"", b".", b"\x80\x09.",
    ],
)  # fmt: skip
def test_hand_made_programs(tmp_path: Path, program: bytes) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "a.pkl"
    path.write_bytes(program.replace(b"MARK", str(mark).encode()))
    with pytest.raises(DataError):
        load_pickle(path)
    assert not mark.exists()


@settings(max_examples=60)
@given(st.data())
def test_damaged_pickles_end_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(pickle.dumps(CONTENT, 4))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(1, len(whole))) :]
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(whole)
    said = ""
    try:
        load_pickle(path)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


def test_damaged_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(DataError, match="no such file"):
        load_npz(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load_npz(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(DataError, match="no array 'b'; it has a"):
        load_npz(path, ("b",))
    for header in ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n",
                   "__import__('os').system('true')\n", "{'descr': '<f8'}\n"):  # fmt: skip
        buffer = io.BytesIO()
        buffer.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", buffer.getvalue())
        with pytest.raises(DataError, match="a damaged array"):
            load_npz(path)
