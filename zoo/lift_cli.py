"""``zoo predict`` for keypoint files and for pictures with a detector."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from zoo.base import PoseModule
    from zoo.keypoints import Keypoints
    from zoo.pose import Pose

__all__ = [
    "add_flags",
    "find_images",
    "lift_options",
    "method_prior",
    "named_model",
    "run",
    "wanted",
]

_MARGIN = 0.15


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of keypoint files and detectors to those of ``zoo predict``."""
    group = parser.add_argument_group("keypoint files (COCO, OpenPose, AlphaPose) and detectors")
    group.add_argument("--detector", default="", metavar="NAME",
                       help="find the people of pictures: keypointrcnn")  # fmt: skip
    group.add_argument("--detector-score", type=float, default=0.7, metavar="S",
                       help="least confidence of a person found")  # fmt: skip
    group.add_argument("--skeleton", default=None, metavar="NAME",
                       help="joint layout of a file that does not tell it")  # fmt: skip
    group.add_argument("--images", default="", metavar="DIR",
                       help="where the pictures of a keypoint file lie, to draw on")  # fmt: skip
    group.add_argument("--height", type=float, default=None, metavar="MM",
                       help="the person's height; default: the prior's mean person")  # fmt: skip
    group.add_argument("--intrinsics", default="", metavar="FX,FY,CX,CY",
                       help="camera in px: adds perspective and the person's place")  # fmt: skip
    group.add_argument("--prior", default="", metavar="NAME",
                       help="pose prior or its file; default: cmu-mixture")  # fmt: skip


def wanted(args: argparse.Namespace) -> bool:
    """Whether the command is about a keypoint file or a detector."""
    from zoo.keypoints import is_keypoint_source

    return bool(args.detector) or any(is_keypoint_source(source) for source in args.sources)


def run(args: argparse.Namespace) -> int:
    """Lifts keypoint files, or the people whom a detector finds; returns the exit status.

    Raises:
        ZooError: wrong input; nothing is written then.
    """
    from zoo.keypoints import is_keypoint_source

    if args.box:
        raise UsageError("--box is for pictures without a detector")
    files = [Path(s) for s in args.sources if is_keypoint_source(s)]
    if files and args.detector:
        raise UsageError(f"{files[0]} holds keypoints already; drop --detector")
    if files and len(files) < len(args.sources):
        other = next(s for s in args.sources if Path(s) not in files)
        raise UsageError(
            f"{other} is no keypoint file: name pictures with --images DIR, or apart from the files"
        )
    options = lift_options(args)
    return _keypoint_files(args, files, options) if files else _detector(args, options)


def lift_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of ``zoo.lift``, without its prior."""
    options: dict[str, Any] = {"height_mm": args.height}
    if args.height is not None and not 300 <= args.height <= 2500:
        raise UsageError(f"--height {args.height:g} is no person's height in mm, like 1750")
    if args.intrinsics:
        try:
            fx, fy, cx, cy = (float(v) for v in args.intrinsics.split(","))
        except ValueError as error:
            text = f"--intrinsics takes FX,FY,CX,CY in px, not {args.intrinsics!r}"
            raise UsageError(text) from error
        options["intrinsics"] = [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]
    return options


def named_model(args: argparse.Namespace) -> PoseModule | None:
    """The model of ``--method``, on its device; None without one."""
    if not args.method:
        if args.ckpt_path or args.weights:
            raise UsageError(
                "--ckpt_path and --weights belong to a --method; --prior names a prior"
            )
        return None
    if args.prior:
        raise UsageError("--prior is for the lift without --method; a method has its own prior")
    from zoo.checkpoint import load
    from zoo.fit import check_gpus
    from zoo.registry import get_method, resolve_class, split_weight_name

    record = get_method(split_weight_name(args.method)[0])
    device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
    name = args.ckpt_path or args.weights or args.method
    model = load(name).to(device)
    if type(model) is not resolve_class(record):
        raise UsageError(f"{name} holds {model.zoo_name!r}; use that name")
    return model


def method_prior(model: PoseModule) -> Any:
    """The prior of a method that lifts: its last lift layer's, which makes its 3D poses."""
    from zoo.lifting import PPCALift

    layers = [module for module in model.modules() if isinstance(module, PPCALift)]
    return layers[-1].prior if layers else None


def _keypoint_files(args: argparse.Namespace, files: list[Path], options: dict[str, Any]) -> int:
    from dataclasses import replace

    from zoo.keypoints import read_keypoints
    from zoo.runs import check_writable

    people: list[Keypoints] = []
    for file in files:
        first = 1 + max((one.frame for one in people), default=-1)
        found = read_keypoints(file, args.skeleton)
        people += [replace(one, frame=one.frame + first) for one in found]
    images = find_images(people, Path(args.images)) if args.images else {}
    model = named_model(args)
    out = Path(args.out)
    check_writable(out)
    if model is None:
        poses = _lift(people, {**options, "prior": args.prior or "cmu-mixture"})
    elif model.input_spec.kind == "keypoints":
        from zoo.predict_keypoints import predict_keypoints

        if any(value is not None for value in options.values()):
            raise UsageError(f"--height and --intrinsics are for the lift, not for {args.method}")
        poses = predict_keypoints(model, people, batch_size=args.batch_size)
    elif (prior := method_prior(model)) is not None:
        from zoo.lift2d import make_lift

        poses = _lift(people, {**options, "prior": make_lift(prior)}, method=model.zoo_name)
    else:
        raise UsageError(
            f"{args.method} takes pictures, not keypoints; leave --method out to use the lift"
        )
    if not args.no_overlay:
        frames = list(dict.fromkeys((one.frame, one.image) for one in people))
        for name, picture, some in _drawings(frames, poses, people, images):
            print(_draw(picture, some, out, name))
    return _save(poses, out)


