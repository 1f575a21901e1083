"""Poses of videos, frame by frame, in bounded memory.

Frames go through in their order: a finder (:mod:`zoo.seen`) says who is where, each person's crops
run through the method's ``stream``, and a frame comes out when the poses of all its people are
known. What is kept does not grow with the video: the frames that wait for a batch to fill or for a
method that looks ahead, and the methods' own states.

A method of clips was trained on frames at ``input_spec.clip_fps``. A faster video is several videos
at that rate, each a frame later than the one before: every frame gets a pose from frames as far
apart as the method knows them. A person may be missing for half a second: the method does not see
the gap. After a longer one it starts anew.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.batch import PoseBatch, Prediction
from zoo.correction import Correction, CorrectionReport, FrameCorrection, correcting
from zoo.errors import DataError, UsageError, suggest
from zoo.pose import Pose
from zoo.predict import (
    PersonCrop,
    Picture,
    check_array,
    crop_person,
    crops_to_batch,
    crops_to_poses,
    expand_sources,
    mean_with_mirrored,
    mirror_batch,
    person_boxes,
    read_source,
)
from zoo.seen import Everywhere, Finder, Following, Listed, Seen
from zoo.smooth import BETA, MAX_GAP, MIN_CUTOFF, SMOOTHERS, PoseSmoother
from zoo.track import Box
from zoo.video import check_fps, read_frames, video_info

if TYPE_CHECKING:
    from zoo.base import PoseModule
    from zoo.keypoints import Keypoints
    from zoo.predict_keypoints import KeypointBatch

__all__ = [
    "CHUNK",
    "FramePoses",
    "VideoSource",
    "max_gap_frames",
    "open_video",
    "predict_frames",
    "run_frames",
]

CHUNK = 8
"""People that wait for one another to go through the network together."""


@dataclass(frozen=True)
class FramePoses:
    """One frame of a video and the people in it.

    Attributes:
        frame: its number, from 0.
        time: its time in s, the number over the rate.
        poses: one a person, in the order of their numbers; none where there is nobody.
        image: (H, W, 3) uint8 RGB, where it was asked for.
    """

    frame: int
    time: float
    poses: list[Pose] = field(default_factory=list)
    image: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class VideoSource:
    """Frames to come, and what is known of them.

    Attributes:
        pictures: read as they are asked for.
        fps: their rate.
        frames: their number; 0: not known.
        name: path of the video or folder; ``""`` for arrays.
    """

    pictures: Iterator[Picture]
    fps: float
    frames: int = 0
    name: str = ""


# ---- sources ------------------------------------------------------------------------------------


def open_video(source: Any, fps: float | None = None) -> VideoSource:
    """Opens a video, a folder of its frames, or arrays.

    Args:
        source: path of a video; a folder of pictures, taken in the natural order of their names; or
            an iterable of (H, W, 3) uint8 RGB arrays or paths of pictures, which is read lazily.
        fps: frames a second; a video states its own.

    Raises:
        zoo.errors.DataError: it is missing, or cannot be read.
        zoo.errors.UsageError: no rate is given for frames that have none.
    """
    if fps is not None:
        check_fps(fps, "the given rate")
    if isinstance(source, str | Path) and not Path(source).is_dir():
        info = video_info(source, fps)
        name = str(source)
        pictures = (Picture(image, name, number) for number, image in read_frames(source))
        return VideoSource(pictures, info.fps, info.frames, name)
    if isinstance(source, str | Path):
        files = expand_sources(source)
        if fps is None:
            raise UsageError(f"the frames of {source} have no rate of their own; give fps (--fps)")
        read = (picture for file in files for picture in read_source(file))
        numbered = (replace(picture, frame=number) for number, picture in enumerate(read))
        return VideoSource(numbered, fps, len(files), str(source))
    if not isinstance(source, Iterable):
        raise DataError(
            f"cannot read a {type(source).__name__} as a video; expected its path, a folder of "
            "frames, or arrays of (H, W, 3) uint8"
        )
    if fps is None:
        raise UsageError("frames in memory have no rate of their own; give fps")
    count = len(source) if isinstance(source, Sequence) else 0
    return VideoSource(_arrays(source), fps, count)


def _arrays(source: Iterable[Any]) -> Iterator[Picture]:
    for number, item in enumerate(source):
        if isinstance(item, np.ndarray):
            yield Picture(check_array(item), "", number)
        else:
            yield replace(next(iter(read_source(item))), frame=number)


def max_gap_frames(fps: float) -> int:
    """Frames that a person may be missing and still be the same one, in the same motion."""
    return max(1, round(MAX_GAP * fps))


def _finder(boxes: Any, fps: float) -> Finder:
    """From what ``predict_frames`` takes as boxes."""
    if callable(boxes):
        return cast(Finder, boxes)
    if isinstance(boxes, Mapping):
        people: dict[int, list[Box | Keypoints]] = {}
        for frame, entry in boxes.items():
            if isinstance(frame, bool) or not isinstance(frame, int):
                raise DataError(f"boxes of a video go by the numbers of its frames, not {frame!r}")
            listed = person_boxes(entry, f"frame {frame}")
            if listed is None:
                raise DataError(f"frame {frame}: expected a list of boxes, empty for nobody")
            people[frame] = [*listed]
        return Listed(people, max_gap_frames(fps))
    return Everywhere(person_boxes(boxes, "the video"))


# ---- estimators ---------------------------------------------------------------------------------


@dataclass
class _Item:
    """A person of a frame, on the way."""

    frame: int
    seen: Seen
    crop: PersonCrop | None = None
    keypoints: Keypoints | None = None


Done = list[tuple[int, Pose | None]]
"""Frame number and pose; None: there is none."""


class Estimator(Protocol):
    """Turns people of frames into poses, maybe later."""

    alone: bool
    """Whether a frame may be taken twice: nothing is carried from one to the next."""

    def take(self, picture: Picture, seen: Seen) -> Done:
        """Takes a person; returns what has become known."""

    def tick(self, frame: int) -> Done:
        """All people of the frame were taken."""

    def finish(self) -> Done:
        """The video is over: the rest."""


@contextlib.contextmanager
def _evaluating(
    model: PoseModule, correct: Correction | str | None, reports: list[CorrectionReport]
) -> Iterator[None]:
    """Eval mode without gradients; a generator must not leave it on between two frames."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with (
            torch.inference_mode(),
            correcting(model, correct, lambda _, report: reports.append(report)),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class ModelEstimator:
    """A method's ``stream``, one or several for each person.

    Args:
        model: any method.
        fps: of the video.
        flip_test: average with the mirrored crops, which have a stream of their own.
        chunk: people that go through the network together.
        correct: see ``PoseModule.predict``.
    """

    def __init__(
        self,
        model: PoseModule,
        fps: float,
        flip_test: bool = False,
        chunk: int = CHUNK,
        correct: Correction | str | None = None,
    ) -> None:
        spec = model.input_spec
        if chunk < 1:
            raise UsageError(f"batch_size is {chunk}, expected at least 1")
        if flip_test and spec.kind != "image":
            raise UsageError("the flip test is for methods that take pictures")
        self.model, self.flip, self.chunk, self.correct = model, flip_test, chunk, correct
        self.corrections: list[FrameCorrection] = []
        """What the self-correction did to each pose (with the flip test, to that of the frame)."""
        self._reports: list[CorrectionReport] = []
        with _evaluating(model, correct, []):
            pass  # a wrong setting is told before a frame is read
        self.alone = spec.frames == 1
        self.stride = 1 if self.alone else max(1, round(fps / spec.clip_fps))
        self.max_gap = max_gap_frames(fps)
        name = model.zoo_name or type(model).__name__
        if not self.alone and fps < 0.75 * spec.clip_fps:
            warnings.warn(
                f"the video has {fps:g} frames a second; {name} expects {spec.clip_fps:g}: its "
                "motion looks faster than it is",
                stacklevel=2,
            )
        self._streams: dict[int, _Streams] = {}
        self._waiting = 0

    def take(self, picture: Picture, seen: Seen) -> Done:
        """Takes a person; those without the input that the method needs have no pose."""
        spec = self.model.input_spec
        item = _Item(picture.frame, seen)
        if spec.kind == "image":
            height, width = picture.image.shape[:2]
            box = seen.box or (-0.5, -0.5, width - 0.5, height - 0.5)
            scale = 1.0 if seen.box is None else spec.crop_scale
            item.crop = crop_person(picture, box, seen.person, spec.image_size, scale)
        elif seen.keypoints is None or not _has_joints(seen.keypoints):
            return [(picture.frame, None)]
        else:
            item.keypoints = replace(
                seen.keypoints, person=seen.person, frame=picture.frame, image=picture.name
            )
        # Frames that are seen alone can share a batch, whoever is in them.
        person = 0 if self.alone else seen.person
        done: Done = []
        streams = self._streams.get(person)
        if streams is not None and not self.alone and item.frame - streams.last > self.max_gap + 1:
            done = self._close(person)
        streams = self._streams.setdefault(person, _Streams(self.stride))
        streams.queue.append(item)
        streams.last = item.frame
        self._waiting += 1
        return done + (self._flush() if self._waiting >= self.chunk else [])

    def tick(self, frame: int) -> Done:
        """Ends the streams of people who have been gone for long."""
        if self.alone:
            streams = self._streams.get(0)
            late = streams is not None and frame - streams.last > self.max_gap
            return self._flush() if late and self._waiting else []
        gone = [k for k, s in self._streams.items() if frame - s.last > self.max_gap]
        return [one for person in gone for one in self._close(person)]

    def finish(self) -> Done:
        """The rest."""
        return [one for person in list(self._streams) for one in self._close(person)]

    def _flush(self) -> Done:
        self._waiting = 0
        return [one for s in self._streams.values() for one in self._run(s)]

    def _close(self, person: int) -> Done:
        streams = self._streams.pop(person)
        self._waiting -= len(streams.queue)
        done = self._run(streams)
        with _evaluating(self.model, self.correct, self._reports):
            for lane in streams.lanes:
                done += self._advance(lane, None)
        return done

    def _run(self, streams: _Streams) -> Done:
        """Sends the people who wait through the network."""
        items, streams.queue = streams.queue, []
        done: Done = []
        with _evaluating(self.model, self.correct, self._reports):
            for offset in range(min(self.stride, len(items))):
                lane = streams.lanes[(streams.count + offset) % self.stride]
                done += self._advance(lane, items[offset :: self.stride])
        streams.count += len(items)
        return done

    def _advance(self, lane: _Lane, items: list[_Item] | None) -> Done:
        """The next people of one stream; None: its end."""
        batch = None if items is None else self._batch(items, lane)
        self._reports.clear()
        found, lane.state = self.model.stream(batch, lane.state)
        reports = list(self._reports)
        if self.flip:
            skeleton = self.model.skeleton
            mirrored = None if batch is None else mirror_batch(batch, skeleton)
            other, lane.mirrored = self.model.stream(mirrored, lane.mirrored)
            if found is not None and other is not None:
                width = self.model.input_spec.image_size
                found = mean_with_mirrored(found, other, skeleton, width)
        if found is None:
            return []
        count = found["pred_3d"].shape[1]
        ready = [lane.owed.popleft() for _ in range(count)]
        self._note(ready, reports)
        # (1, T', ...) as T' samples of one frame.
        rows = cast(Prediction, {k: cast(Tensor, v).transpose(0, 1) for k, v in found.items()})
        poses = self._poses(ready, rows)
        return [(item.frame, pose) for (item, _, _), pose in zip(ready, poses, strict=True)]

    def _note(self, ready: list[_Owed], reports: list[CorrectionReport]) -> None:
        for report in reports:
            columns = [column.flatten().tolist() for column in report]
            if len(columns[0]) == len(ready):
                self.corrections += [
                    FrameCorrection(
                        "" if crop is None else crop.name, item.frame, item.seen.person, *values
                    )
                    for (item, crop, _), *values in zip(ready, *columns, strict=True)
                ]

    def _batch(self, items: list[_Item], lane: _Lane) -> PoseBatch:
        """(1, T, ...), and notes what will be needed for the records."""
        if self.model.input_spec.kind == "image":
            crops = [cast(PersonCrop, item.crop) for item in items]
            batch = crops_to_batch(crops, self.model, 1)
            # The crop itself is not needed any more.
            lane.owed.extend(
                (item, replace(crop, crop=torch.empty(0)), None)
                for item, crop in zip(items, crops, strict=True)
            )
            for item in items:
                item.crop = None
        else:
            from zoo.predict_keypoints import keypoints_to_batch

            given = keypoints_to_batch(
                [cast("Keypoints", item.keypoints) for item in items], self.model, 1
            )
            batch = given.batch
            lane.owed.extend((item, None, given.row(k)) for k, item in enumerate(items))
        turned = {k: cast(Tensor, v).transpose(0, 1) for k, v in batch.items()}
        return cast(PoseBatch, turned)

    def _poses(self, ready: list[_Owed], rows: Prediction) -> list[Pose]:
        if self.model.input_spec.kind == "image":
            return crops_to_poses([cast(PersonCrop, r[1]) for r in ready], rows, self.model, 0)
        from zoo.predict_keypoints import keypoints_to_poses

        return [
            pose
            for k, (item, _, given) in enumerate(ready)
            for pose in keypoints_to_poses(
                [cast("Keypoints", item.keypoints)], cast("KeypointBatch", given),
                cast(Prediction, {n: cast(Tensor, v)[k : k + 1] for n, v in rows.items()}),
                self.model, 0,
            )
        ]  # fmt: skip


