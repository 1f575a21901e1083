"""Pose metrics that count each sample once, on any number of processes.

The metric classes keep one short row a pose together with the pose's id, so a distributed sampler
that pads an uneven data set with duplicates does not change the result: rows with the same id count
once. :class:`PoseMetrics` follows a :class:`~zoo.protocols.Protocol` and is what ``PoseModule``
logs. The functions behind the numbers (``mpjpe(pred, target, valid)`` ...) are those of
:mod:`zoo.pose_errors`, and importable from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

from zoo.actions import canonical
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError
from zoo.geometry import affine_apply, root_of
from zoo.pose_errors import (
    acceleration_error,
    auc,
    checked,
    limb_ratio_error,
    log_limb_ratios,
    mpjpe,
    n_mpjpe,
    pa_mpjpe,
    pck,
    rigid_mpjpe,
)
from zoo.protocols import Protocol, get_protocol
from zoo.sample_metric import SampleMetric, by_action, by_subject, sample_ids
from zoo.skeleton import Skeleton

__all__ = [
    "AUC",
    "METRIC_DEFINITIONS",
    "MPJPE",
    "NMPJPE",
    "PAMPJPE",
    "PCK",
    "PCP",
    "AccelerationError",
    "LimbRatioError",
    "PixelError",
    "PoseMetrics",
    "SampleMetric",
    "StagePoseMetrics",
    "acceleration_error",
    "auc",
    "limb_ratio_error",
    "log_limb_ratios",
    "mpjpe",
    "n_mpjpe",
    "pa_mpjpe",
    "pck",
    "pcp_parts",
    "rigid_mpjpe",
    "sample_ids",
]


class _PoseError(SampleMetric):
    """A metric with one value a pose; subclasses say which."""

    higher_is_better = False

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """(...) values of (..., J, D) poses, NaN = not counted."""
        raise NotImplementedError

    def update(
        self, pred: Tensor, target: Tensor, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Adds poses.

        Args:
            pred: (..., J, D).
            target: (..., J, D).
            valid: (..., J) bool.
            ids: (N, 6) int64 of the N poses in order, see :func:`sample_ids`; ``None`` = all
                different.
        """
        self._append(self.per_pose(pred, target, valid).reshape(-1, 1), ids)

    def compute(self) -> Tensor:
        """The mean over all samples of all processes, a scalar."""
        return self.aggregate(*self.table())[0].float().to(self.device)


class MPJPE(_PoseError):
    """Mean per-joint position error in mm; see :func:`mpjpe`."""

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`mpjpe`."""
        return mpjpe(pred, target, valid, "none")


class PixelError(MPJPE):
    """Mean 2D error in px; see :func:`mpjpe`."""


class NMPJPE(_PoseError):
    """MPJPE after the best scale, in mm; see :func:`n_mpjpe`."""

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`n_mpjpe`."""
        return n_mpjpe(pred, target, valid, "none")


class PAMPJPE(_PoseError):
    """MPJPE after the best similarity, in mm; see :func:`pa_mpjpe`."""

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`pa_mpjpe`."""
        return pa_mpjpe(pred, target, valid, "none")


class PCK(_PoseError):
    """Percentage of correct keypoints; see :func:`pck`.

    Args:
        threshold: mm.
        kwargs: of :class:`SampleMetric`.
    """

    higher_is_better = True

    def __init__(self, threshold: float = 150.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`pck`."""
        return pck(pred, target, valid, self.threshold, "none")


