"""``zoo data prepare human36m``: person crops out of videos, once, by several processes.

Reading a frame out of the middle of a video costs decoding everything before it, so training from
videos is slow. Here every video is decoded once from its start; each wanted frame is cropped
around the person and kept in a store (:mod:`datamodules.crops`). A recording is stored whole or
not at all; what was stored before is passed over, so an interrupted or killed run goes on.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.crops import (
    FOLDER,
    STORE,
    VERSION,
    file_name,
    is_stored,
    write_json,
    write_recording,
)
from datamodules.filedata import BODY_MARGIN, excluded
from datamodules.readers import Reader
from datamodules.recordings import Recording, VideoFile
from zoo.crop import crop_image
from zoo.errors import DataError, OutputError, UsageError
from zoo.geometry import square_box

__all__ = ["RATES", "Settings", "bytes_needed", "crop_rows", "prepare", "wanted_rows"]

RATES: dict[str, int] = {"10": 5, "5": 10, "2": 25, "64th": 64}
"""Frames a second, or ``64th``, to every how many-th frame of a 50 fps recording."""

_BYTES_A_PIXEL = 0.22
"""Of a JPEG crop at quality 90; videos compress better than this, noise worse."""
_PEOPLE_SIDE_PX = 450.0
"""Side of a crop in source px to expect before the poses are read."""


@dataclass(frozen=True)
class Settings:
    """How crops are made; kept in ``settings.json`` so that a resumed run makes the same ones.

    Attributes:
        step: every step-th frame of the source.
        size: largest side of a stored crop, px. A smaller person's crop is kept as it is.
        margin: side of the crop over that of the person's box; room for the method's own
            ``crop_scale``, jitter, and the movement within a clip.
        quality: of the JPEG.
    """

    step: int
    size: int = 400
    margin: float = 1.6
    quality: int = 90


# ---- one recording ------------------------------------------------------------------------------


def wanted_rows(recording: Recording, step: int) -> NDArray[np.int64]:
    """Rows whose frame of the source is a multiple of ``step``."""
    return np.flatnonzero(recording.numbers % step == 0).astype(np.int64)


def _pictures(recording: Recording, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The source pictures of increasing rows, one in memory; a video is decoded once."""
    source = recording.pictures
    if source is None:
        raise DataError(f"{recording.label}: no pictures")
    if not isinstance(source, VideoFile):
        for row in rows:
            yield source.read([int(row)])[0].pixels
        return
    from zoo.video import read_frames

    wanted = [source.numbers[row] if source.numbers else int(row) for row in rows]
    steps = set(np.diff(wanted).tolist())
    step = steps.pop() if len(steps) == 1 else 1
    after, needed = 0, set(wanted)
    frames = read_frames(source.path, start=wanted[0], stop=wanted[-1] + 1, step=step)
    for number, pixels in frames:
        if number in needed:
            after += 1
            yield pixels
    if after < len(wanted):
        raise DataError(f"{source.path} has no frame {wanted[after]}: it is shorter than its poses")


