"""What a folder of data holds, what is wrong with it, and what it lacks; for ``zoo data check``.

The geometry is proved on the data: wherever a recording has 3D, 2D and a camera, the 3D seen by the
camera must land on the 2D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.filedata import excluded
from datamodules.readers import Reader, find_reader, get_reader
from datamodules.recordings import Recording, VideoFile
from zoo.errors import DataError
from zoo.skeleton import get_skeleton, torso_bones

__all__ = ["Report", "Reprojection", "Sample", "check", "samples"]

WORST = 5
"""Recordings listed with the largest reprojection error."""
_FRAMES_A_RECORDING = 100
_TORSO_MM = (15.0, 700.0)
"""Median length of a bone of the trunk in people of any size; outside, the unit is wrong."""


@dataclass(frozen=True)
class Reprojection:
    """How far a recording's 3D, through its camera, is from its 2D.

    Attributes:
        label: of the recording.
        mean_px: over joints and up to 100 evenly spaced frames.
        max_px: the largest of them.
    """

    label: str
    mean_px: float
    max_px: float


@dataclass
class Report:
    """Everything that ``zoo data check`` prints; ``as_dict`` is its JSON."""

    root: str
    format: str
    what: str
    subjects: dict[str, int] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    cameras: dict[str, tuple[int, int]] = field(default_factory=dict)
    recordings: int = 0
    frames: int = 0
    poses_3d: int = 0
    poses_2d: int = 0
    pictures: str = "none"
    skeletons: tuple[str, ...] = ()
    reprojection: list[Reprojection] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def worst(self) -> list[Reprojection]:
        """The recordings with the largest mean reprojection error, the worst first."""
        return sorted(self.reprojection, key=lambda r: -r.mean_px)[:WORST]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; px and counts."""
        errors = [r.mean_px for r in self.reprojection]
        return {
            "root": self.root,
            "format": self.format,
            "what": self.what,
            "recordings": self.recordings,
            "frames": self.frames,
            "poses_3d": self.poses_3d,
            "poses_2d": self.poses_2d,
            "subjects": self.subjects,
            "actions": list(self.actions),
            "cameras": {k: list(v) for k, v in self.cameras.items()},
            "skeletons": list(self.skeletons),
            "pictures": self.pictures,
            "reprojection_px": None
            if not errors
            else {
                "recordings": len(errors),
                "mean": float(np.mean(errors)),
                "median": float(np.median(errors)),
                "max": max(r.max_px for r in self.reprojection),
                "worst": [
                    {"recording": r.label, "mean": r.mean_px, "max": r.max_px} for r in self.worst
                ],
            },
            "left_out": self.excluded,
            "noted": self.noted,
            "faults": self.faults,
            "missing": self.missing,
        }

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        people = ", ".join(f"{name or '(no name)'} {n}" for name, n in self.subjects.items())
        sizes = ", ".join(
            name + (f" {w} x {h}" if w else "") for name, (w, h) in self.cameras.items() if name
        )
        named = [a for a in self.actions if a]
        text = [
            f"{self.root}: {self.format}, {self.what}",
            f"recordings    {self.recordings} of {len(self.subjects)} subjects ({people})",
            f"actions       {len(named)}: {', '.join(named)}"
            if named
            else "actions       not named",
            f"cameras       {sizes or 'not named'}",
            f"frames        {self.frames}: {self.poses_3d} with 3D, {self.poses_2d} with 2D "
            f"({', '.join(self.skeletons)})",
            f"pictures      {self.pictures}",
        ]
        if self.reprojection:
            errors = [r.mean_px for r in self.reprojection]
            text.append(
                f"reprojection  mean {np.mean(errors):.3f} px, median {np.median(errors):.3f} px "
                f"of {len(errors)} recordings: 3D through the stored camera against the stored 2D"
            )
            text += [
                f"{'  worst' if i == 0 else '':14}{r.mean_px:.3f} px (up to {r.max_px:.2f} px) "
                f"{r.label}"
                for i, r in enumerate(self.worst)
            ]
        else:
            text.append("reprojection  nothing to compare: no recording has 3D, 2D and a camera")
        text += [f"left out      {name}: {n} recordings here" for name, n in self.excluded.items()]
        text += [f"noted         {name}: {n} recordings here" for name, n in self.noted.items()]
        text += [f"missing       {line}" for line in self.missing]
        text += [f"FAULT         {line}" for line in self.faults]
        return text


def check(root: Path, format: str = "") -> tuple[Report, list[Recording]]:
    """Reads a folder as far as it can be read.

    Args:
        root: the folder.
        format: name of the reader; empty finds out.

    Returns:
        The report, and the recordings that could be read.

    Raises:
        DataError: no such folder, or of no known format.
    """
    if format:
        reader: Reader = get_reader(format)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
    else:
        reader = find_reader(root)
    faults: list[DataError] = []
    recordings = reader.read(root, faults.append)
    report = Report(str(root), reader.name, reader.what)
    report.faults = [str(fault) for fault in faults]
    report.missing = reader.missing(root, recordings)
    report.recordings = len(recordings)
    for recording in recordings:
        name = recording.subject
        report.subjects[name] = report.subjects.get(name, 0) + 1
        camera = recording.camera
        report.cameras.setdefault(
            "" if camera is None else camera.name, (0, 0) if camera is None else camera.size
        )
        report.frames += len(recording)
        report.poses_3d += _annotated(recording.joints_3d)
        report.poses_2d += _annotated(recording.joints_2d)
    report.cameras = dict(sorted(report.cameras.items()))
    report.actions = tuple(dict.fromkeys(r.action for r in recordings))
    report.skeletons = tuple(sorted({r.skeleton for r in recordings}))
    for exclusions, counts in (
        (reader.exclusions(), report.excluded),
        (tuple(getattr(reader.load(), "NOTED", ())), report.noted),
    ):
        for exclusion in exclusions:
            counts[str(exclusion)] = sum(excluded(r, [exclusion]) is not None for r in recordings)
    _pictures(recordings, report)
    _geometry(recordings, report)
    return report, recordings