_Owed = tuple[_Item, "PersonCrop | None", "KeypointBatch | None"]


@dataclass
class _Lane:
    """One stream at the method's rate, and the people whose poses it still owes."""

    state: Any = None
    mirrored: Any = None
    owed: deque[_Owed] = field(default_factory=deque)


class _Streams:
    """A person's streams."""

    def __init__(self, stride: int) -> None:
        self.lanes = [_Lane() for _ in range(stride)]
        self.queue: list[_Item] = []
        self.count, self.last = 0, 0


def _has_joints(one: Keypoints) -> bool:
    from zoo.lift2d import MIN_SCORE

    return bool((one.scores >= max(MIN_SCORE, 1e-6)).any())


class LiftEstimator:
    """:func:`zoo.lift` of the 2D joints of each frame on its own.

    Args:
        options: of :func:`zoo.lift2d.lift_people`.
        chunk: people that are lifted together.
        method: name of the method whose prior it is, if it is one's.
    """

    alone = True

    def __init__(self, options: Mapping[str, Any], chunk: int = 64, method: str = "") -> None:
        self.options, self.chunk, self.method = dict(options), chunk, method
        self._waiting: list[Keypoints] = []
        self.left = 0
        """People who had too few joints."""

    def take(self, picture: Picture, seen: Seen) -> Done:
        """Takes a person; without 2D joints there is no pose."""
        if seen.keypoints is None:
            return [(picture.frame, None)]
        one = replace(seen.keypoints, person=seen.person, frame=picture.frame, image=picture.name)
        self._waiting.append(one)
        return self.finish() if len(self._waiting) >= self.chunk else []

    def tick(self, frame: int) -> Done:
        """Lifts those who wait, if nobody has come for long."""
        late = bool(self._waiting) and frame - self._waiting[-1].frame > self.chunk
        return self.finish() if late else []

    def finish(self) -> Done:
        """Lifts those who wait."""
        from zoo.lift2d import lift_people

        people, self._waiting = self._waiting, []
        if not people:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            poses = lift_people(people, **self.options)
        if self.method:
            poses = [replace(pose, method=self.method) for pose in poses]
        found = {(pose.frame_index, pose.person): pose for pose in poses}
        self.left += len(people) - len(found)
        return [(one.frame, found.get((one.frame, one.person))) for one in people]


