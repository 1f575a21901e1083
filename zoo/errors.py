"""The errors that users see: one line that says what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "MethodError",
    "OutputError",
    "UsageError",
    "ZooError",
    "suggest",
]


class ZooError(Exception):
    """Base of every error a user can cause; the command line prints its text and exits with 2."""


class UsageError(ZooError):
    """A flag, a name or a combination of options is wrong."""


class MethodError(ZooError):
    """A method cannot be found, imported or built."""


class DataError(ZooError):
    """An input file (image, motion, keypoints, annotations) is missing or malformed."""


class CheckpointError(ZooError):
    """A weight file or a checkpoint is missing, damaged, or belongs to something else."""


class OutputError(ZooError):
    """A result cannot be written where it was asked for."""


def suggest(name: str, known: Iterable[str], what: str) -> str:
    """Returns "no WHAT 'NAME'; did you mean A or B?" with the nearest known names."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"no {what} {name!r}; did you mean {' or '.join(near)}?"
    return f"no {what} {name!r}; known: {', '.join(known) or 'none'}"