def _detector(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from dataclasses import replace

    from zoo.detect import detect, load_detector
    from zoo.fit import check_gpus
    from zoo.predict import expand_sources, predict, read_source
    from zoo.runs import check_writable

    sources = expand_sources(args.sources)
    device = "cuda" if check_gpus(args.gpus)["accelerator"] == "gpu" else "cpu"
    model = named_model(args)
    if model is not None and model.input_spec.kind == "image" and any(
        value is not None for value in options.values()
    ):  # fmt: skip
        raise UsageError(f"--height and --intrinsics are for the lift, not for {args.method}")
    detector = load_detector(args.detector, device=device)
    out = Path(args.out)
    check_writable(out)
    found: list[Keypoints] = []
    pictures = _progress([p for p in sources if isinstance(p, Path)], "detecting")
    for number, source in enumerate(pictures):
        found += [
            replace(one, frame=number)
            for one in detect(detector, read_source(source), args.detector_score)
        ]
    if model is None:
        poses = _lift(found, {**options, "prior": args.prior or "cmu-mixture"})
    elif model.input_spec.kind == "keypoints":
        from zoo.predict_keypoints import predict_keypoints

        poses = predict_keypoints(model, found, batch_size=args.batch_size)
    else:
        boxes = [[one.box for one in found if one.image == str(s)] for s in sources]
        poses = predict(
            model, sources, boxes=boxes, flip_test=args.flip_test, batch_size=args.batch_size
        )
    if not args.no_overlay:
        from zoo.draw import overlay_path, save_overlay

        for source in sources:
            some = [p for p in poses if p.source == str(source)]
            print(save_overlay(source, some, overlay_path(out, source, sources)))
    return _save(poses, out)


def _lift(people: Sequence[Keypoints], options: Mapping[str, Any], method: str = "") -> list[Pose]:
    """``lift_people``, its warning as a line on standard error."""
    from dataclasses import replace

    from zoo.lift2d import lift_people

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        poses = lift_people(people, **options)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"zoo: {warning.message}", file=sys.stderr)
    return [replace(pose, method=method) for pose in poses] if method else poses


def _save(poses: Sequence[Pose], out: Path) -> int:
    from zoo.pose import save_poses

    print(save_poses(poses, out / "poses.json"))
    return 0


def _progress(items: Sequence[Any], what: str) -> Any:
    if len(items) < 2:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, what, len(items), console=Console(stderr=True), transient=True)


# ---- pictures -----------------------------------------------------------------------------------


def find_images(people: Sequence[Keypoints], folder: Path) -> dict[str, Path]:
    """The file of each picture that the people name, by name, stem, or number."""
    from zoo.predict import IMAGE_SUFFIXES

    if not folder.is_dir():
        raise DataError(f"--images {folder} is not a folder")
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
    known: dict[str, Path] = {}
    for path in reversed(files):
        known[path.stem] = path
        if path.stem.isdigit():  # COCO's image 785 is 000000000785.jpg
            known[str(int(path.stem))] = path
    known.update({path.name: path for path in files})
    found = {}
    for name in dict.fromkeys(one.image for one in people):
        match = known.get(Path(name).name) or known.get(Path(name).stem)
        if match is not None:
            found[name] = match
    if people and not found:
        raise DataError(f"--images {folder} has no picture called {people[0].image!r} or alike")
    return found


def _drawings(
    frames: Sequence[tuple[int, str]], poses: Sequence[Pose], people: Sequence[Keypoints],
    images: Mapping[str, Path],
) -> Iterator[tuple[str, Any, list[Pose]]]:  # fmt: skip
    """Name, picture and poses of each frame."""
    used: dict[str, int] = {}
    for frame, name in _progress(frames, "drawing"):
        some = [p for p in poses if p.frame_index == frame]
        given = [one for one in people if one.frame == frame]
        stem = Path(name).stem or f"frame{frame}"
        used[stem] = used.get(stem, 0) + 1
        unique = stem if used[stem] == 1 else f"{stem}-{used[stem]}"
        if name in images:
            yield unique, images[name], some
        else:
            yield unique, *_canvas(some, given)


def _canvas(
    poses: Sequence[Pose], people: Sequence[Keypoints]
) -> tuple[npt.NDArray[np.uint8], list[Pose]]:
    """A blank picture around the people, and their poses moved into it."""
    from dataclasses import replace

    import numpy as np

    points = [one.joints_2d for one in people]
    points += [p.joints_2d for p in poses if p.joints_2d is not None]
    every = np.concatenate(points) if points else np.zeros((0, 2))
    every = every[np.isfinite(every).all(1)]
    if not len(every):
        return np.full((240, 320, 3), 120, np.uint8), list(poses)
    low, high = every.min(0), every.max(0)
    margin = _MARGIN * max(float((high - low).max()), 1.0)
    low, size = low - margin, high - low + 2 * margin
    factor = min(1.0, 1000.0 / float(size.max()))
    width, height = (int(v) for v in np.maximum(size * factor, 16))
    moved = [
        replace(p, joints_2d=None if p.joints_2d is None else (p.joints_2d - low) * factor)
        for p in poses
    ]
    return np.full((height, width, 3), 120, np.uint8), moved


def _draw(picture: Any, poses: Sequence[Pose], out: Path, name: str) -> Path:
    from zoo.draw import save_overlay

    return save_overlay(picture, poses, out / f"{name}.overlay.png")
