"""Rendered samples that are kept, for trainings that show each picture several times."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from zoo.batch import PoseBatch
from zoo.errors import OutputError

__all__ = ["SampleStore"]


class SampleStore:
    """Batches by slot; pictures as uint8.

    A batch is rendered again unless all of its slots are known, so what it returns depends on the
    slots alone and not on what was stored before: pictures are rounded to 1/255 either way.

    Args:
        slots: how many samples can be kept; a slot is a number below that. 0 keeps none.
        folder: holds them for other trainings, of the same samples, at the same time or later: a
            memory-mapped file for each entry of a batch. ``None`` keeps them in the memory of the
            device that trains.
    """

    def __init__(self, slots: int, folder: Path | None = None) -> None:
        self.slots = slots
        self.folder = folder
        self._known = torch.zeros(0, dtype=torch.bool)
        self._kept: dict[str, Tensor] = {}

    def fetch(self, slot: Tensor, make: Callable[[], PoseBatch]) -> PoseBatch:
        """The batch of these slots.

        Args:
            slot: (B,) int64.
            make: renders it.

        Raises:
            OutputError: the folder cannot be written, or has no room.
        """
        place = slot if self.folder is None else slot.cpu()
        batch: dict[str, Tensor]
        if self._kept and bool(self._known[place].all()):
            batch = {key: kept[place].to(slot.device) for key, kept in self._kept.items()}
        else:
            batch = dict(cast(dict[str, Tensor], make()))
            if "image" in batch:
                batch["image"] = (batch["image"] * 255).round_().to(torch.uint8)
            if self.slots:
                if not self._kept:
                    self._begin(batch, slot.device)
                for key, value in batch.items():
                    self._kept[key][place] = value.to(place.device)
                self._known[place] = True  # last: another process may be reading
        if "image" in batch:
            batch["image"] = batch["image"].float() / 255
        return cast(PoseBatch, batch)

    def _begin(self, batch: dict[str, Tensor], device: torch.device) -> None:
        """Makes room, or opens what another training has kept."""
        if self.folder is None:
            self._known = torch.zeros(self.slots, dtype=torch.bool, device=device)
            self._kept = {k: v.new_empty(self.slots, *v.shape[1:]) for k, v in batch.items()}
            return
        room = self.slots * sum(v[0].numel() * v.element_size() for v in batch.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = sum(f.stat().st_blocks * 512 for f in self.folder.iterdir())
            free = shutil.disk_usage(self.folder).free
            if room - there > free:
                raise OutputError(
                    f"{self.folder} has {free >> 20} MiB free; {self.slots} rendered samples need "
                    f"{room >> 20} MiB (fewer --data.train_samples, or none of --data.keep)"
                )
            self._kept = {key: self._file(key, value) for key, value in batch.items()}
            self._known = self._file("known", torch.zeros(1, dtype=torch.bool))
        except (OSError, RuntimeError) as error:
            raise OutputError(f"{self.folder}: cannot keep rendered samples: {error}") from error

    def _file(self, name: str, like: Tensor) -> Tensor:
        """(slots, ...) entries like those of ``like`` in a file; zero where it is new."""
        assert self.folder is not None
        shape = (self.slots, *like.shape[1:])
        path = str(self.folder / f"{name}.bin")
        count = torch.Size(shape).numel()
        flat = torch.from_file(path, shared=True, size=count, dtype=like.dtype)
        return flat.reshape(shape)
