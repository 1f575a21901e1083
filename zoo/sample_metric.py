"""A torchmetrics base that keeps one row a sample and counts each sample once.

A distributed sampler pads an uneven data set with copies, so sums and counts would depend on the
number of processes. Rows that carry the sample's id do not: copies are dropped after the gathering.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn
from torchmetrics.utilities.data import dim_zero_cat

from zoo.batch import SAMPLE_ID_KEYS, PoseBatch
from zoo.errors import UsageError
from zoo.protocols import Aggregation

__all__ = [
    "ID_WIDTH",
    "SampleMetric",
    "by_action",
    "by_subject",
    "group_rows",
    "sample_ids",
]

ID_WIDTH = len(SAMPLE_ID_KEYS) + 1
_ACTION, _SUBJECT = SAMPLE_ID_KEYS.index("action"), SAMPLE_ID_KEYS.index("subject")


def sample_ids(batch: PoseBatch, frames: int) -> Tensor | None:
    """The id of each pose of a batch, (B * T, 6) int64: ``SAMPLE_ID_KEYS`` and frame in the clip.

    ``None`` where the batch has none of the keys; a single missing key counts as 0.
    """
    known: dict[str, Any] = {k: batch[k] for k in SAMPLE_ID_KEYS if k in batch}  # type: ignore[literal-required]
    if not known:
        return None
    template = next(iter(known.values()))
    zeros = torch.zeros_like(template)
    clip = torch.stack([known.get(key, zeros).long() for key in SAMPLE_ID_KEYS], -1)
    position = torch.arange(frames, device=clip.device)
    size = clip.shape[0]
    return torch.cat(
        [
            clip.unsqueeze(1).expand(size, frames, -1),
            position[None, :, None].expand(size, frames, 1),
        ],
        -1,
    ).reshape(size * frames, ID_WIDTH)


def group_rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Groups equal rows of (N, W) ids.

    Returns:
        first: (G,) index of the first row of each group, groups in the order of their ids.
        group: (N,) group of each row.
    """
    low = ids.amin(0)
    spans = [int(s) for s in ids.amax(0) - low + 1]
    product = 1
    for span in spans:
        product *= span
    if product < 2**62:
        # One integer a row (mixed radix): sorting those is far faster than sorting rows.
        key = torch.zeros_like(ids[:, 0])
        for column, span in enumerate(spans):
            key = key * span + (ids[:, column] - low[column])
        _, group = torch.unique(key, return_inverse=True)
    else:
        _, group = torch.unique(ids, dim=0, return_inverse=True)
    rows = torch.arange(len(ids))
    first = torch.full((int(group.max()) + 1,), len(ids)).scatter_reduce(0, group, rows, "amin")
    return first, group


class SampleMetric(Metric):
    """Base of the metrics: a table with one row of ``width`` values a pose, NaN = not counted.

    Rows travel with an id of six integers (``SAMPLE_ID_KEYS`` and the frame in the clip), are
    gathered from all processes when a result is asked for, and count once an id. A row takes
    48 + 4 * width bytes, 2 million frames of one value about 100 MB.

    Args:
        width: values a row.
        aggregation: mean over ``frames``, over the ``actions`` of the action means, or over
            ``subjects`` and actions of the means of each subject's action.
        kwargs: of ``torchmetrics.Metric``.
    """

    full_state_update = False
    is_differentiable = False
    ids: list[Tensor]
    rows: list[Tensor]

    def __init__(self, width: int = 1, aggregation: Aggregation = "frames", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.aggregation = aggregation
        self._anonymous = 0
        self.add_state("ids", default=[], dist_reduce_fx="cat")
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self._open()

    def _open(self) -> None:
        # Never an empty list: a process without samples must gather tensors of the right rank.
        self.ids = [torch.zeros(0, ID_WIDTH, dtype=torch.int64, device=self.device)]
        self.rows = [torch.zeros(0, self.width, device=self.device)]

    def reset(self) -> None:
        """Forgets all samples."""
        super().reset()
        self._open()

    def _append(self, rows: Tensor, ids: Tensor | None) -> None:
        """Adds (N, width) rows; without ids each row is a sample of its own."""
        rows = rows.detach().to(self.device, torch.float32)
        if ids is None:
            ids = torch.full((len(rows), ID_WIDTH), -1, device=rows.device)
            ids[:, 0] -= _rank()
            ids[:, -1] = torch.arange(self._anonymous, self._anonymous + len(rows))
            self._anonymous += len(rows)
        if ids.shape != (len(rows), ID_WIDTH):
            raise UsageError(
                f"sample ids are {tuple(ids.shape)}; for these poses they must be "
                f"({len(rows)}, {ID_WIDTH})"
            )
        self.ids.append(ids.to(rows.device, torch.int64))
        self.rows.append(rows)

    def table(self) -> tuple[Tensor, Tensor]:
        """Ids (N, 6) and rows (N, width) float64 on the CPU, each id once, in the order of the ids.

        Of this process, and of all of them inside ``compute``.
        """
        ids, rows = dim_zero_cat(self.ids).cpu(), dim_zero_cat(self.rows).cpu().double()
        if len(ids) == 0:
            return ids, rows
        first, group = group_rows(ids)
        if len(first) < len(ids):
            gap = (rows - rows[first[group]]).abs()
            # A copy in another batch may differ in the last digits, not by more.
            conflicts = int((gap > 0.1 + 0.01 * rows.abs()).any(-1).sum())
            if conflicts:
                rank_zero_warn(
                    f"{conflicts} samples share their id ({', '.join(SAMPLE_ID_KEYS)}, frame in "
                    "the clip) with another sample but not its error; the first of each id counts"
                )
        return ids[first], rows[first]

    def aggregate(self, ids: Tensor, rows: Tensor) -> Tensor:
        """(width,) means of a table's columns, aggregated; NaN without a value."""
        if self.aggregation == "frames":
            return rows.nanmean(0)
        group = by_action if self.aggregation == "actions" else by_subject
        means = [mean for mean, _ in group(ids, rows).values()]
        return torch.stack(means).nanmean(0) if means else rows.nanmean(0)


def by_action(ids: Tensor, rows: Tensor) -> dict[int, tuple[Tensor, int]]:
    """Action index -> (means of the columns, number of poses)."""
    actions, group = torch.unique(ids[:, _ACTION], return_inverse=True)
    order = group.argsort(stable=True)
    parts = torch.split(rows[order], torch.bincount(group, minlength=len(actions)).tolist())
    return {
        int(action): (part.nanmean(0), len(part))
        for action, part in zip(actions, parts, strict=True)
    }


def by_subject(ids: Tensor, rows: Tensor) -> dict[tuple[int, int], tuple[Tensor, int]]:
    """(action index, subject) -> (means of the columns, number of poses)."""
    found = {}
    for subject in torch.unique(ids[:, _SUBJECT]).tolist():
        mine = ids[:, _SUBJECT] == subject
        for action, part in by_action(ids[mine], rows[mine]).items():
            found[action, int(subject)] = part
    return dict(sorted(found.items()))


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
