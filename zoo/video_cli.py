"""``zoo predict`` for videos, folders of frames and webcams."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import DataError, UsageError

if TYPE_CHECKING:
    from zoo.base import PoseModule
    from zoo.predict_video import FramePoses, VideoSource
    from zoo.seen import Finder, People

__all__ = ["add_flags", "run", "wanted"]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of videos to those of ``zoo predict``."""
    group = parser.add_argument_group("videos (MP4, MOV, AVI, ...), folders of frames, webcams")
    group.add_argument("--webcam", type=int, default=None, metavar="N",
                       help="film with webcam N (0 is the first); Ctrl-C ends it")  # fmt: skip
    group.add_argument("--fps", type=float, default=None, metavar="F",
                       help="frames a second; makes a folder of pictures a video")  # fmt: skip
    group.add_argument("--seconds", type=float, default=None, metavar="S",
                       help="stop after so many seconds of the video")  # fmt: skip
    group.add_argument("--people", default="", metavar="FILE",
                       help="who is where in each frame: keypoint file, or COCO boxes")  # fmt: skip
    group.add_argument("--follow", action="store_true",
                       help="boxes follow the 2D estimate of the frame before")  # fmt: skip
    group.add_argument("--detect-every", type=int, default=1, metavar="N",
                       help="let the detector look at each N-th frame only")  # fmt: skip
    group.add_argument("--smooth", default="", metavar="NAME",
                       help="smooth the 3D over time: one-euro")  # fmt: skip
    group.add_argument("--smooth-cutoff", type=float, default=None, metavar="HZ",
                       help="of one-euro, at rest; lower is calmer (1)")  # fmt: skip
    group.add_argument("--smooth-beta", type=float, default=None, metavar="B",
                       help="of one-euro, Hz per mm/s; higher lags less (0.01)")  # fmt: skip


def wanted(args: argparse.Namespace) -> bool:
    """Whether the command is about a video; says so if it is about a video and something else.

    Raises:
        UsageError: the sources are of several kinds.
    """
    from zoo.keypoints import is_keypoint_source
    from zoo.video import check_fps, is_video

    if args.fps is not None:
        check_fps(args.fps, "--fps")
    if args.webcam is not None:
        if args.sources:
            raise UsageError(f"--webcam films; {args.sources[0]} cannot be predicted with it")
        return True
    if not args.sources:
        raise UsageError("zoo predict needs pictures, videos, folders or keypoint files")
    keypoints = [s for s in args.sources if is_keypoint_source(s)]
    if keypoints and args.fps is not None and len(keypoints) == len(args.sources):
        return True
    if keypoints:
        if args.smooth:
            raise UsageError("--smooth needs the rate of the frames: give --fps F")
        return False
    videos = [s for s in args.sources if is_video(s) and not Path(s).is_dir()]
    folders = [s for s in args.sources if Path(s).is_dir()]
    if not videos and args.fps is None:
        for flag, value in (
            ("--smooth", args.smooth), ("--people", args.people), ("--follow", args.follow),
            ("--seconds", args.seconds is not None), ("--detect-every", args.detect_every != 1),
        ):  # fmt: skip
            if value:
                hint = "; with --fps F the folder is one" if folders else ""
                raise UsageError(f"{flag} is for videos, and {args.sources[0]} is none{hint}")
        return False
    frames = folders if args.fps is not None else []
    other = [s for s in args.sources if s not in videos and s not in frames]
    if other:
        kind = "picture" if Path(other[0]).exists() else "video"
        raise UsageError(
            f"{other[0]} is a {kind} among videos; predict it apart from them"
            if kind == "picture"
            else f"no such file or folder: {other[0]}"
        )
    return True


