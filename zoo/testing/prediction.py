"""Checks of ``forward`` and ``predict``."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from zoo.batch import FRAME_KEYS, SAMPLE_ID_KEYS, PoseBatch, Prediction
from zoo.testing.helpers import (
    TRAIN_BATCH,
    Factory,
    build,
    predicted,
    replaced,
    rules,
    same_prediction,
    samples,
    tensors,
    training_batch,
)

__all__ = [
    "check_evaluation",
    "check_forward",
    "check_no_leak",
    "check_predict",
    "check_stream",
    "check_unfitted",
]


_LIMIT_MM = 1e5
_TARGETS = ("joints_3d", "root_3d", "valid_3d", "occluded")
_TARGETS_2D = ("joints_2d", "scores_2d", "valid_2d")


def check_forward(factory: Factory) -> None:
    """``forward`` returns the documented keys, shapes and frame, alike in train and eval mode."""
    model = build(factory)
    must = rules(model)
    joints, frames = len(model.skeleton), len(model.predicted_frames)
    must(
        all(0 <= f < model.input_spec.frames for f in model.predicted_frames) and frames > 0,
        f"predicted_frames {model.predicted_frames} are not among {model.input_spec.frames} frames",
    )
    shapes = {
        "pred_3d": (TRAIN_BATCH, frames, joints, 3),
        "pred_2d": (TRAIN_BATCH, frames, joints, 2),
        "std_3d": (TRAIN_BATCH, frames, joints),
    }
    batch = training_batch(model)
    keys: dict[str, set[str]] = {}
    for mode in ("train", "eval"):
        model.train(mode == "train")
        with torch.no_grad():
            prediction: Prediction = model(batch)
        must(
            isinstance(prediction, dict),
            f"forward returns a {type(prediction).__name__} in {mode} mode, not a Prediction",
        )
        keys[mode] = set(prediction)
        must("pred_3d" in prediction, f"forward returns no 'pred_3d' in {mode} mode")
        for key, value in tensors(prediction).items():
            must(
                key in shapes,
                f"forward returns {key!r}, which Prediction does not have ({', '.join(shapes)})",
            )
            must(
                value.shape == shapes[key],
                f"{key} has shape {tuple(value.shape)} in {mode} mode, expected {shapes[key]}",
            )
            must(value.dtype == torch.float32, f"{key} is {value.dtype}, expected float32")
            must(value.isfinite().all(), f"{key} is not finite in {mode} mode after fit_statistics")
            must(
                value.abs().max() < _LIMIT_MM,
                f"{key} reaches {float(value.abs().max()):.3g}; mm and px are expected",
            )
        root = prediction["pred_3d"][:, :, model.skeleton.index(model.skeleton.root)]
        must((root == 0).all(), f"the predicted pelvis is not exactly 0 in {mode} mode")
        if "std_3d" in prediction:
            must((prediction["std_3d"] >= 0).all(), f"std_3d is negative in {mode} mode")
    must(
        keys["train"] == keys["eval"],
        f"forward returns {sorted(keys['train'])} in training, {sorted(keys['eval'])} in eval mode",
    )


def check_unfitted(factory: Factory) -> None:
    """Without ``fit_statistics`` a forward pass is finite too: buffers start harmless."""
    model = build(factory, fitted=False)
    must = rules(model)
    for key, value in tensors(predicted(model, training_batch(model, 2))).items():
        must(
            value.isfinite().all(),
            f"{key} is not finite before fit_statistics: give the buffers harmless first values",
        )


def check_evaluation(factory: Factory) -> None:
    """In eval mode a prediction is deterministic and does not depend on the rest of the batch."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    whole = predicted(model, batch)
    must(same_prediction(whole, predicted(model, batch, seed=4)), "eval mode is not deterministic")
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
    must(not changed, f"a forward pass in eval mode changes {', '.join(changed[:3])}")
    for index in (0, TRAIN_BATCH - 1):
        alone = predicted(model, samples(batch, slice(index, index + 1)))
        part = {k: v[index : index + 1] for k, v in tensors(whole).items()}
        must(
            same_prediction(cast(Prediction, part), alone, tolerance=1e-4),
            f"in eval mode sample {index} alone is predicted otherwise than in its batch",
        )