# ---- frames -------------------------------------------------------------------------------------


@dataclass
class _Waiting:
    """A frame whose poses are not all known."""

    picture: Picture
    owed: int = 0
    poses: list[Pose] = field(default_factory=list)


def run_frames(
    source: VideoSource,
    finder: Finder,
    estimator: Estimator,
    *,
    smooth: PoseSmoother | None = None,
    keep_images: bool = False,
) -> Iterator[FramePoses]:
    """Yields every frame of a video in order, with the poses of its people.

    Args:
        source: of :func:`open_video`.
        finder: says who is where.
        estimator: makes the poses.
        smooth: applied to each person's poses in the order of the frames.
        keep_images: hand the pictures on.
    """
    follow = finder if isinstance(finder, Following) else None
    waiting: dict[int, _Waiting] = {}

    def settle(done: Done) -> None:
        for frame, pose in done:
            one = waiting[frame]
            one.owed -= 1
            if pose is not None:
                one.poses.append(pose)

    def ready() -> Iterator[FramePoses]:
        for number in list(waiting):
            if waiting[number].owed:
                return
            one = waiting.pop(number)
            poses = sorted(one.poses, key=lambda pose: pose.person)
            if smooth is not None:
                poses = [smooth(pose) for pose in poses]
            image = one.picture.image if keep_images else None
            yield FramePoses(number, number / source.fps, poses, image)

    def look(picture: Picture, people: Sequence[Seen]) -> list[Pose]:
        kept = picture if keep_images else replace(picture, image=_NO_IMAGE)
        waiting[picture.frame] = _Waiting(kept, len(people))
        for one in people:
            settle(estimator.take(picture, one))
        settle(estimator.tick(picture.frame))
        if follow is not None and waiting[picture.frame].owed:
            raise UsageError(
                "the method looks ahead, so no box can follow its estimate; give boxes or a "
                "detector"
            )
        return waiting[picture.frame].poses

    for picture in source.pictures:
        poses = look(picture, finder(picture))
        if follow is not None:
            follow.tell(picture, poses)
            # A box that only says about where the person is: the estimate says it better.
            for _ in range(_SECOND_LOOKS if follow.fresh and estimator.alone else 0):
                follow.tell(picture, look(picture, follow.again()))
        yield from ready()
    settle(estimator.finish())
    yield from ready()