def smoothing(args: argparse.Namespace) -> dict[str, float]:
    """``min_cutoff`` and ``beta`` as given.

    Raises:
        UsageError: they are given without ``--smooth``, or it has another name.
    """
    from zoo.errors import suggest
    from zoo.smooth import SMOOTHERS, OneEuro

    given = {
        name: value
        for name, value in (("min_cutoff", args.smooth_cutoff), ("beta", args.smooth_beta))
        if value is not None
    }
    if given and not args.smooth:
        raise UsageError("--smooth-cutoff and --smooth-beta belong to --smooth one-euro")
    if args.smooth and args.smooth not in SMOOTHERS:
        raise UsageError(suggest(args.smooth, SMOOTHERS, "smoothing"))
    OneEuro(**given)
    return given


def run(args: argparse.Namespace) -> int:
    """Predicts videos one after the other; returns the exit status.

    Raises:
        ZooError: wrong input; nothing is written then.
    """
    from zoo.draw import overlay_path
    from zoo.runs import check_writable

    options = smoothing(args)
    _check(args)
    sources: list[Any] = [args.webcam] if args.webcam is not None else args.sources
    videos = [_open(args, source) for source in sources]  # all are looked at before work begins
    estimate = _estimator(args, any(people is not None for _, people in videos))
    find = _finder(args)
    out = Path(args.out)
    check_writable(out)
    names = [video.name for video, _ in videos]
    for video, people in videos:
        stem = overlay_path(out, video.name, names).name.removesuffix(".overlay.png")
        try:
            _predict(args, video, find(video, people), estimate(video), options, out / stem)
        except KeyboardInterrupt:
            print(f"zoo: interrupted; nothing is written of {video.name}", file=sys.stderr)
            return 130
    return 0


def _check(args: argparse.Namespace) -> None:
    from zoo.keypoints import is_keypoint_source

    if args.box and (args.detector or args.people):
        raise UsageError("--box is for videos without a detector and without --people")
    if args.detector and args.people:
        raise UsageError("--people says who is where already; drop --detector")
    if args.detect_every < 1:
        raise UsageError(f"--detect-every {args.detect_every}: expected at least 1")
    if args.detect_every > 1 and not args.detector:
        raise UsageError("--detect-every belongs to --detector keypointrcnn")
    if args.seconds is not None and not args.seconds > 0:
        raise UsageError(f"--seconds {args.seconds:g}: expected more than 0")
    files = args.webcam is None and all(is_keypoint_source(s) for s in args.sources)
    if files and (args.box or args.people or args.detector or args.follow):
        raise UsageError(
            f"{args.sources[0]} says who is where; drop --box, --people, --detector and --follow"
        )
    if args.images and not files:
        raise UsageError("--images is for keypoint files; a video has its own frames")
    if not args.method and not (args.detector or args.people or files):
        raise UsageError(
            "zoo predict: videos need --method NAME (see `zoo list`), or to be lifted --detector "
            "keypointrcnn or --people KEYPOINTS.json"
        )


def _open(args: argparse.Namespace, source: Any) -> tuple[VideoSource, People | None]:
    """The frames, and the people of each if the source is a keypoint file."""
    from zoo.keypoints import is_keypoint_source
    from zoo.predict import Picture
    from zoo.predict_video import VideoSource, open_video
    from zoo.video import camera_frames

    if args.webcam is None and is_keypoint_source(source):
        return _keypoint_video(args, Path(source))
    if args.webcam is None:
        return open_video(source, args.fps), None
    info, images = camera_frames(args.webcam)
    name, fps = f"webcam{args.webcam}", args.fps or info.fps

    def filmed() -> Iterator[Picture]:
        """A slow method sees fewer frames than the camera has: their numbers tell the time."""
        start, last = time.monotonic(), -1
        for image in images:
            last = max(last + 1, int((time.monotonic() - start) * fps))
            yield Picture(image, name, last)

    return VideoSource(filmed(), fps, 0, name), None