def check_no_leak(factory: Factory) -> None:
    """In eval mode a prediction does not look at the targets, and does not need them."""
    model = build(factory)
    must = rules(model)
    batch = training_batch(model)
    whole = predicted(model, batch)
    hidden = _TARGETS + (_TARGETS_2D if model.input_spec.kind == "image" else ())
    others = training_batch(model, seed=1)
    swapped = {k: cast(Tensor, others[k]) for k in hidden}  # type: ignore[literal-required]
    must(
        same_prediction(whole, predicted(model, replaced(batch, **swapped))),
        f"in eval mode the prediction depends on the targets ({', '.join(hidden)})",
    )
    # What is left for a new picture: the 2D joints of an image method are not known either.
    unknown = {
        k: torch.zeros_like(cast(Tensor, v))
        for k, v in batch.items()
        if k in hidden and k in _TARGETS_2D
    }
    bare = {k: v for k, v in batch.items() if k not in (*hidden, *SAMPLE_ID_KEYS)} | unknown
    uncalibrated = {k: v for k, v in bare.items() if k != "world_to_camera"}
    for inputs in (bare, uncalibrated):
        try:
            alone = predicted(model, cast(PoseBatch, inputs))
        except KeyError as error:
            raise AssertionError(
                f"{type(model).__name__}: in eval mode forward needs batch[{error}], which a new "
                f"picture does not have; it has {', '.join(sorted(inputs))}"
            ) from error
        if inputs is bare:
            must(same_prediction(whole, alone), "the prediction differs without targets")
        for key, value in tensors(alone).items():
            must(value.isfinite().all(), f"{key} is not finite where the camera is unknown")


def check_predict(factory: Factory) -> None:
    """``predict`` gives one pose a box, and ``[]`` where there is nobody (image methods only)."""
    model = build(factory)
    must = rules(model)
    if model.input_spec.kind != "image":
        return
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for boxes, people in ((None, 1), ([], 0), ([[10, 10, 60, 80], [50, 5, 110, 85]], 2)):
        poses = model.predict(picture, boxes=boxes)
        must(
            isinstance(poses, list) and len(poses) == people,
            f"predict gives {len(poses)} poses for boxes={boxes}, expected {people}",
        )
        for pose in poses:
            must(
                pose.joints_3d.shape == (len(model.skeleton), 3),
                f"a predicted pose has shape {pose.joints_3d.shape}",
            )
            must(np.isfinite(pose.joints_3d).all(), "a predicted pose is not finite")


_VIDEO = 7  # frames: more than the clip of a small instance
_CUTS = ((_VIDEO,), (1,) * _VIDEO, (2, 1, 4))


def check_stream(factory: Factory) -> None:
    """``stream`` gives every frame of a video once, however the video is cut into calls."""
    model = build(factory).eval()
    must = rules(model)
    count = -(-_VIDEO // model.input_spec.frames)
    batch = training_batch(model, count + 1)  # without the last sample, which is 2D-only
    video = cast(
        PoseBatch,
        {k: cast(Tensor, v)[:count].flatten(0, 1)[None, :_VIDEO]
         for k, v in batch.items() if k in FRAME_KEYS},
    )  # fmt: skip
    whole: Prediction | None = None
    for cuts in _CUTS:
        parts, came, state = [], 0, None
        for number, size in enumerate([*cuts, 0]):
            first = sum(cuts[:number])
            piece = {k: cast(Tensor, v)[:, first : first + size] for k, v in video.items()}
            with torch.no_grad():
                found, state = model.stream(cast(PoseBatch, piece) if size else None, state)
            if found is not None:
                parts.append(tensors(found))
                came += parts[-1]["pred_3d"].shape[1]
            must(
                came <= first + size,
                f"stream gives {came} predictions after {first + size} frames",
            )
        must(came == _VIDEO, f"stream gives {came} predictions for a video of {_VIDEO} frames")
        must(state is None, "stream returns a state after the end of the video, not None")
        joined = cast(Prediction, {k: torch.cat([p[k] for p in parts], 1) for k in parts[0]})
        must(joined["pred_3d"].isfinite().all(), "stream gives predictions that are not finite")
        whole = joined if whole is None else whole
        must(
            same_prediction(whole, joined, tolerance=1e-4),
            f"stream predicts otherwise when a video comes in pieces of {cuts} frames",
        )
    if model.input_spec.frames == 1:
        assert whole is not None
        alone = predicted(model, _frames_as_samples(video))
        as_video = {k: v.transpose(0, 1) for k, v in tensors(alone).items()}
        must(
            same_prediction(whole, cast(Prediction, as_video), tolerance=1e-4),
            "stream and forward predict differently, though the method sees single frames",
        )


def _frames_as_samples(video: PoseBatch) -> PoseBatch:
    return cast(PoseBatch, {k: cast(Tensor, v).transpose(0, 1) for k, v in video.items()})
