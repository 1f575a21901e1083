"""Square person crops of pictures, with the map back to the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.errors import DataError
from zoo.geometry import crop_affine

__all__ = ["crop_image"]


def crop_image(
    image: npt.NDArray[np.uint8], box: Sequence[float], size: int
) -> tuple[Tensor, Tensor]:
    """Cuts the smallest square that holds ``box`` (same centre) and resizes it.

    Bilinear when enlarging; when shrinking, the triangle widens with the factor, so nothing
    aliases. Beyond the picture its edge pixels repeat.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: x0, y0, x1, y1 in px, pixel centres at integers: a whole picture is
            (-0.5, -0.5, W - 0.5, H - 0.5). It may reach beyond the picture.
        size: S, side of the crop in px.

    Returns:
        The crop, (3, S, S) float32 in [0, 1], and ``crop_to_image``, (2, 3) float32: the affine map
        from px of the crop to px of the picture.

    Raises:
        zoo.errors.DataError: ``image`` is not (H, W, 3) uint8, or the box has no area.
    """
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise DataError(
            f"a picture to crop is (H, W, 3) uint8, not {array.shape} {array.dtype.name}"
        )
    x0, y0, x1, y1 = (float(v) for v in box)
    side = max(x1 - x0, y1 - y0)
    if not (math.isfinite(side) and x1 > x0 and y1 > y0 and math.isfinite(x0 + y0)):
        raise DataError(f"the box {tuple(box)} has no area; expected x0 < x1 and y0 < y1")
    if size < 1:
        raise DataError(f"a crop of {size} px; expected at least 1")
    centre = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2], dtype=torch.float64)
    affine = crop_affine(centre, torch.tensor(side, dtype=torch.float64), size)
    source = torch.from_numpy(np.ascontiguousarray(array))
    factor = float(affine[0, 0])
    rows = _resample(source, float(affine[1, 2]), factor, size)
    both = _resample(rows.transpose(0, 1), float(affine[0, 2]), factor, size)
    return (both / 255).clamp_(0, 1).permute(2, 1, 0).contiguous(), affine.float()


def _resample(source: Tensor, offset: float, factor: float, size: int) -> Tensor:
    """(L, M, C) -> (S, M, C) float32: place k of the result is ``offset + factor k`` in the source.

    A triangle of half width max(1, factor), one tap after the other.
    """
    width = max(1.0, factor)
    position = offset + factor * torch.arange(size, dtype=torch.float64)
    first = (position - width).floor().long() + 1
    taps = math.ceil(2 * width)
    index = first[:, None] + torch.arange(taps)
    weight = (1 - (index - position[:, None]).abs() / width).clamp_min(0)
    weight = (weight / weight.sum(1, keepdim=True)).float()
    index = index.clamp(0, len(source) - 1)
    result = torch.zeros(size, *source.shape[1:])
    for tap in range(taps):
        result.addcmul_(source[index[:, tap]].float(), weight[:, tap, None, None])
    return result