class AUC(_PoseError):
    """Area under the PCK curve; see :func:`auc`.

    Args:
        maximum: last threshold, mm.
        step: between thresholds, mm.
        kwargs: of :class:`SampleMetric`.
    """

    higher_is_better = True

    def __init__(self, maximum: float = 150.0, step: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.maximum, self.step = maximum, step

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`auc`."""
        return auc(pred, target, valid, self.maximum, self.step, "none")


class AccelerationError(_PoseError):
    """Error of the second differences of (..., T, J, 3) clips; see :func:`acceleration_error`.

    Args:
        fps: ``None`` for mm/frame^2, a rate for mm/s^2.
        kwargs: of :class:`SampleMetric`.
    """

    def __init__(self, fps: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fps = fps

    def per_pose(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """See :func:`acceleration_error`."""
        return acceleration_error(pred, target, valid, self.fps, "none")


Part = tuple[tuple[int, ...], tuple[int, ...]]


def pcp_parts(skeleton: Skeleton) -> dict[str, list[Part]]:
    """The ten body parts of 3D PCP on KTH Multiview Football II, by group.

    Each end is the mean of the joints in its tuple. The torso runs from the middle of the hips to
    the neck (or what the skeleton has in its place).

    Raises:
        zoo.errors.UsageError: the skeleton lacks a joint of a part.
    """
    neck = next((j for j in ("upper_neck", "neck", "thorax") if j in skeleton.joints), None)
    limbs = ("hip", "knee", "ankle", "shoulder", "elbow", "wrist")
    needed = [f"{side}_{joint}" for side in "rl" for joint in limbs]
    missing = [j for j in needed if j not in skeleton.joints] + ([] if neck else ["neck"])
    if neck is None or missing:
        raise UsageError(f"PCP needs joints that {skeleton.name} lacks: {', '.join(missing)}")
    at = skeleton.index

    def pair(upper: str, lower: str) -> list[Part]:
        return [((at(f"{s}_{upper}"),), (at(f"{s}_{lower}"),)) for s in "rl"]

    return {
        "pelvis": [((at("r_hip"),), (at("l_hip"),))],
        "torso": [((at("r_hip"), at("l_hip")), (at(neck),))],
        "upper_arms": pair("shoulder", "elbow"),
        "lower_arms": pair("elbow", "wrist"),
        "upper_legs": pair("hip", "knee"),
        "lower_legs": pair("knee", "ankle"),
    }


class PCP(SampleMetric):
    """Percentage of correctly estimated parts, in %.

    ``mean`` (KTH Multiview Football II): a part is right if the mean of its two end errors is at
    most ``threshold`` times its true length. ``strict``: both end errors are.

    Args:
        parts: group name -> parts, such as :func:`pcp_parts` returns.
        threshold: share of the part's length.
        rule: ``mean`` or ``strict``.
        kwargs: of :class:`SampleMetric`.
    """

    higher_is_better = True

    def __init__(
        self,
        parts: Mapping[str, Sequence[Part]],
        threshold: float = 0.5,
        rule: Literal["mean", "strict"] = "mean",
        **kwargs: Any,
    ) -> None:
        self.groups = [(name, part) for name, group in parts.items() for part in group]
        super().__init__(width=len(self.groups), **kwargs)
        self.threshold, self.rule = threshold, rule

    def per_part(self, pred: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """(..., P): 100 or 0 for (..., J, 3) poses in mm, NaN where a part is not valid."""
        pred, target, valid, broken = checked(pred, target, valid)
        columns = []
        for _, ends in self.groups:
            a, b = [list(end) for end in ends]
            true_a, true_b = target[..., a, :].mean(-2), target[..., b, :].mean(-2)
            errors = torch.stack(
                [
                    torch.linalg.vector_norm(pred[..., a, :].mean(-2) - true_a, dim=-1),
                    torch.linalg.vector_norm(pred[..., b, :].mean(-2) - true_b, dim=-1),
                ],
                -1,
            )
            error = errors.mean(-1) if self.rule == "mean" else errors.amax(-1)
            limit = self.threshold * torch.linalg.vector_norm(true_a - true_b, dim=-1)
            right = (error <= limit) & ~broken[..., a + b].any(-1)
            columns.append((100.0 * right).where(valid[..., a + b].all(-1), torch.nan))
        return torch.stack(columns, -1)

    def update(
        self, pred: Tensor, target: Tensor, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Adds (..., J, 3) poses in mm; arguments as for :meth:`MPJPE.update`."""
        self._append(self.per_part(pred, target, valid).reshape(-1, self.width), ids)

    def compute(self) -> dict[str, Tensor]:
        """% by group, and ``all``: the mean over parts (so a pair of limbs counts twice)."""
        means = self.aggregate(*self.table()).float().to(self.device)
        names = [name for name, _ in self.groups]
        result = {
            name: means[[i for i, n in enumerate(names) if n == name]].nanmean()
            for name in dict.fromkeys(names)
        }
        return {**result, "all": means.nanmean()}


class LimbRatioError(SampleMetric):
    """Errors of the ratios of limb lengths, fig. 5 of Katircioglu et al. 2017.

    E_ij is the error of log(l_i / l_j). The paper leaves open whether a cell is the mean over poses
    of the absolute difference or the absolute value of the mean difference; both are here
    (``absolute`` and ``signed``). A cell counts the poses in which both limbs are valid.

    Args:
        skeleton: its bones are the limbs; ``lower`` are those of pelvis and legs, ``upper`` the
            rest.
        kwargs: of :class:`SampleMetric` (``aggregation`` is not used).
    """

    higher_is_better = False

    def __init__(self, skeleton: Skeleton, **kwargs: Any) -> None:
        super().__init__(width=len(skeleton.bones), **kwargs)
        self.bones = skeleton.bones
        legs = ("hip", "knee", "ankle")
        lower = [skeleton.joints[child].endswith(legs) for child, _ in self.bones]
        self.parts = {
            "lower": [i for i, is_leg in enumerate(lower) if is_leg],
            "upper": [i for i, is_leg in enumerate(lower) if not is_leg],
            "full": list(range(len(lower))),
        }

    def update(
        self, pred: Tensor, target: Tensor, valid: Tensor | None = None, ids: Tensor | None = None
    ) -> None:
        """Adds (..., J, 3) poses in mm; arguments as for :meth:`MPJPE.update`."""
        ratios = log_limb_ratios(pred, target, self.bones, valid)
        self._append(ratios.reshape(-1, self.width), ids)

    def _matrices(self) -> dict[str, Tensor]:
        _, ratios = self.table()
        absolute = [(ratios[:, i : i + 1] - ratios).abs().nanmean(0) for i in range(self.width)]
        signed = [(ratios[:, i : i + 1] - ratios).nanmean(0).abs() for i in range(self.width)]
        return {"absolute": torch.stack(absolute), "signed": torch.stack(signed)}

    def compute(self) -> dict[str, Tensor]:
        """Both (L, L) matrices as ``absolute`` and ``signed``, and their sums.

        The sums over all cells (ordered pairs) of a part of the body are ``absolute_lower``,
        ``absolute_upper``, ``absolute_full``, ``signed_lower`` ...
        """
        result: dict[str, Tensor] = {}
        for reading, matrix in self._matrices().items():
            result[reading] = matrix.float().to(self.device)
            for part, limbs in self.parts.items():
                total = matrix[limbs][:, limbs].sum()
                result[f"{reading}_{part}"] = total.float().to(self.device)
        return result


def _centroid(poses: Tensor, counted: Tensor) -> Tensor:
    """(..., 1, D): mean of the joints that count, 0 where there is none."""
    weight = counted.to(poses.dtype).unsqueeze(-1)
    total = poses.where(weight > 0, 0.0).sum(-2, keepdim=True)
    return total / weight.sum(-2, keepdim=True).clamp(min=1)


METRIC_DEFINITIONS: dict[str, str] = {
    "mpjpe_mm": "mean per-joint position error, aligned as the protocol says",
    "mpjpe_root_mm": "mean per-joint position error, roots at the origin",
    "mpjpe_centroid_mm": "the same with the mean of the counted joints at the origin",
    "pa_mpjpe_mm": "the same after the best similarity of each pose, no reflection",
    "n_mpjpe_mm": "the same, roots at the origin, after the best scale of each pose",
    "pck_150mm": "% of joints with an error below 150 mm, roots at the origin",
    "auc_150mm": "mean of that % over thresholds 0, 5, ..., 150 mm",
    "pcp_50": "% of the ten body parts whose mean end error is at most 0.5 of their length",
    "pcp_50_pelvis": "the same of the pelvis",
    "pcp_50_torso": "the same of the torso",
    "pcp_50_upper_arms": "the same of the upper arms",
    "pcp_50_lower_arms": "the same of the lower arms",
    "pcp_50_upper_legs": "the same of the upper legs",
    "pcp_50_lower_legs": "the same of the lower legs",
    "limb_ratio_log": "sum over ordered pairs of bones of the mean absolute error of the log ratio "
    "of their lengths",
    "acceleration": "mean error of the second differences over time, mm/frame^2 of the clip",
    "error_2d_px": "mean 2D error in px of the crop",
    "error_2d_image_px": "mean 2D error in px of the source image",
}
_ALWAYS = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pck_150mm", "auc_150mm", "limb_ratio_log")


class PoseMetrics(SampleMetric):
    """All metrics of a protocol, fed with predictions and batches; what ``PoseModule`` logs.

    ``compute`` gives the keys of ``METRIC_DEFINITIONS``. ``mpjpe_mm`` is the protocol's number:
    its joints, its alignment, its aggregation. The other errors use the same joints (2D: the
    counted ones that are valid in 2D; limbs: all bones of the skeleton) and aggregation, and have
    the alignment their definition says, or none at all if the protocol has none.
    ``mpjpe_root_mm`` appears where the protocol's alignment is Procrustes or rigid,
    ``mpjpe_centroid_mm`` where poses are moved by the middle of their hips, the shares of
    correct parts where the protocol is about them, the 2D errors where the
    method predicts 2D (in px of the source image if the batch has ``crop_to_image``), the
    acceleration where clips have three frames or more.

    Args:
        protocol: or its name.
        skeleton: of predictions and batches.
        action_names: what ``batch["action"]`` indexes.
        kwargs: of ``torchmetrics.Metric``.

    Raises:
        zoo.errors.UsageError: the skeleton lacks a joint that the protocol counts.
    """

    higher_is_better = False

    def __init__(
        self,
        protocol: Protocol | str,
        skeleton: Skeleton,
        action_names: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        wanted = {
            "mpjpe_root_mm": protocol.alignment in ("procrustes", "rigid"),
            "mpjpe_centroid_mm": protocol.origin == "hips",
            **{n: protocol.score == "pcp_50" for n in METRIC_DEFINITIONS if n.startswith("pcp_")},
        }
        names = [n for n in METRIC_DEFINITIONS if wanted.get(n, True)]
        super().__init__(width=len(names), aggregation=protocol.aggregation, **kwargs)
        self.protocol = protocol
        self.skeleton = skeleton
        self.action_names = tuple(action_names)
        self.names = tuple(names)
        self._report: dict[str, dict[str, float]] | None = None
        self._parts = PCP(pcp_parts(skeleton)) if protocol.score == "pcp_50" else None
        missing = [j for j in protocol.joints or () if j not in skeleton.joints]
        if missing:
            raise UsageError(
                f"protocol {protocol.name} counts joints that {skeleton.name} lacks: "
                f"{', '.join(missing)}"
            )
        self.counted = tuple(
            joint
            for joint in (protocol.joints or skeleton.joints)
            if protocol.root_counted or joint != skeleton.root
        )

    @property
    def definition(self) -> str:
        """One line that defines the numbers; print and save it with them."""
        joints = f"{len(self.counted)} joints of {self.skeleton.name}"
        if len(self.counted) < len(self.skeleton):
            joints += f" ({' '.join(self.counted)})"
        return self.protocol.describe(joints)

    def update(self, prediction: Prediction, batch: PoseBatch) -> None:
        """Adds a batch, cut to the predicted frames.

        Args:
            prediction: ``pred_3d`` and possibly ``pred_2d``.
            batch: ``joints_3d``, ``valid_3d``, ``joints_2d``, ``valid_2d`` and the sample ids.

        Raises:
            zoo.errors.UsageError: shapes of prediction and batch differ.
        """
        self._report = None
        pred = prediction["pred_3d"].detach()
        size, frames = pred.shape[:2]
        values: dict[str, Tensor] = {}
        if "joints_3d" in batch:
            valid = batch.get("valid_3d")
            values |= self._errors_3d(pred, batch["joints_3d"], valid)
        if "pred_2d" in prediction and "joints_2d" in batch:
            values |= self._errors_2d(prediction["pred_2d"].detach(), batch)
        nothing = pred.new_full((size, frames), torch.nan, dtype=torch.float32)
        rows = torch.stack([values.get(n, nothing).float() for n in self.names], -1)
        self._append(rows.reshape(-1, self.width), sample_ids(batch, frames))

    def _mask(self, like: Tensor) -> Tensor:
        indices = [self.skeleton.index(joint) for joint in self.counted]
        mask = torch.zeros(len(self.skeleton), dtype=torch.bool, device=like.device)
        mask[indices] = True
        return mask

    def _errors_3d(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        if pred.shape != target.shape:
            raise UsageError(
                f"pred_3d is {tuple(pred.shape)}, joints_3d {tuple(target.shape)}; "
                "they must have the same shape"
            )
        pred, target = pred.float(), target.float()
        if valid is None:
            valid = torch.ones_like(target[..., 0], dtype=torch.bool)
        if self.protocol.alignment != "none":
            # A target whose root is not annotated is already relative to it (see PoseBatch).
            origin = self._origin(target)
            known = self._origin(valid.float().unsqueeze(-1)) == 1
            if self.protocol.origin == "root":
                pred = pred - self._origin(pred).unsqueeze(-2)
                target = target - origin.where(known, 0.0).unsqueeze(-2)
            else:  # without both hips the roots are what both poses have
                moved = self._origin(pred).where(known, root_of(pred, self.skeleton))
                pred = pred - moved.unsqueeze(-2)
                origin = origin.where(known, root_of(target, self.skeleton))
                target = target - origin.unsqueeze(-2)
        counted = valid & self._mask(pred)
        aligned = mpjpe(pred, target, counted, "none")
        similar = pa_mpjpe(pred, target, counted, "none")
        score = {"procrustes": similar, "none": aligned, "translation": aligned}
        if self.protocol.alignment == "rigid":
            score["rigid"] = rigid_mpjpe(pred, target, counted, "none")
        extra: dict[str, Tensor] = {}
        if "mpjpe_centroid_mm" in self.names:
            centred = [pose - _centroid(pose, counted) for pose in (pred, target)]
            extra["mpjpe_centroid_mm"] = mpjpe(centred[0], centred[1], counted, "none")
        if self._parts is not None:
            extra |= self._correct_parts(pred, target, valid)
        return extra | {
            "mpjpe_mm": score[self.protocol.alignment],
            "mpjpe_root_mm": aligned,
            "pa_mpjpe_mm": similar,
            "n_mpjpe_mm": n_mpjpe(pred, target, counted, "none"),
            "pck_150mm": pck(pred, target, counted, 150.0, "none"),
            "auc_150mm": auc(pred, target, counted, 150.0, 5.0, "none"),
            "limb_ratio_log": limb_ratio_error(pred, target, self.skeleton.bones, valid, "none"),
            "acceleration": acceleration_error(pred, target, counted, None, "none"),
        }

    def _origin(self, joints: Tensor) -> Tensor:
        """(..., D): what the protocol moves to the origin."""
        if self.protocol.origin == "root":
            return root_of(joints, self.skeleton)
        hips = [self.skeleton.index("r_hip"), self.skeleton.index("l_hip")]
        return joints[..., hips, :].mean(-2)

    def _correct_parts(self, pred: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        assert self._parts is not None
        right = self._parts.per_part(pred, target, valid)
        groups: dict[str, list[int]] = {}
        for column, (name, _) in enumerate(self._parts.groups):
            groups.setdefault(f"pcp_50_{name}", []).append(column)
        return {
            "pcp_50": right.nanmean(-1),
            **{name: right[..., columns].nanmean(-1) for name, columns in groups.items()},
        }

    def _errors_2d(self, pred: Tensor, batch: PoseBatch) -> dict[str, Tensor]:
        target = batch["joints_2d"]
        counted = self._mask(pred).expand(target.shape[:-1])
        if "valid_2d" in batch:
            counted = counted & batch["valid_2d"]
        values = {"error_2d_px": mpjpe(pred, target, counted, "none")}
        if "crop_to_image" in batch:
            affine = batch["crop_to_image"].float()
            values["error_2d_image_px"] = mpjpe(
                affine_apply(affine, pred.float()),
                affine_apply(affine, target.float()),
                counted,
                "none",
            )
        return values

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all samples of all processes, scalars; NaN where nothing was counted."""
        ids, rows = self.table()
        overall = self.aggregate(ids, rows)
        keep = [
            n in _ALWAYS or not bool(rows[:, i].isnan().all()) for i, n in enumerate(self.names)
        ]
        actions = by_action(ids, rows)
        groups = {self._action(a): part for a, part in sorted(actions.items(), key=self._place)}
        subjects = by_subject(ids, rows) if self.protocol.by_subject and len(ids) else {}
        if subjects:
            groups = {
                f"{self._action(action)} S{subject}": part
                for (action, subject), part in sorted(
                    subjects.items(), key=lambda item: (self._place((item[0][0], None)), item[0])
                )
            }

        def as_dict(means: Tensor, samples: int) -> dict[str, float]:
            pairs = zip(self.names, means.tolist(), keep, strict=True)
            return {"samples": float(samples)} | {n: v for n, v, kept in pairs if kept}

        report = {name: as_dict(mean, n) for name, (mean, n) in groups.items()}
        if subjects:
            over_subjects = torch.stack([mean for mean, _ in subjects.values()]).nanmean(0)
            report["mean over subjects and actions"] = as_dict(over_subjects, len(rows))
        if actions:
            over_actions = torch.stack([mean for mean, _ in actions.values()]).nanmean(0)
            report["mean over actions"] = as_dict(over_actions, len(rows))
        report["all frames"] = as_dict(rows.nanmean(0), len(rows))
        self._report = report
        values = overall.float().to(self.device)
        return {n: values[i] for i, n in enumerate(self.names) if keep[i]}

    def _action(self, index: int) -> str:
        inside = 0 <= index < len(self.action_names)
        return self.action_names[index] if inside else f"action {index}"

    def _place(self, item: tuple[int, Any]) -> tuple[int, int]:
        """Where an action stands: in the order of the paper's columns, then by its index."""
        order = [canonical(name) for name in self.protocol.action_order]
        name = canonical(self._action(item[0]))
        return (order.index(name) if name in order else len(order), item[0])

    def per_action(self) -> dict[str, dict[str, float]]:
        """Metric -> value of each action, then of "mean over actions" and of "all frames".

        Actions stand in the order of the paper's columns, where the protocol has one. With
        ``by_subject`` there is a row for each subject of an action (``Walking S1``), and the mean
        over these.

        ``samples`` is the number of poses. After ``compute`` this needs no other process; before
        it, all processes must ask.
        """
        if self._report is None:
            self.compute()
        assert self._report is not None
        return self._report

    def reset(self) -> None:
        """Forgets all samples and the report."""
        super().reset()
        self._report = None


class StagePoseMetrics(PoseMetrics):
    """Also the error of each of several poses of a method, such as those of its stages.

    The batch of ``update`` brings them as ``stage_3d`` (S, B, T, J, 3) mm, pelvis at the origin,
    in the order of the names. Their error is that of ``mpjpe_root_mm``.

    Args:
        stage_names: keys of the further errors, S of them.
        args: of :class:`PoseMetrics`.
        kwargs: the same.
    """

    def __init__(self, stage_names: Sequence[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage_names = tuple(stage_names)
        self.names = (*self.names, *self.stage_names)
        self.width = len(self.names)
        self._stages: Tensor | None = None
        self._open()

    def update(self, prediction: Prediction, batch: PoseBatch) -> None:
        """Adds a batch, see the base class, and its ``stage_3d``."""
        self._stages = cast(dict[str, Tensor], batch)["stage_3d"].detach()
        super().update(prediction, batch)
        self._stages = None

    def _errors_3d(self, pred: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        values = super()._errors_3d(pred, target, valid)
        counted = self._mask(pred).expand(pred.shape[:-1])
        counted = counted if valid is None else counted & valid
        assert self._stages is not None
        for name, pose in zip(self.stage_names, self._stages, strict=True):
            values[name] = mpjpe(pose.float(), target.float(), counted, "none")
        return values