_SECOND_LOOKS = 2
_NO_IMAGE = np.zeros((0, 0, 3), np.uint8)


def predict_frames(
    model: PoseModule,
    source: Any,
    *,
    fps: float | None = None,
    boxes: Any = None,
    follow: bool = False,
    flip_test: bool = False,
    smooth: str | None = None,
    min_cutoff: float = MIN_CUTOFF,
    beta: float = BETA,
    batch_size: int = CHUNK,
    correct: Correction | str | None = None,
    keep_images: bool = False,
) -> Iterator[FramePoses]:
    """The poses of a video, frame by frame; the body of ``PoseModule.predict_frames``.

    Args:
        model: any method with images as input.
        source: see :func:`open_video`.
        fps: frames a second, for sources that do not state it.
        boxes: px (x0, y0, x1, y1), the same in all frames: None (the whole frame is one person),
            one box, or a list of boxes. Or a mapping from frame numbers to lists of boxes, a
            frame that is not in it having nobody. Or a finder, see :mod:`zoo.seen`.
        follow: the boxes are those of the first frame; from then on a person's box follows the 2D
            estimate of the frame before. For methods that estimate 2D.
        flip_test: average with the prediction of the mirrored crops.
        smooth: ``one-euro``.
        min_cutoff: of the smoothing, Hz.
        beta: of the smoothing, Hz per mm/s.
        batch_size: people that wait for one another to go through the network together; 1 for the
            least delay.
        correct: self-correction, see ``PoseModule.predict``.
        keep_images: hand the pictures on.

    Yields:
        Every frame in order; ``poses`` is empty where there is nobody.

    Raises:
        zoo.errors.DataError: the source is missing or cannot be read.
        zoo.errors.UsageError: the method does not take pictures, or a number is out of range.
    """
    video = open_video(source, fps)
    finder = _finder(boxes, video.fps)
    if model.input_spec.kind != "image" and not callable(boxes):
        name = model.zoo_name or type(model).__name__
        raise UsageError(f"{name} lifts 2D keypoints, not pictures; use a method with image input")
    if follow:
        finder, batch_size = Following(finder), 1
    smoother = make_smoother(smooth, video.fps, min_cutoff, beta)
    estimator = ModelEstimator(model, video.fps, flip_test, batch_size, correct)
    return run_frames(video, finder, estimator, smooth=smoother, keep_images=keep_images)


def make_smoother(
    smooth: str | None, fps: float, min_cutoff: float = MIN_CUTOFF, beta: float = BETA
) -> PoseSmoother | None:
    """The smoother of that name; None: none."""
    if not smooth:
        return None
    if smooth not in SMOOTHERS:
        raise UsageError(suggest(smooth, SMOOTHERS, "smoothing"))
    return PoseSmoother(fps, min_cutoff, beta)
