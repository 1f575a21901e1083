"""2D detectors: torchvision's Keypoint R-CNN finds the people of a picture and their joints.

The weights come through torchvision's own download and cache (``torch.hub.get_dir()``); nothing is
fetched before a detector is made. They were trained on COCO by the authors of torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import DataError, UsageError, suggest
from zoo.keypoints import Keypoints

if TYPE_CHECKING:
    from zoo.predict import Picture

__all__ = ["DETECTORS", "detect", "keypoint_scores", "load_detector"]

DETECTORS = ("keypointrcnn",)
SKELETON = "coco_17"
MIN_PERSON_SCORE = 0.7
"""Least confidence of a person; the network's boxes below are mostly doubles and false alarms."""


def load_detector(
    name: str = "keypointrcnn", pretrained: bool = True, device: str = "cpu", **options: Any
) -> nn.Module:
    """Torchvision's Keypoint R-CNN (ResNet-50, FPN) in eval mode.

    Args:
        name: ``keypointrcnn``.
        pretrained: with torchvision's COCO weights, else randomly initialised.
        device: where it runs.
        options: of ``torchvision.models.detection.keypointrcnn_resnet50_fpn``, such as
            ``min_size``.

    Raises:
        zoo.errors.UsageError: no such detector.
        zoo.errors.DataError: the weights are neither in the cache nor to be had.
    """
    if name not in DETECTORS:
        raise UsageError(suggest(name, DETECTORS, "detector"))
    from torchvision.models.detection import (
        KeypointRCNN_ResNet50_FPN_Weights,
        keypointrcnn_resnet50_fpn,
    )

    weights = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1 if pretrained else None
    try:
        model = keypointrcnn_resnet50_fpn(weights=weights, weights_backbone=None, **options)
    except (URLError, OSError, RuntimeError, EOFError) as error:
        if weights is None:
            raise
        # Offline, a full disk, or a download whose hash is wrong.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the weights of {name} cannot be had: {reason}; fetch {weights.url} into "
            f"{torch.hub.get_dir()}/checkpoints, or lift keypoints of a file instead"
        ) from error
    return cast(nn.Module, model.eval().to(device))


def keypoint_scores(logits: Tensor) -> Tensor:
    """Scores in [0, 1] from Keypoint R-CNN's: heights of heatmap peaks, logits without bound.

    Monotone with 1/2 at 0; not a calibrated probability.
    """
    return torch.sigmoid(logits / 2)


def detect(
    detector: nn.Module, pictures: Iterable[Picture], min_score: float = MIN_PERSON_SCORE
) -> list[Keypoints]:
    """The people of pictures, the surest first in each.

    Args:
        detector: takes a list of (3, H, W) pictures in [0, 1] and returns for each a dict with
            ``boxes`` (P, 4), ``scores`` (P,), ``keypoints`` (P, 17, 3) and ``keypoints_scores``
            (P, 17), as torchvision's does.
        pictures: looked at one by one.
        min_score: least confidence of a person.

    Returns:
        One record a person, ``image`` its picture's name and ``frame`` its picture's number.
    """
    if not 0 <= min_score <= 1:
        raise UsageError(f"the least score of a person is {min_score}, expected one in [0, 1]")
    device = next(iter(detector.parameters()), torch.zeros(())).device
    people = []
    for number, picture in enumerate(pictures):
        image = torch.from_numpy(picture.image).to(device).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            found = detector([image])[0]
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[found["scores"][order] >= min_score]
        cut = {key: found[key][order].float().cpu() for key in _KEYS}
        scores = keypoint_scores(cut["keypoints_scores"]).numpy()
        for person in range(len(order)):
            people.append(
                Keypoints(
                    joints_2d=_pixel_centres(cut["keypoints"][person, :, :2]),
                    scores=scores[person].astype(np.float32),
                    skeleton=SKELETON,
                    image=picture.name,
                    person=person,
                    frame=number,
                    box=_pixel_centres(cut["boxes"][person]),
                    score=float(cut["scores"][person]),
                )
            )
    return people


_KEYS = ("boxes", "scores", "keypoints", "keypoints_scores")


def _pixel_centres(values: Tensor) -> Any:
    """Torchvision's pixel k covers k to k + 1; the zoo's has its centre at k."""
    return (values - 0.5).numpy().astype(np.float32)
