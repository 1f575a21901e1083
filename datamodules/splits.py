"""Which recording of motion belongs to training, validation and test.

A split is decided by the recording's name alone, so it is the same in every file, on every machine
and for every seed. Parts of one recording (``NAME#1``, ``NAME#2``) share its base name and so its
split.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Literal

from zoo.errors import DataError

__all__ = ["GENERATED", "LISTS_FILE", "SPLITS", "Split", "base_name", "split_lists", "split_of"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

GENERATED = "generated/"
"""Recordings of the built-in generator are called ``generated/SPLIT/ACTION_NUMBER``."""

LISTS_FILE = Path(__file__).with_name("motion_splits.txt")
"""The committed lists: a line ``SPLIT NAME`` for each recording of the development motion file."""


def base_name(name: str) -> str:
    """The recording that ``name`` is a part of: ``cmu/01_03#2`` is of ``cmu/01_03``."""
    return name.split("#", 1)[0]


@cache
def split_lists() -> dict[str, Split]:
    """Base name of each listed recording -> its split.

    Raises:
        zoo.errors.DataError: a line of the list file is malformed, or a name is listed twice.
    """
    lists: dict[str, Split] = {}
    for number, line in enumerate(LISTS_FILE.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in SPLITS or words[1] in lists:
            raise DataError(
                f"{LISTS_FILE.name}:{number}: a line is `train|val|test NAME` with a new name, "
                f"not {line!r}"
            )
        lists[words[1]] = words[0]
    return lists


def split_of(name: str) -> Split:
    """The split of the recording (or part of a recording) called ``name``.

    Listed recordings follow the list, generated ones carry their split in their name, and all
    others are dealt out by a hash of their base name: 70 % train, 10 % val, 20 % test.
    """
    base = base_name(name)
    listed = split_lists().get(base)
    if listed is not None:
        return listed
    if base.startswith(GENERATED):
        word = base[len(GENERATED) :].split("/", 1)[0]
        if word in SPLITS:
            return word
    tenth = int.from_bytes(hashlib.sha256(base.encode("utf-8")).digest()[:8], "big") % 10
    return "train" if tenth < 7 else "val" if tenth < 8 else "test"
