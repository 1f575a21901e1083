"""Throughput of file data: crops out of a video, out of image files, and out of a prepared store.

    python benchmarks/data.py [--size 128] [--workers 0 1 2]

Synthetic people in Human3.6M's official files (1000 px videos). Numbers are samples a second of one
run on one machine; what counts are their ratios.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.filedata import RecordingDataset, number_recordings
from datamodules.human36m import ACTIONS
from datamodules.prepare import Settings, prepare
from datamodules.readers import get_reader, read_recordings
from datamodules.recordings import ImageFiles, Recording
from datamodules.synth import human36m_cdf
from datamodules.synth.people import make_people
from zoo.base import InputSpec


def rate(
    recordings: list[Recording], spec: InputSpec, workers: int, count: int
) -> tuple[float, float]:
    """Samples a second, and ms of processor time a sample of this process; in random order."""
    ids = number_recordings(recordings, ACTIONS)
    dataset = RecordingDataset(recordings, ids, spec, step=5, train=True)
    order = np.random.default_rng(0).integers(0, len(dataset), count + 16 * max(workers, 1))
    loader = DataLoader(
        dataset, batch_size=16, sampler=order.tolist(), num_workers=workers, collate_fn=_as_it_is
    )
    batches = iter(loader)
    for _ in range(max(workers, 1)):
        next(batches)
    start, work, seen = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        seen += len(batch["frame"])
    return (
        seen / (time.perf_counter() - start),
        1000 * (time.process_time() - work) / seen,
    )


def _as_it_is(batch: object) -> object:
    return batch


def as_images(recordings: list[Recording], folder: Path) -> list[Recording]:
    """The same recordings with every fifth frame as a JPEG file."""
    found = []
    for recording in recordings:
        rows = np.flatnonzero(recording.numbers % 5 == 0)
        assert recording.pictures is not None
        assert recording.joints_2d is not None
        assert recording.joints_3d is not None
        names = []
        for row, picture in zip(rows, recording.pictures.read(rows.tolist()), strict=True):
            names.append(f"{recording.label}_{row}.jpg".replace(" ", "_"))
            Image.fromarray(picture.pixels).save(folder / names[-1], quality=92)
        found.append(
            replace(
                recording,
                pictures=ImageFiles(str(folder), tuple(names)),
                frames=rows,
                joints_2d=recording.joints_2d[rows],
                joints_3d=recording.joints_3d[rows],
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the method's crop, px")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--frames", type=int, default=100, help="of each video")
    parser.add_argument("--count", type=int, default=256, help="samples to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        people = make_people(("S1",), ("Walking",), (1,), args.frames)
        human36m_cdf.write(root / "h36m", people)
        videos = read_recordings(root / "h36m")
        start, work = time.perf_counter(), time.process_time()
        counts = prepare(get_reader("human36m-cdf"), root / "h36m", root / "crops",
                         Settings(5), quiet=True)  # fmt: skip
        took, work = time.perf_counter() - start, time.process_time() - work
        print(f"prepare, 1 process: {counts['crops'] / took:.1f} crops/s "
              f"({counts['crops'] * 5 / took:.0f} video frames/s), "
              f"{1000 * work / counts['crops']:.0f} ms of processor and "
              f"{counts['bytes'] / counts['crops'] / 1000:.1f} kB a crop", flush=True)  # fmt: skip
        (root / "images").mkdir()
        sources = {
            "store": read_recordings(root / "crops"),
            "image files": as_images(videos, root / "images"),
            "video": videos,
        }
        for kind, frames in (("image", 1), ("image", 5), ("keypoints", 1)):
            spec = InputSpec(kind, args.size, frames)  # type: ignore[arg-type]
            for workers in args.workers:
                for source, recordings in sources.items():
                    if source == "video" and (workers or frames > 1):
                        continue
                    if kind == "keypoints" and source != "store":
                        continue
                    count = 32 if source == "video" else args.count
                    speed, work = rate(recordings, spec, workers, count)
                    cost = "" if workers else f", {work:.2f} ms of processor a sample"
                    print(f"{kind:9} T={frames} {source:12} {workers} workers: "
                          f"{speed:8.1f} samples/s{cost}", flush=True)  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
