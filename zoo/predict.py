"""From pictures to :class:`~zoo.pose.Pose` records: reading, cropping, batching, the flip test.

Boxes and 2D results are px of the upright source picture (its EXIF orientation applied), x right,
y down, pixel centres at integers: a picture of W px covers x from -0.5 to W - 0.5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from zoo.batch import PoseBatch, Prediction
from zoo.correction import Correction, CorrectionReport, FrameCorrection, correcting
from zoo.crop import crop_image
from zoo.errors import DataError, UsageError
from zoo.geometry import (
    affine_apply,
    flip_affine,
    flip_image,
    flip_intrinsics,
    flip_joints_2d,
    flip_joints_3d,
    flip_labels,
    intrinsics_for_crop,
)
from zoo.pose import Pose

if TYPE_CHECKING:
    from zoo.base import PoseModule
    from zoo.skeleton import Skeleton

__all__ = [
    "IMAGE_SUFFIXES",
    "Picture",
    "expand_sources",
    "load_image",
    "predict",
    "predict_batch",
    "read_source",
]

Picture8 = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""What a folder is searched for; a single file may have any name."""

_FOCAL_OVER_LONGER_SIDE = 1.2


@dataclass(frozen=True)
class Picture:
    """One picture of a source.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        name: path of the file, or ``""`` for an array.
        frame: index of the frame in a video; 0 for a picture.
    """

    image: Picture8
    name: str = ""
    frame: int = 0


# ---- reading ------------------------------------------------------------------------------------


def load_image(path: str | Path) -> Picture8:
    """Reads a picture as (H, W, 3) uint8 RGB, upright.

    The EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparency is laid on white.

    Raises:
        zoo.errors.DataError: no such file, not a picture, or a truncated or corrupt one.
    """
    path = Path(path)
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with Image.open(path) as file:
            file.load()
            return _to_rgb(ImageOps.exif_transpose(file) or file, path)
    except FileNotFoundError as error:
        raise DataError(f"no picture {path}") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, expected a picture") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture that can be read (JPEG, PNG, ...)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for broken PNG chunks and ValueError for broken TIFF tags.
        reason = (str(error).splitlines() or ["unreadable"])[0]
        raise DataError(f"{path} is truncated or corrupt: {reason}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _to_rgb(image: Image.Image, path: Path) -> Picture8:
    if image.mode.startswith("I"):  # I;16, I;16B or I: grey of 16 bits (PNG, TIFF)
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{path} has grey values beyond 16 bits; convert it to 8 bits")
        return np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point values; convert it to 8 bits")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def check_array(array: npt.NDArray[Any]) -> Picture8:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture; "
            "expected (height, width, 3) uint8 RGB"
        )
    return cast(Picture8, array)