def _keypoint_video(args: argparse.Namespace, path: Path) -> tuple[VideoSource, People]:
    """The frames of a keypoint file: its pictures, or grey ones."""
    import numpy as np

    from zoo.keypoints import Keypoints
    from zoo.lift_cli import find_images
    from zoo.predict import Picture, load_image
    from zoo.predict_video import VideoSource
    from zoo.seen import read_people

    people = read_people(path, args.skeleton)
    every = [one for some in people.values() for one in some]
    known = [one for one in every if isinstance(one, Keypoints)]
    if not known:
        raise DataError(f"{path} holds no keypoints; boxes go with their video: --people {path}")
    files = find_images(known, Path(args.images)) if args.images else {}
    points = np.concatenate([one.joints_2d for one in known])
    points = points[np.isfinite(points).all(1)]
    low = np.array([64, 64])
    size = np.clip(1.05 * points.max(0), low, 8192) if len(points) else low
    shape = (int(size[1]), int(size[0]), 3)
    if files:
        shape = load_image(next(iter(files.values()))).shape
    names = {
        frame: one.image for frame, some in people.items() for one in some
        if isinstance(one, Keypoints)
    }  # fmt: skip
    count = 1 + max(people)

    def frames() -> Iterator[Picture]:
        for number in range(count):
            file = files.get(names.get(number, ""))
            image = np.full(shape, 120, np.uint8) if file is None else load_image(file)
            yield Picture(image, str(path), number)

    return VideoSource(frames(), args.fps, count, str(path)), people


def _finder(args: argparse.Namespace) -> Any:
    """A function that makes the finder of a video: each starts anew."""
    from zoo.cli import parse_boxes
    from zoo.fit import check_gpus
    from zoo.predict import check_box
    from zoo.predict_video import max_gap_frames
    from zoo.seen import Detected, Everywhere, Following, Listed, read_people

    boxes = parse_boxes(args.box)
    given = None if boxes is None else [check_box(box, "--box") for box in boxes]
    people = read_people(args.people, args.skeleton) if args.people else None
    detector = None
    if args.detector:
        from zoo.detect import load_detector

        device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
        detector = load_detector(args.detector, device=device)

    def make(video: VideoSource, own: People | None) -> Finder:
        gap = max_gap_frames(video.fps)
        finder: Finder
        listed = people if own is None else own
        if listed is not None:
            finder = Listed(listed, gap)
        elif detector is not None:
            every = 1 if args.follow else args.detect_every
            finder = Detected(detector, args.detector_score, max(gap, args.detect_every), every)
        else:
            finder = Everywhere(given)
        if args.follow:
            every = args.detect_every if args.detector and args.detect_every > 1 else 0
            finder = Following(finder, every)
        return finder

    return make


def _estimator(args: argparse.Namespace, files: bool) -> Any:
    """A function that makes the estimator of a video."""
    from zoo.lift2d import make_lift
    from zoo.lift_cli import lift_options, method_prior, named_model
    from zoo.predict_video import CHUNK, LiftEstimator, ModelEstimator

    options = lift_options(args)
    model: PoseModule | None = named_model(args)
    chunk = 1 if args.follow or args.webcam is not None else min(args.batch_size, CHUNK)
    if model is not None and files and model.input_spec.kind == "image":
        prior = method_prior(model)
        if prior is None:
            raise UsageError(
                f"{args.method} takes pictures, not keypoints; leave --method out to use the lift"
            )
        options["prior"] = make_lift(prior)
        return lambda video: LiftEstimator(options, chunk, model.zoo_name)
    if model is not None and any(value is not None for value in options.values()):
        raise UsageError(f"--height and --intrinsics are for the lift, not for {args.method}")
    if model is None or model.input_spec.kind == "keypoints":
        what = args.method or "the lift"
        if not (args.detector or args.people or files):
            raise UsageError(
                f"{what} takes 2D joints: give --detector keypointrcnn or --people KEYPOINTS.json"
            )
        if args.follow or args.detect_every > 1:
            flag = "--follow" if args.follow else "--detect-every"
            raise UsageError(f"{flag} is for methods that take pictures; {what} takes 2D joints")
    if model is None:
        options["prior"] = args.prior or "cmu-mixture"
        return lambda video: LiftEstimator(options, chunk)

    def make(video: VideoSource) -> ModelEstimator:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = ModelEstimator(model, video.fps, args.flip_test, chunk, args.correct)
        for warning in caught:
            print(f"zoo: {warning.message}", file=sys.stderr)
        return estimator

    return make


