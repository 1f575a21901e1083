"""MPII as the common JSON lists ``train.json`` and ``valid.json``; the facts are in ``mpii.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.mpii import Person, find_annotation, missing, parse_json, splits_of
from datamodules.readers import Fault, stop
from datamodules.recordings import Recording
from zoo.errors import DataError

__all__ = ["FILES", "identify", "missing", "read"]

FILES = {"train": "train.json", "val": "valid.json"}


def identify(root: Path) -> bool:
    """Whether one of the lists is there, beside a folder ``images``."""
    some = any(find_annotation(root, name) for name in FILES.values())
    return some and (root / "images").is_dir()


def read(root: Path, fault: Fault = stop) -> list[Recording]:
    """All people of the lists; see :mod:`datamodules.readers`."""
    found: list[Recording] = []
    for split, name in FILES.items():
        path = find_annotation(root, name)
        if path is None:
            continue
        people: Sequence[Person] = ()
        try:
            people = parse_json(path)
        except DataError as error:
            fault(error)
        parts: dict[str, Sequence[Person]] = {"train": (), "val": (), split: people}
        found += splits_of(root, parts, path)
    return found
