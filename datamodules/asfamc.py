"""Acclaim ASF (skeleton) and AMC (motion) files: a parser and forward kinematics.

Conventions of the format. A bone's ``axis`` C and the angles M of its ``dof`` are rotations
composed in the order in which they are written (the first is applied first); with its parent's
rotation G_p a bone turns by G = G_p C M C^-1 and ends at its start + G (direction * length).
Lengths are in units of 25.4 / ``length`` mm (56.44 mm for the usual 0.45).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = ["AsfSkeleton", "Bone", "bone_ends", "read_amc", "read_asf"]

Array = NDArray[np.float64]


# ---- the skeleton file --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bone:
    """A bone of a skeleton file.

    Attributes:
        offset: (3,) mm from its start to its end in the rest pose.
        axis: (3, 3) the rotation C of its axes in the rest pose.
        dof: names of its degrees of freedom in order: ``rx``, ``ry``, ``rz``, and for the root
            ``tx``, ``ty``, ``tz``.
        parent: name of the bone it starts from; ``""`` for the root.
    """

    offset: Array
    axis: Array
    dof: tuple[str, ...]
    parent: str


@dataclass(frozen=True)
class AsfSkeleton:
    """A skeleton file: bones by name, parents first; the root is the bone ``root``.

    Attributes:
        bones: the bones.
        unit: mm in a length unit of the file and of its motions.
        radians: factor from the files' angles to radians.
        position: (3,) mm, the root's place in the rest pose.
        path: the file.
    """

    bones: dict[str, Bone]
    unit: float
    radians: float
    position: Array
    path: Path


def _axis_rotation(axis: str, angle: Array) -> Array:
    """(..., 3, 3) about ``x``, ``y`` or ``z`` by (...) radians."""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    out = np.zeros((*np.shape(angle), 3, 3))
    out[..., i, i] = 1
    out[..., j, j] = out[..., k, k] = np.cos(angle)
    out[..., k, j] = np.sin(angle)
    out[..., j, k] = -np.sin(angle)
    return out


def _rotation(order: str, angles: Array) -> Array:
    """(..., 3, 3) of (..., n) radians about the n axes in ``order``, the first applied first."""
    out = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3))
    for i, axis in enumerate(order):
        out = _axis_rotation(axis, angles[..., i]) @ out
    return np.asarray(out)


class _Lines:
    """The lines of a text file, with errors that name the file and the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        self.text = text
        self.lines = text.splitlines()

    def error(self, number: int, what: str) -> DataError:
        """An error at line ``number``, counted from 1."""
        return DataError(f"{self.path}:{number}: {what}")

    def numbers(self, number: int, words: list[str], count: int, what: str) -> list[float]:
        """``count`` finite numbers out of ``words``."""
        if len(words) != count:
            raise self.error(number, f"{what} has {len(words)} values; it takes {count}")
        values = []
        for word in words:
            try:
                values.append(float(word))
            except ValueError:
                raise self.error(number, f"{what}: {word!r} is not a number") from None
            if not math.isfinite(values[-1]):
                raise self.error(number, f"{what}: {word!r} is not a finite number")
        return values


def read_asf(path: Path) -> AsfSkeleton:
    """Reads a skeleton file.

    Raises:
        zoo.errors.DataError: the file is unreadable or malformed; the line names file and line.
    """
    lines = _Lines(path)
    sections: dict[str, list[tuple[int, list[str]]]] = {}
    body: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines.lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            name = words[0][1:].lower()
            if name in sections:
                raise lines.error(number, f"section :{name} comes twice")
            body = sections[name] = []
            words = words[1:]
        if words:
            body.append((number, words))
    for name in ("units", "root", "bonedata", "hierarchy"):
        if name not in sections:
            raise lines.error(len(lines.lines), f"section :{name} is missing; not a whole ASF file")
    unit, radians = _units(lines, sections["units"])
    root, position = _root(lines, sections["root"], unit, radians)
    bones = {"root": root, **_bonedata(lines, sections["bonedata"], unit, radians)}
    return AsfSkeleton(_ordered(lines, sections["hierarchy"], bones), unit, radians, position, path)


_Section = list[tuple[int, list[str]]]


def _units(lines: _Lines, section: _Section) -> tuple[float, float]:
    unit, radians = 25.4, math.pi / 180
    for number, words in section:
        if words[0] == "length":
            length = lines.numbers(number, words[1:], 1, "length")[0]
            if length <= 0:
                raise lines.error(number, "length must be positive")
            unit = 25.4 / length
        elif words[0] == "angle":
            if words[1:] not in (["deg"], ["rad"]):
                raise lines.error(number, "angle must be deg or rad")
            radians = math.pi / 180 if words[1] == "deg" else 1.0
    return unit, radians