def _predict(
    args: argparse.Namespace, video: VideoSource, finder: Finder, estimator: Any,
    options: dict[str, float], stem: Path,
) -> None:  # fmt: skip
    """One video: its files are whole, or not there."""
    from zoo.draw_video import draw_frame
    from zoo.predict_video import make_smoother, run_frames
    from zoo.video import VideoWriter
    from zoo.video_files import JsonWriter, NpzWriter, VideoHeader

    model: PoseModule | None = getattr(estimator, "model", None)
    text = ", ".join((args.smooth, *(f"{k} {v:g}" for k, v in options.items())))
    header = VideoHeader(
        source=video.name,
        fps=video.fps,
        skeleton="h36m_17" if model is None else model.skeleton.name,
        method="" if model is None else model.zoo_name,
        smoothing=text if args.smooth else "",
    )
    frames = run_frames(
        video, finder, estimator,
        smooth=make_smoother(args.smooth, video.fps, **options),
        keep_images=not args.no_overlay,
    )  # fmt: skip
    paths = [stem.with_name(f"{stem.name}.poses.{kind}") for kind in ("json", "npz")]
    movie_path = stem.with_name(f"{stem.name}.overlay.mp4")
    nobody = 0
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(JsonWriter(paths[0], header)),
            stack.enter_context(NpzWriter(paths[1], header)),
        ]
        movie = None
        if not args.no_overlay:
            movie = stack.enter_context(VideoWriter(movie_path, video.fps))
        shown = 0
        total = video.frames
        if args.seconds is not None:
            total = min(total or 2**62, math.ceil(args.seconds * video.fps))
        for frame in _until(args, with_progress(frames, replace(video, frames=total))):
            nobody += not frame.poses
            for file in files:
                file.write(frame)
            if movie is not None:
                assert frame.image is not None
                note = f"{frame.frame}  {frame.time:.2f} s  {header.method}".rstrip()
                drawn = draw_frame(frame.image, frame.poses, note)
                while shown <= frame.frame:  # a webcam's frames may be further apart
                    movie.write(drawn)
                    shown += 1
    if nobody:
        print(f"zoo: {nobody} frames have no person", file=sys.stderr)
    left = getattr(estimator, "left", 0)
    if left:
        print(f"zoo: {left} times a person had too few joints to lift", file=sys.stderr)
    for path in paths if args.no_overlay else [*paths, movie_path]:
        print(path)
    corrections = getattr(estimator, "corrections", [])
    if corrections:
        from zoo.correction import save_corrections

        print(save_corrections(corrections, stem.with_name(f"{stem.name}.corrections.csv")))


def _until(args: argparse.Namespace, frames: Iterator[FramePoses]) -> Iterator[FramePoses]:
    """The frames up to ``--seconds``; of a webcam up to the first interruption, too."""
    stop: list[int] = []

    def ask(number: int, frame: Any) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one is meant so

    before = signal.signal(signal.SIGINT, ask) if args.webcam is not None else None
    try:
        for frame in frames:
            if args.seconds is not None and frame.time >= args.seconds:
                return
            yield frame
            if stop:
                return
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def with_progress(
    frames: Iterator[FramePoses], video: VideoSource, console: Any = None
) -> Iterator[FramePoses]:
    """A bar with the time left, on stderr or another console."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    bar = Progress(*columns, console=console or Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(Path(video.name).name or "video", total=video.frames or None)
        for frame in frames:
            yield frame
            bar.advance(task)
