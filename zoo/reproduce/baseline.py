"""The error of always answering with the mean training pose: what any method has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.registry import dataset_class, get_method
from zoo.reproduce.jobs import Options, with_files
from zoo.reproduce.table import Training

__all__ = ["mean_pose_baseline", "measure_baseline"]


def mean_pose_baseline(datamodule: Any) -> dict[str, float]:
    """Errors of the mean training pose on the test split, in its own protocol.

    Args:
        datamodule: a ``PoseDataModule``. Its ``input_spec`` is set to keypoints, so that no image
            is rendered or decoded.

    Returns:
        The metrics of the protocol. The mean is over training poses in the camera frame (mm,
        pelvis at the origin), joint by joint over the poses where it is annotated.
    """
    import torch

    from zoo.base import InputSpec
    from zoo.metrics import PoseMetrics

    datamodule.input_spec = InputSpec(kind="keypoints")
    datamodule.prepare_data()
    poses = datamodule.training_poses()
    valid = poses["valid_3d"].unsqueeze(-1)  # (N, T, J, 1)
    total = torch.where(valid, poses["joints_3d"], 0.0).double().sum(dim=(0, 1))
    mean = (total / valid.sum(dim=(0, 1)).clamp(min=1)).float()  # (J, 3) mm
    datamodule.setup("test")
    metrics = PoseMetrics(datamodule.protocol("test"), datamodule.skeleton, datamodule.action_names)
    for raw in datamodule.test_dataloader():
        batch = datamodule.on_after_batch_transfer(raw, 0)
        metrics.update({"pred_3d": mean.expand(batch["joints_3d"].shape)}, batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def measure_baseline(
    training: Training, data: Mapping[str, Any], options: Options
) -> dict[str, float]:
    """:func:`mean_pose_baseline` on the data that a row is trained and tested on.

    Args:
        training: the row.
        data: its arguments of the data module, over those of its recipe.
        options: for the motion file.
    """
    from zoo.request import recipe_settings

    record = get_method(training.method)
    dataset = training.dataset or record.data
    arguments = {**(recipe_settings(record, training.recipe).get("data") or {}), **data}
    return mean_pose_baseline(dataset_class(dataset)(**with_files(arguments, dataset, options)))