def crop_rows(
    recording: Recording, rows: NDArray[np.int64], settings: Settings
) -> Iterator[tuple[bytes, NDArray[np.float64]]]:
    """JPEG and (2, 3) map to the source picture of each row."""
    from PIL import Image

    joints = recording.pixels(rows)
    if joints is None:
        raise DataError(f"{recording.label}: no 2D joints and no camera to project the 3D with")
    points = torch.from_numpy(np.asarray(joints, np.float64))
    valid = points.isfinite().all(-1)
    scale = BODY_MARGIN * settings.margin
    middles, sides = square_box(points.nan_to_num(), valid, scale, min_side=16.0)
    for place, pixels in enumerate(_pictures(recording, rows)):
        height, width = pixels.shape[:2]
        if valid[place].any():
            middle, side = middles[place].numpy(), float(sides[place])
        else:
            middle, side = np.array([width - 1, height - 1]) / 2, float(max(width, height))
        size = min(settings.size, max(16, round(side)))
        low, high = middle - side / 2, middle + side / 2
        crop, affine = crop_image(pixels, (low[0], low[1], high[0], high[1]), size)
        array = (crop * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG", quality=settings.quality)
        yield buffer.getvalue(), affine.double().numpy()


def _store(out: str, recording: Recording, settings: Settings) -> tuple[str, int, str]:
    """Stores one recording; (label, bytes, fault)."""
    torch.set_num_threads(1)
    rows = wanted_rows(recording, settings.step)
    try:
        crops = crop_rows(recording, rows, settings)
        return recording.label, write_recording(Path(out), recording, rows, crops), ""
    except DataError as error:
        return recording.label, 0, str(error)


def _die_with_parent() -> None:
    """A worker of a killed run must not go on by itself."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- all of them --------------------------------------------------------------------------------


def bytes_needed(recordings: Sequence[Recording], settings: Settings) -> tuple[int, int]:
    """Crops to make, and about how many bytes they take."""
    frames = sum(len(wanted_rows(r, settings.step)) for r in recordings)
    side = min(float(settings.size), _PEOPLE_SIDE_PX * settings.margin)
    return frames, int(frames * (side * side * _BYTES_A_PIXEL + 400))


def _check_settings(out: Path, settings: Settings) -> None:
    path = out / "settings.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged; choose another --out") from error
        if before != asdict(settings):
            changed = [k for k, v in asdict(settings).items() if before.get(k) != v]
            said = ", ".join(f"{k} {before.get(k)}" for k in changed)
            raise UsageError(f"{out} holds crops made with {said}; choose another --out")
        return
    if out.is_dir() and any(not p.name.endswith(".tmp") for p in out.iterdir()):
        raise UsageError(f"{out} is not empty and no store; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(settings))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error


def _sweep(out: Path) -> None:
    """Removes what killed processes left half-written."""
    for path in [*out.glob(".*.tmp"), *(out / FOLDER).glob(".*.tmp")]:
        match = re.search(r"\.(\d+)\.tmp$", path.name)
        if match is None:
            continue
        try:
            os.kill(int(match.group(1)), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, OverflowError):
            continue


def prepare(
    reader: Reader,
    root: Path,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    skip_faulty: bool = False,
    quiet: bool = False,
) -> dict[str, int]:
    """Makes or completes a store.

    Args:
        reader: of the format of ``root``.
        root: the data set.
        out: folder of the store: new, empty, or an unfinished store of the same settings.
        settings: of the crops.
        workers: processes.
        skip_faulty: finishes the store without recordings that cannot be read.
        quiet: prints nothing.

    Returns:
        Counts: ``recordings`` and ``crops`` in the store, ``bytes``, ``made`` now.

    Raises:
        DataError: recordings cannot be read; all others are stored then, and a further call tries
            again.
        UsageError: ``out`` holds something else.
        OutputError: the disk is too small or cannot be written.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    console = Console(stderr=True, quiet=quiet, highlight=False)
    faults: list[str] = []
    recordings = reader.read(root, lambda error: faults.append(str(error)))
    chosen = []
    for recording in recordings:
        left = excluded(recording, reader.exclusions())
        if left is not None:
            console.print(f"left out: {left}")
        elif recording.pictures is None:
            faults.append(f"{recording.label}: no pictures")
        elif len(wanted_rows(recording, settings.step)):
            chosen.append(recording)
    if not chosen:
        raise DataError(faults[0] if faults else f"{root}: nothing to prepare")
    _check_settings(out, settings)
    _sweep(out)
    todo = [r for r in chosen if not is_stored(out, r)]
    frames, need = bytes_needed(todo, settings)
    free = shutil.disk_usage(out).free
    console.print(
        f"{len(todo)} of {len(chosen)} recordings to do: {frames} crops, about {need / 1e9:.2f} GB "
        f"({free / 1e9:.1f} GB free in {out})"
    )
    if need > free:
        raise OutputError(
            f"{out}: about {need / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            "lower --size or --fps, or choose another --out"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("crops, left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=quiet) as progress:
        task = progress.add_task("preparing", total=frames)
        for recording, fault in _run(out, todo, settings, workers):
            progress.advance(task, len(wanted_rows(recording, settings.step)))
            if fault:
                faults.append(fault)
                progress.console.print(f"FAULT {fault}")
    if faults and not skip_faulty:
        raise DataError(
            f"{len(faults)} recordings could not be prepared, the first: {faults[0]}; run again "
            "when they are repaired, or with --skip-faulty to leave them out"
        )
    stored = [r for r in chosen if is_stored(out, r)]
    size = sum((out / FOLDER / f"{file_name(r)}.bin").stat().st_size for r in stored)
    crops = sum(len(wanted_rows(r, settings.step)) for r in stored)
    write_json(
        out / STORE,
        {
            "version": VERSION, "dataset": reader.dataset, "made_from": reader.name,
            "recordings": len(stored), "crops": crops, "bytes": size, "left_out": faults,
            **asdict(settings),
        },
    )  # fmt: skip
    return {"recordings": len(stored), "crops": crops, "bytes": size, "made": len(todo)}


def _run(
    out: Path, todo: Sequence[Recording], settings: Settings, workers: int
) -> Iterator[tuple[Recording, str]]:
    """Stores recordings; yields each with its fault as it is done."""
    if workers == 1 or len(todo) < 2:
        for recording in todo:
            yield recording, _store(str(out), recording, settings)[2]
        return
    # A few jobs in flight only: poses travel to the workers and are large.
    queue = list(reversed(todo))
    running: dict[Future[tuple[str, int, str]], Recording] = {}
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_die_with_parent
    ) as pool:
        try:
            while queue or running:
                while queue and len(running) < 2 * workers:
                    recording = queue.pop()
                    running[pool.submit(_store, str(out), recording, settings)] = recording
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()[2]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