def _annotated(joints: NDArray[Any] | None) -> int:
    return 0 if joints is None else int(np.isfinite(joints).all(-1).any(-1).sum())


def _pictures(recordings: Sequence[Recording], report: Report) -> None:
    """Whether the files are there; headers and lengths of videos."""
    from zoo.video import video_info

    there = absent = 0
    for recording in recordings:
        if recording.pictures is None or recording.pictures.missing():
            absent += 1
            continue
        there += 1
        if isinstance(recording.pictures, VideoFile):
            video = recording.pictures
            try:
                info = video_info(video.path)
            except DataError as error:
                report.faults.append(str(error))
                continue
            last = int(max(video.numbers)) if video.numbers else len(recording) - 1
            if info.frames and info.frames <= last:
                report.faults.append(
                    f"{video.path}: {info.frames} frames, but the poses need {last + 1}"
                )
            size = (0, 0) if recording.camera is None else recording.camera.size
            if size != (0, 0) and max(abs(info.width - size[0]), abs(info.height - size[1])) > 2:
                report.faults.append(
                    f"{video.path}: {info.width} x {info.height} px, but the camera has "
                    f"{size[0]} x {size[1]}"
                )
    if there:
        report.pictures = f"of {there} recordings" + (f", none of {absent}" if absent else "")


def _geometry(recordings: Sequence[Recording], report: Report) -> None:
    """Reprojection and bone lengths."""
    for recording in recordings:
        rows = np.unique(
            np.linspace(0, len(recording) - 1, _FRAMES_A_RECORDING).round().astype(np.int64)
        )
        if recording.joints_3d is not None:
            wrong = _wrong_unit(recording, rows)
            if wrong:
                report.faults.append(wrong)
        if recording.joints_2d is None:
            continue
        seen = recording.reprojected(rows)
        if seen is None:
            continue
        pixels = np.asarray(recording.joints_2d[rows], np.float64)
        distance = np.linalg.norm(seen - pixels, axis=-1)
        distance = distance[np.isfinite(distance)]
        if len(distance):
            report.reprojection.append(
                Reprojection(recording.label, float(distance.mean()), float(distance.max()))
            )


def _wrong_unit(recording: Recording, rows: NDArray[np.int64]) -> str:
    joints = np.asarray(recording.joints_3d)[rows]
    for child, parent in torso_bones(get_skeleton(recording.skeleton)):
        length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
        length = length[np.isfinite(length)]
        if len(length) and not _TORSO_MM[0] <= np.median(length) <= _TORSO_MM[1]:
            names = get_skeleton(recording.skeleton).joints
            return (
                f"{recording.where or recording.label}: {names[parent]} and {names[child]} are "
                f"{np.median(length):.3g} mm apart; is the unit another one?"
            )
    return ""


# ---- for the sheet ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One annotated frame to look at; px of ``picture``.

    Attributes:
        label: what it is.
        picture: (H, W, 3) uint8 RGB, or ``None``.
        size: width and height of the picture, also where there is none.
        annotated: (J, 2) 2D joints, NaN where not annotated.
        projected: (J, 2) the 3D through the camera, NaN where there is none.
        skeleton: name.
    """

    label: str
    picture: NDArray[np.uint8] | None
    size: tuple[int, int]
    annotated: NDArray[np.float64]
    projected: NDArray[np.float64]
    skeleton: str


def samples(recordings: Sequence[Recording], count: int = 12) -> list[Sample]:
    """Frames spread over recordings, subjects and cameras; a picture that fails is left out."""
    found = []
    chosen = np.unique(np.linspace(0, len(recordings) - 1, count).round().astype(int))
    for place, index in enumerate(chosen if len(recordings) else ()):
        recording = recordings[index]
        row = (len(recording) - 1) * (place + 1) // (len(chosen) + 1)
        shape = (len(get_skeleton(recording.skeleton)), 2)
        none = np.full(shape, np.nan)
        flat = none if recording.joints_2d is None else recording.pixels([row])
        seen = recording.reprojected([row])
        picture, note, to_source = None, "", None
        if recording.pictures is not None:
            try:
                decoded = recording.pictures.read([row])[0]
                picture, to_source = decoded.pixels, decoded.to_source
            except DataError:
                note = " (no picture)"
        points = [none if p is None else np.asarray(p, np.float64).reshape(shape)
                  for p in (flat, seen)]  # fmt: skip
        if to_source is not None:
            inverse = np.linalg.inv(np.concatenate([to_source, [[0, 0, 1]]]))
            points = [p @ inverse[:2, :2].T + inverse[:2, 2] for p in points]
        size = recording.camera.size if recording.camera is not None else (0, 0)
        if picture is not None:
            size = (picture.shape[1], picture.shape[0])
        if size == (0, 0):
            both = np.concatenate(points)
            high = np.nanmax(both, 0) if np.isfinite(both).any() else np.array([1, 1])
            size = (int(high[0]) + 50, int(high[1]) + 50)
        label = f"{recording.label}, frame {recording.numbers[row]}{note}"
        found.append(Sample(label, picture, size, points[0], points[1], recording.skeleton))
    return found
