"""Rendered training samples kept in memory, for trainings that show each picture several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from zoo.batch import PoseBatch

__all__ = ["SampleStore"]


class SampleStore:
    """Batches by slot, on the device that trains; pictures as uint8.

    A batch is rendered again unless all of its slots are known, so what it returns depends on the
    slots alone and not on what was stored before: pictures are rounded to 1/255 either way.

    Args:
        slots: how many samples can be kept; a slot is a number below that.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._known = torch.zeros(0, dtype=torch.bool)
        self._kept: dict[str, Tensor] = {}

    def fetch(self, slot: Tensor, make: Callable[[], PoseBatch]) -> PoseBatch:
        """The batch of these slots.

        Args:
            slot: (B,) int64.
            make: renders it.
        """
        if self._kept and bool(self._known[slot].all()):
            batch = {key: kept[slot] for key, kept in self._kept.items()}
        else:
            batch = dict(cast(dict[str, Tensor], make()))
            if "image" in batch:
                batch["image"] = (batch["image"] * 255).round_().to(torch.uint8)
            if not self._kept:
                self._known = torch.zeros(self.slots, dtype=torch.bool, device=slot.device)
                self._kept = {
                    key: value.new_empty(self.slots, *value.shape[1:])
                    for key, value in batch.items()
                }
            for key, value in batch.items():
                self._kept[key][slot] = value
            self._known[slot] = True
        if "image" in batch:
            batch["image"] = batch["image"].float() / 255
        return cast(PoseBatch, batch)