def natural_key(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``frame2`` before ``frame10``."""
    parts = re.split(r"(\d+)", path.name.lower())
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


def expand_sources(source: Any) -> list[Path | npt.NDArray[Any]]:
    """The files and arrays of a source in order, folders expanded, nothing read yet.

    Raises:
        zoo.errors.DataError: a path does not exist, a folder has no pictures, or the source is of
            a wrong kind.
    """
    if isinstance(source, np.ndarray):
        return [source]
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"no such file or folder: {path}")
            return [path]
        found = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not found:
            raise DataError(
                f"the folder {path} has no pictures ({' '.join(sorted(IMAGE_SUFFIXES))})"
            )
        found.sort(key=lambda p: (natural_key(p), p.name))
        return list(found)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return [item for entry in source for item in expand_sources(entry)]
    raise DataError(
        f"cannot read a {type(source).__name__}; expected a path of a picture or folder, an "
        "(H, W, 3) uint8 array, or a list of these"
    )


def read_source(source: Any) -> Iterator[Picture]:
    """Yields the pictures of a source one after the other, so that few are in memory.

    Args:
        source: path of a picture or folder, an (H, W, 3) uint8 RGB array, or a list of these.

    Raises:
        zoo.errors.DataError: see ``PoseModule.predict``.
    """
    for item in expand_sources(source):
        if isinstance(item, Path):
            yield Picture(load_image(item), str(item))
        else:
            yield Picture(check_array(item))


# ---- boxes --------------------------------------------------------------------------------------


def check_box(box: Any, where: str) -> tuple[float, float, float, float]:
    try:
        values = [float(v) for v in box]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: the box {box!r} is not (x0, y0, x1, y1)") from error
    if len(values) != 4:
        raise DataError(f"{where}: a box has {len(values)} numbers, expected (x0, y0, x1, y1)")
    if not all(math.isfinite(v) for v in values):
        raise DataError(f"{where}: the box {values} has numbers that are not finite")
    x0, y0, x1, y1 = values
    if x1 <= x0 or y1 <= y0:
        raise DataError(f"{where}: the box {values} has no area; expected x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _depth(boxes: Any) -> int:
    """0 a number, 1 a box, 2 a list of boxes, 3 a list of those; -1 when it cannot be told."""
    if isinstance(boxes, np.ndarray | Tensor):
        return boxes.ndim
    if _is_number(boxes):
        return 0
    if isinstance(boxes, Sequence) and not isinstance(boxes, str):
        depths = [_depth(b) for b in boxes]
        known = [d for d in depths if d >= 0]
        return 1 + max(known) if known else -1
    return -1


Box = tuple[float, float, float, float]


def person_boxes(entry: Any, where: str) -> list[Box] | None:
    """The boxes of one picture; None: the whole picture."""
    if entry is None:
        return None
    if not isinstance(entry, Sequence | np.ndarray | Tensor) or isinstance(entry, str):
        raise DataError(f"{where}: expected a list of boxes (x0, y0, x1, y1), not {entry!r}")
    if len(entry) == 0:
        return []
    if _depth(entry) == 1:
        return [check_box(entry, where)]
    return [check_box(box, where) for box in entry]


def _boxes_by_picture(
    items: Sequence[Path | npt.NDArray[Any]], boxes: Any, single: bool
) -> list[list[Box] | None]:
    """One entry a picture, from the forms that ``predict`` takes."""
    if boxes is None:
        return [None] * len(items)
    names = [i.name if isinstance(i, Path) else "" for i in items]
    if isinstance(boxes, Mapping):
        unknown = sorted(set(map(str, boxes)) - set(names))
        if unknown:
            raise DataError(f"boxes are given for {unknown[0]!r}, which is none of the pictures")
        return [person_boxes(boxes.get(n), n) if n in boxes else None for n in names]
    if not isinstance(boxes, Sequence | np.ndarray | Tensor) or isinstance(boxes, str):
        raise DataError(f"boxes: expected lists of (x0, y0, x1, y1), not {boxes!r}")
    if single and _depth(boxes) < 3 and not (len(boxes) == 1 and boxes[0] is None):
        boxes = [boxes]
    if len(boxes) != len(items):
        raise DataError(f"boxes are given for {len(boxes)} pictures, but there are {len(items)}")
    where = [name or f"picture {i}" for i, name in enumerate(names)]
    return [person_boxes(entry, w) for entry, w in zip(boxes, where, strict=True)]


def square_around(box: Box, scale: float) -> Box:
    """The square with the same centre, its side ``scale`` times the longer side of ``box``, px."""
    x0, y0, x1, y1 = box
    half = 0.5 * scale * max(x1 - x0, y1 - y0)
    centre_x, centre_y = 0.5 * (x0 + x1), 0.5 * (y0 + y1)
    return centre_x - half, centre_y - half, centre_x + half, centre_y + half


# ---- the model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PersonCrop:
    """A person's crop of a picture, and where it comes from."""

    crop: Tensor  # (3, S, S)
    crop_to_image: Tensor  # (2, 3)
    size: tuple[int, int]  # width and height of the picture, px
    box: Box
    person: int
    frame: int
    name: str


def _people(
    pictures: Iterable[Picture], boxes: Sequence[list[Box] | None], size: int, scale: float
) -> Iterator[PersonCrop]:
    for picture, given in zip(pictures, boxes, strict=True):
        height, width = picture.image.shape[:2]
        whole: Box = (-0.5, -0.5, width - 0.5, height - 0.5)
        for number, box in enumerate([whole] if given is None else given):
            if outside(box, width, height):
                where = picture.name or "the picture"
                raise DataError(f"the box {box} lies outside {where} of {width} x {height} px")
            yield crop_person(picture, box, number, size, 1.0 if given is None else scale)


def outside(box: Box, width: int, height: int) -> bool:
    """Whether nothing of the box is in a picture of this size."""
    return box[2] < 0 or box[3] < 0 or box[0] > width - 1 or box[1] > height - 1


def crop_person(picture: Picture, box: Box, person: int, size: int, scale: float) -> PersonCrop:
    """Cuts the square around a box, ``scale`` times its longer side, to ``size`` px."""
    height, width = picture.image.shape[:2]
    crop, affine = crop_image(picture.image, square_around(box, scale), size)
    return PersonCrop(crop, affine, (width, height), box, person, picture.frame, picture.name)


def crops_to_batch(people: Sequence[PersonCrop], model: PoseModule, frames: int) -> PoseBatch:
    """The model's input, (B, T, ...). Nothing is known of the joints: their validity is false.

    A method of clips gets the picture T times: a person who stands still.
    """
    batch, joints = len(people), len(model.skeleton)
    affine = torch.stack([p.crop_to_image for p in people]).float()
    # The camera is unknown: a focal length of 1.2 longer sides (a view of 45 degrees), the
    # principal point in the middle of the picture, both carried into the crop.
    size = torch.tensor([p.size for p in people], dtype=torch.float32)  # (B, 2) width, height
    camera = torch.eye(3).repeat(batch, 1, 1)
    camera[:, 0, 0] = camera[:, 1, 1] = _FOCAL_OVER_LONGER_SIDE * size.amax(1)
    camera[:, :2, 2] = (size - 1) / 2
    camera = intrinsics_for_crop(camera, affine)

    def clip(value: Tensor) -> Tensor:
        """(B, ...) to (B, T, ...)."""
        return value[:, None].expand(batch, frames, *value.shape[1:]).contiguous()

    result = PoseBatch(
        image=clip(torch.stack([p.crop for p in people])),
        joints_2d=torch.zeros(batch, frames, joints, 2),
        scores_2d=torch.zeros(batch, frames, joints),
        valid_2d=torch.zeros(batch, frames, joints, dtype=torch.bool),
        intrinsics=clip(camera),
        crop_to_image=clip(affine),
    )
    return cast(PoseBatch, {k: cast(Tensor, v).to(model.device) for k, v in result.items()})


def mirror_batch(batch: PoseBatch, skeleton: Skeleton) -> PoseBatch:
    """The batch as a mirror shows it: x -> S - 1 - x in the crop, left and right exchanged.

    Args:
        batch: ``image``, and any of ``joints_2d``, ``scores_2d``, ``valid_2d``, ``occluded``,
            ``intrinsics`` and ``crop_to_image``; other entries are kept as they are.
        skeleton: says which joints are exchanged.
    """
    width = batch["image"].shape[-1]
    mirrored = cast(PoseBatch, dict(batch))
    mirrored["image"] = flip_image(batch["image"])
    if "joints_2d" in batch:
        mirrored["joints_2d"] = flip_joints_2d(batch["joints_2d"], skeleton, width)
    for key in ("scores_2d", "valid_2d", "occluded"):
        if key in batch:
            mirrored[key] = flip_labels(batch[key], skeleton)
    if "intrinsics" in batch:
        mirrored["intrinsics"] = flip_intrinsics(batch["intrinsics"], width)
    if "crop_to_image" in batch:
        mirrored["crop_to_image"] = flip_affine(batch["crop_to_image"], width)
    return mirrored


def predict_batch(model: PoseModule, batch: PoseBatch, flip_test: bool = False) -> Prediction:
    """The model's prediction, averaged with that of the mirrored batch if ``flip_test``.

    Left and right are exchanged back, and x becomes -x in 3D and S - 1 - x in 2D, before averaging.
    """
    prediction = model.estimate(batch)
    if not flip_test:
        return prediction
    mirrored = model.estimate(mirror_batch(batch, model.skeleton))
    return mean_with_mirrored(prediction, mirrored, model.skeleton, batch["image"].shape[-1])


def mean_with_mirrored(
    prediction: Prediction, mirrored: Prediction, skeleton: Skeleton, width: int
) -> Prediction:
    """The mean of a prediction and that of the mirrored crop, which is ``width`` px wide."""
    result = cast(Prediction, dict(prediction))
    back_3d = flip_joints_3d(mirrored["pred_3d"], skeleton)
    result["pred_3d"] = 0.5 * (prediction["pred_3d"] + back_3d)
    if "pred_2d" in prediction:
        back_2d = flip_joints_2d(mirrored["pred_2d"], skeleton, width)
        result["pred_2d"] = 0.5 * (prediction["pred_2d"] + back_2d)
    if "std_3d" in prediction:
        back_std = flip_labels(mirrored["std_3d"], skeleton)
        result["std_3d"] = 0.5 * (prediction["std_3d"] + back_std)
    return result


def _frame_corrections(
    people: Sequence[PersonCrop], report: CorrectionReport, model: PoseModule
) -> list[FrameCorrection]:
    at = centre_frame(model)
    columns = [column[:, at].tolist() for column in report]
    return [
        FrameCorrection(p.name, p.frame, p.person, *values)
        for p, *values in zip(people, *columns, strict=True)
    ]


def centre_frame(model: PoseModule) -> int:
    """Which of a clip's predicted frames is a picture's pose: the one next to its centre."""
    predicted, centre = model.predicted_frames, model.input_spec.frames // 2
    return min(range(len(predicted)), key=lambda k: abs(predicted[k] - centre))


def crops_to_poses(
    people: Sequence[PersonCrop], prediction: Prediction, model: PoseModule, at: int
) -> list[Pose]:
    """The frame ``at`` of (B, T', ...) predictions as records, in px of the pictures."""
    cut = {k: cast(Tensor, v)[:, at].float().cpu() for k, v in prediction.items()}
    method = getattr(model, "zoo_name", "") or type(model).__name__
    poses = []
    for k, p in enumerate(people):
        joints_2d = None
        if "pred_2d" in cut:
            joints_2d = affine_apply(p.crop_to_image, cut["pred_2d"][k]).numpy()
        poses.append(
            Pose(
                joints_3d=cut["pred_3d"][k].numpy(),
                joints_2d=joints_2d,
                std_3d=cut["std_3d"][k].numpy() if "std_3d" in cut else None,
                box=np.array(p.box, dtype=np.float32),
                skeleton=model.skeleton.name,
                joint_names=model.skeleton.joints,
                origin=model.skeleton.root,
                person=p.person,
                frame_index=p.frame,
                source=p.name,
                method=method,
            )
        )
    return poses


def predict(
    model: PoseModule,
    source: Any,
    *,
    boxes: Any = None,
    flip_test: bool = False,
    batch_size: int = 32,
    progress: bool = False,
    correct: Correction | str | None = None,
    corrections: list[FrameCorrection] | None = None,
) -> list[Pose]:
    """3D poses of the people in pictures; the body of ``PoseModule.predict``.

    The crop of a person is a square around the box, ``input_spec.crop_scale`` times its longer
    side; without boxes it is the smallest square that holds the whole picture. A method of clips
    sees the picture ``input_spec.frames`` times. Pictures are read as they are needed; at most
    ``batch_size`` crops are in memory.

    Args:
        model: any method with images as input; its modes and device stay as they are.
        source: see ``read_source``.
        boxes: px (x0, y0, x1, y1), they may reach beyond the picture. For one picture: None (the
            whole picture is one person), one box, or a list of boxes (empty: nobody). For several
            pictures: a list with such an entry for each, or a mapping from file names (a picture
            that is not named counts as a whole).
        flip_test: average with the prediction of the mirrored crop.
        batch_size: crops per forward pass.
        progress: show a bar with the time left on stderr.
        correct: settings of the self-correction, see ``zoo.correction.Correction.parse``; None: the
            model's own.
        corrections: gets what the correction did to each pose, in their order (with ``flip_test``
            to that of the picture as it is); nothing without a correction.

    Returns:
        One pose a person, in the order of the pictures and boxes.

    Raises:
        zoo.errors.DataError: a source is missing, unreadable or not a picture, or a box is wrong.
        zoo.errors.UsageError: the method does not take pictures, ``batch_size`` is not positive, or
            ``correct`` does not fit the method.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}, expected at least 1")
    spec = model.input_spec
    if spec.kind != "image":
        name = getattr(model, "zoo_name", "") or type(model).__name__
        raise UsageError(f"{name} lifts 2D keypoints, not pictures; use a method with image input")
    items = expand_sources(source)
    single = not isinstance(source, list | tuple) and not (
        isinstance(source, str | Path) and Path(source).is_dir()
    )
    by_picture = _boxes_by_picture(items, boxes, single)
    pictures: Iterable[Picture] = (p for item in items for p in read_source(item))
    if progress:
        from rich.console import Console
        from rich.progress import track

        bar = Console(stderr=True)
        pictures = track(pictures, "predicting", len(items), console=bar, transient=True)
    people = _people(pictures, by_picture, spec.image_size, spec.crop_scale)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    poses: list[Pose] = []
    reports: list[CorrectionReport] = []
    waiting: list[PersonCrop] = []

    def finish() -> None:
        reports.clear()
        poses.extend(_run(model, waiting, flip_test))
        if reports and corrections is not None:
            corrections.extend(_frame_corrections(waiting, reports[0], model))
        waiting.clear()

    try:
        with (
            torch.inference_mode(),
            correcting(model, correct, lambda _, report: reports.append(report)),
        ):
            for person in people:
                waiting.append(person)
                if len(waiting) == batch_size:
                    finish()
            if waiting:
                finish()
    finally:
        for module, mode in modes:
            module.training = mode
    return poses


def _run(model: PoseModule, people: Sequence[PersonCrop], flip_test: bool) -> list[Pose]:
    batch = crops_to_batch(people, model, model.input_spec.frames)
    prediction = predict_batch(model, batch, flip_test)
    return crops_to_poses(people, prediction, model, centre_frame(model))