def _order(lines: _Lines, number: int, words: list[str]) -> str:
    order = words[0].lower() if len(words) == 1 else ""
    if sorted(order) != ["x", "y", "z"]:
        raise lines.error(number, f"axis order {' '.join(words)!r} is not one such as XYZ")
    return order


def _dof(lines: _Lines, number: int, words: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    dof = tuple(word.lower() for word in words)
    for name in dof:
        if name not in known or dof.count(name) > 1:
            raise lines.error(number, f"degree of freedom {name!r} is unknown or comes twice")
    return dof


def _root(
    lines: _Lines, section: _Section, unit: float, radians: float
) -> tuple[Bone, Array]:  # fmt: skip
    first = section[0][0] if section else len(lines.lines)
    fields = {words[0]: (number, words[1:]) for number, words in section}
    for name in ("order", "axis", "position", "orientation"):
        if name not in fields:
            raise lines.error(first, f":root has no {name}")
    dof = _dof(lines, *fields["order"], ("tx", "ty", "tz", "rx", "ry", "rz"))
    order = _order(lines, *fields["axis"])
    number, words = fields["position"]
    position = np.array(lines.numbers(number, words, 3, "position")) * unit
    number, words = fields["orientation"]
    angles = np.array(lines.numbers(number, words, 3, "orientation")) * radians
    return Bone(np.zeros(3), _rotation(order, angles), dof, ""), position


def _bonedata(
    lines: _Lines, section: _Section, unit: float, radians: float
) -> dict[str, Bone]:  # fmt: skip
    bones: dict[str, Bone] = {}
    start = 0
    fields: dict[str, tuple[int, list[str]]] = {}
    for number, words in section:
        if words[0] == "begin":
            if start:
                raise lines.error(number, f"the bone begun in line {start} has no end")
            start, fields = number, {}
        elif words[0] == "end":
            if not start:
                raise lines.error(number, "end without begin")
            name, bone = _bone(lines, start, fields, unit, radians)
            if name in bones or name == "root":
                raise lines.error(start, f"bone {name!r} comes twice")
            bones[name] = bone
            start = 0
        elif not start:
            raise lines.error(number, f"{words[0]!r} outside begin and end")
        elif not words[0].startswith("("):  # further limits
            fields[words[0]] = number, words[1:]
    if start:
        raise lines.error(start, "the bone begun here has no end; the file is cut short")
    return bones


def _bone(
    lines: _Lines, start: int, fields: dict[str, tuple[int, list[str]]], unit: float, radians: float
) -> tuple[str, Bone]:
    for key in ("name", "direction", "length", "axis"):
        if key not in fields:
            raise lines.error(start, f"the bone begun here has no {key}")
    number, words = fields["name"]
    if len(words) != 1:
        raise lines.error(number, "name takes one word")
    name = words[0]
    number, words = fields["direction"]
    direction = np.array(lines.numbers(number, words, 3, f"direction of {name}"))
    number, words = fields["length"]
    length = lines.numbers(number, words, 1, f"length of {name}")[0]
    number, words = fields["axis"]
    angles = np.array(lines.numbers(number, words[:3], 3, f"axis of {name}")) * radians
    axis = _rotation(_order(lines, number, words[3:]), angles)
    dof = _dof(lines, *fields.get("dof", (start, [])), ("rx", "ry", "rz"))
    return name, Bone(direction * length * unit, axis, dof, "")


def _ordered(lines: _Lines, section: _Section, bones: dict[str, Bone]) -> dict[str, Bone]:
    """The bones, parents first, with their parents out of the hierarchy."""
    ordered = {"root": bones["root"]}
    for number, words in section:
        if words in (["begin"], ["end"]):
            continue
        for name in words:
            if name not in bones:
                raise lines.error(number, f"unknown bone {name!r} in the hierarchy")
        parent, *children = words
        if parent not in ordered:
            raise lines.error(number, f"bone {parent!r} has children before it has a parent")
        for name in children:
            if name in ordered:
                raise lines.error(number, f"bone {name!r} has two parents")
            bone = bones[name]
            ordered[name] = Bone(bone.offset, bone.axis, bone.dof, parent)
    last = section[-1][0] if section else len(lines.lines)
    for name in bones:
        if name not in ordered:
            raise lines.error(last, f"bone {name!r} has no parent in the hierarchy")
    return ordered


# ---- the motion file ----------------------------------------------------------------------------


def read_amc(path: Path, skeleton: AsfSkeleton) -> dict[str, Array]:
    """Reads a motion file.

    Returns:
        For each bone with degrees of freedom (frames, number of them), as in the file.

    Raises:
        zoo.errors.DataError: the file is unreadable or malformed; the line names file and line.
    """
    lines = _Lines(path)
    start = next((i for i, line in enumerate(lines.lines) if line.split() == ["1"]), None)
    if start is None:
        first = next((i for i, s in enumerate(lines.lines) if s.strip()[:1].isdigit()), -1)
        raise lines.error(
            max(first + 1, 1), "no frame 1; not an AMC file, or one without its start"
        )
    words = [line.lower() for row in lines.lines[:start] for line in row.split()]
    if ":fully-specified" not in words:
        raise lines.error(1, ":FULLY-SPECIFIED is missing; other AMC files are not supported")
    if (":radians" in words) != (skeleton.radians == 1.0):
        raise lines.error(1, "the angles' unit is not that of the skeleton file")
    counts = {name: len(bone.dof) for name, bone in skeleton.bones.items() if bone.dof}
    values = _uniform_frames(lines.lines, start, counts)
    return values if values is not None else _any_frames(lines, start, counts)


def _uniform_frames(
    lines: list[str], start: int, counts: dict[str, int]
) -> dict[str, Array] | None:  # fmt: skip
    """The values if every frame lists the same bones in the same order, else ``None``.

    Reads column by column, some ten times faster than line by line; whatever is unusual is left to
    the careful reader, which knows the line.
    """
    tokens = " ".join(lines[start:]).split()
    stride = 1 + sum(1 + n for n in counts.values())
    frames = len(tokens) // stride
    rows = [line for line in lines[start:] if line.strip()]
    if len(tokens) != frames * stride or len(rows) != frames * (1 + len(counts)):
        return None
    if tokens[::stride] != [str(i) for i in range(1, frames + 1)]:
        return None
    out: dict[str, Array] = {}
    column = 1
    while column < stride:
        name = tokens[column]
        if name not in counts or name in out or set(tokens[column::stride]) != {name}:
            return None
        column += 1
        try:
            columns = [
                np.array(tokens[column + k :: stride], dtype=np.float64)
                for k in range(counts[name])
            ]
        except ValueError:
            return None
        out[name] = np.stack(columns, -1)
        if not np.isfinite(out[name]).all():
            return None
        column += counts[name]
    return out


def _any_frames(lines: _Lines, start: int, counts: dict[str, int]) -> dict[str, Array]:
    """Reads frames line by line; finds the line of whatever is wrong."""
    rows: dict[str, list[list[float]]] = {name: [] for name in counts}
    frame = 0

    def finish(number: int) -> None:
        for name, seen in rows.items():
            if len(seen) != frame:
                raise lines.error(number, f"frame {frame} has no {name}; the file is cut short?")

    number = start
    for number, line in enumerate(lines.lines[start:], start + 1):
        words = line.split()
        if not words:
            continue
        if len(words) == 1 and words[0] not in counts:
            if words[0] != str(frame + 1):
                raise lines.error(number, f"{words[0]!r} where frame {frame + 1} should begin")
            finish(number)
            frame += 1
            continue
        name = words[0]
        if name not in counts:
            raise lines.error(number, f"frame {frame}: the skeleton has no moving bone {name!r}")
        if len(rows[name]) == frame:
            raise lines.error(number, f"frame {frame}: bone {name!r} comes twice")
        what = f"frame {frame}: {name}"
        rows[name].append(lines.numbers(number, words[1:], counts[name], what))
    finish(number)
    return {name: np.array(seen) for name, seen in rows.items()}


# ---- forward kinematics -------------------------------------------------------------------------


def bone_ends(skeleton: AsfSkeleton, motion: dict[str, Array]) -> dict[str, Array]:
    """Where each bone ends.

    Args:
        skeleton: of the subject.
        motion: values of :func:`read_amc`.

    Returns:
        For each bone (frames, 3) mm in the file's frame (y up); for ``root`` its own place.
    """
    frames = len(motion["root"])
    turns: dict[str, Array] = {}
    ends: dict[str, Array] = {}
    for name, bone in skeleton.bones.items():
        values = motion.get(name, np.zeros((frames, 0)))
        turning = [i for i, d in enumerate(bone.dof) if d[0] == "r"]
        order = "".join(bone.dof[i][1] for i in turning)
        own = bone.axis @ _rotation(order, values[:, turning] * skeleton.radians) @ bone.axis.T
        if not bone.parent:
            # The rest orientation of the root turns the whole figure.
            turns[name] = own @ bone.axis
            ends[name] = np.tile(skeleton.position, (frames, 1))
            for i, d in enumerate(bone.dof):
                if d[0] == "t":
                    ends[name][:, "xyz".index(d[1])] += values[:, i] * skeleton.unit
        else:
            turns[name] = turns[bone.parent] @ own
            ends[name] = ends[bone.parent] + turns[name] @ bone.offset
    return ends
