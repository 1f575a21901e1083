"""A synthetic copy of LSP and LSPET, side by side, with their inverted third values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datamodules.lsp import FIRST_PIXEL
from datamodules.synth.closeups import closeups
from datamodules.synth.files import write_image, write_mat
from datamodules.synth.people import People
from zoo.skeleton import get_skeleton

__all__ = ["ACTIONS", "SUBJECTS", "hidden", "write"]

SUBJECTS = ("S1", "S5", "S6")
ACTIONS = ("Walking", "Greeting")
PICTURE_SHARE = 0.2


def hidden(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(N, 14) bool: joints that the copies mark as not visible, another one in every picture."""
    return np.eye(14, dtype=bool)[np.arange(count) % 14]


def write(root: Path, people: People) -> None:
    """Writes ``lsp_dataset`` (first half of the pictures) and ``lspet_dataset`` (the rest)."""
    sizes = [max(c.size) for cameras in people.cameras.values() for c in cameras]
    size = max(round(PICTURE_SHARE * max(sizes)), 16)
    pictures = closeups(people, get_skeleton("lsp_14").joints, size)
    half = max(len(pictures) // 2, 1)
    for folder, digits, mine in (
        ("lsp_dataset", 4, pictures[:half]), ("lspet_dataset", 5, pictures[half:]),
    ):  # fmt: skip
        if not mine:
            continue
        for i, picture in enumerate(mine):
            write_image(root / folder / "images" / f"im{i + 1:0{digits}d}.jpg", picture.pixels)
        xy = np.stack([p.joints for p in mine]) + FIRST_PIXEL
        unseen = hidden(len(mine))
        if folder == "lsp_dataset":
            rows = np.concatenate([xy, unseen[..., None]], axis=-1)  # 1 = hidden
            joints = rows.transpose(2, 1, 0)
        else:
            # Not visible is not annotated: such coordinates are often outside the picture.
            xy = np.where(unseen[..., None], -50.0, xy)
            joints = np.concatenate([xy, ~unseen[..., None]], axis=-1).transpose(1, 2, 0)
        write_mat(root / folder / "joints.mat", {"joints": joints})
