"""Augmentation: mirror images, colour jitter, PCA colour noise.

The functions work on batches of tensors, on the device that trains, and take their random numbers
as arguments: randomness belongs to the sample, not to the process. :class:`PCAColor` is the colour
noise as an albumentations transform, for data sets of image files; albumentations is imported when
it is first asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo.batch import PoseBatch
from zoo.geometry import (
    flip_affine,
    flip_image,
    flip_intrinsics,
    flip_joints_2d,
    flip_joints_3d,
    flip_labels,
)
from zoo.skeleton import Skeleton

if TYPE_CHECKING:
    PCAColor: Any

__all__ = [
    "IMAGENET_PCA",
    "PCAColor",
    "apply_colour",
    "flip_batch",
    "jitter_colour",
    "jitter_matrix",
    "pca_colour",
    "pca_of_pixels",
    "pca_offset",
    "standard_normal",
]

IMAGENET_PCA: tuple[tuple[float, ...], tuple[tuple[float, ...], ...]] = (
    (0.2175, 0.0188, 0.0045),
    ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)),
)
"""Principal components of ImageNet's RGB in [0, 1]: values, and vectors as columns, as commonly
used with the colour noise of Krizhevsky et al. 2012 (sec. 4.1)."""


def flip_batch(
    batch: PoseBatch, skeleton: Skeleton, width: float, which: Tensor | None = None
) -> PoseBatch:
    """Mirrors samples: image, 2D, 3D, camera and left/right labels together.

    The world is mirrored too (x -> -x), so ``world_to_camera`` stays a rotation and up stays up.

    Args:
        batch: full samples; keys that are absent stay absent.
        skeleton: of the joints.
        width: of the crop in px.
        which: (B,) bool, the samples to mirror; ``None`` mirrors all.

    Returns:
        A new batch; tensors of the old one are not changed.
    """
    mirrored: dict[str, Tensor] = {}
    for key, entry in batch.items():
        value = cast(Tensor, entry)
        if key == "image":
            mirrored[key] = flip_image(value)
        elif key == "joints_2d":
            mirrored[key] = flip_joints_2d(value, skeleton, width)
        elif key == "joints_3d":
            mirrored[key] = flip_joints_3d(value, skeleton)
        elif key == "root_3d":
            mirrored[key] = value * value.new_tensor([-1.0, 1.0, 1.0])
        elif key in ("scores_2d", "valid_2d", "valid_3d", "occluded"):
            mirrored[key] = flip_labels(value, skeleton)
        elif key == "intrinsics":
            mirrored[key] = flip_intrinsics(value, width)
        elif key == "crop_to_image":
            mirrored[key] = flip_affine(value, width)
        elif key == "world_to_camera":
            sign = value.new_tensor([-1.0, 1.0, 1.0])
            mirrored[key] = sign[:, None] * value * sign
        else:
            mirrored[key] = value
        if which is not None:
            mask = which.reshape(-1, *[1] * (value.ndim - 1))
            mirrored[key] = torch.where(mask, mirrored[key], value)
    return cast(PoseBatch, mirrored)


def jitter_matrix(mean: Tensor, uniforms: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Brightness, saturation and contrast, one draw a sample, as one affine map of RGB.

    Args:
        mean: (B, 3) mean colour of each sample, about whose grey the contrast changes.
        uniforms: (B, 3) in [0, 1).
        strength: factors lie in [1 - strength, 1 + strength]; 0 changes nothing.

    Returns:
        Matrix (B, 3, 3) and offset (B, 3).
    """
    brightness, saturation, contrast = (1 + strength * (2 * uniforms - 1)).unbind(-1)
    luma = mean.new_tensor([0.299, 0.587, 0.114])
    eye = torch.eye(3, dtype=mean.dtype, device=mean.device)
    factor = saturation[:, None, None]
    matrix = factor * eye + (1 - factor) * luma.expand(3, 3)
    matrix = matrix * (brightness * contrast)[:, None, None]
    grey = (mean * luma).sum(-1) * brightness
    return matrix, ((1 - contrast) * grey)[:, None].expand(-1, 3)


def apply_colour(image: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """``matrix @ rgb + offset`` for every pixel, clamped to [0, 1].

    Args:
        image: (B, T, 3, H, W).
        matrix: (B, 3, 3).
        offset: (B, 3).
    """
    frames = image.shape[1]
    pixels = image.flatten(3).flatten(0, 1)  # (B T, 3, H W)
    matrix = matrix[:, None].expand(-1, frames, 3, 3).flatten(0, 1)
    offset = offset[:, None].expand(-1, frames, 3).flatten(0, 1)
    result = torch.baddbmm(offset[..., None], matrix, pixels).clamp_(0, 1)
    return result.view(image.shape)


def jitter_colour(image: Tensor, uniforms: Tensor, strength: float) -> Tensor:
    """Changes brightness, saturation and contrast of (B, T, 3, H, W), see ``jitter_matrix``."""
    return apply_colour(image, *jitter_matrix(image.mean((1, 3, 4)), uniforms, strength))


def standard_normal(uniforms: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [0, 1)."""
    return torch.special.ndtri(uniforms.double().clamp(1e-7, 1 - 1e-7)).to(uniforms)


def pca_of_pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Eigen-system of the covariance of RGB over all pixels.

    Args:
        images: (..., 3, H, W) in [0, 1].

    Returns:
        Standard deviations along the principal axes (3,), falling, and the axes as columns (3, 3);
        float64. (The values commonly given for ImageNet are of this kind.)
    """
    pixels = images.movedim(-3, 0).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(pixels))
    # The sign of an axis is arbitrary: make the largest entry positive, the same everywhere.
    largest = vectors.abs().argmax(0, keepdim=True)
    vectors = vectors * vectors.gather(0, largest).sign()
    return values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)


def pca_offset(alpha: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """[p1 p2 p3] (alpha * values), the colour to add (Krizhevsky et al. 2012, sec. 4.1).

    Args:
        alpha: (B, 3), normal with the chosen standard deviation.
        values: (3,) standard deviations of the training set's pixels along the axes.
        vectors: (3, 3), axes as columns.

    Returns:
        (B, 3), in the dtype of ``alpha``.
    """
    return (alpha * values.to(alpha)) @ vectors.to(alpha).mT


def pca_colour(image: Tensor, alpha: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Adds one colour to every pixel of each sample of (B, T, 3, H, W), see ``pca_offset``.

    ``alpha`` = 0 changes nothing.
    """
    offset = pca_offset(alpha, values, vectors)
    return (image + offset[:, None, :, None, None]).clamp(0, 1)


# ---- for image files ----------------------------------------------------------------------------


def _pca_color_class() -> type[Any]:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network otherwise
    from albumentations.core.transforms_interface import ImageOnlyTransform

    class PCAColor(ImageOnlyTransform):
        """PCA colour noise with a fixed eigen-system, that of the training set.

        albumentations' own FancyPCA takes the eigen-system of each single image; the published
        noise (Krizhevsky et al. 2012, sec. 4.1) takes that of the training set and adds one
        constant colour to the whole image.

        Args:
            std: standard deviation of the three factors.
            values: (3,) scale along each axis, for RGB in [0, 1].
            vectors: (3, 3) axes as columns.
            p: probability that an image gets noise.
        """

        class InitSchema(ImageOnlyTransform.InitSchema):
            std: float
            values: tuple[float, ...]
            vectors: tuple[tuple[float, ...], ...]

        def __init__(
            self,
            std: float = 0.1,
            values: tuple[float, ...] = IMAGENET_PCA[0],
            vectors: tuple[tuple[float, ...], ...] = IMAGENET_PCA[1],
            p: float = 1.0,
        ) -> None:
            super().__init__(p=p)
            self.std = std
            self.values = values
            self.vectors = vectors

        def get_params(self) -> dict[str, Any]:
            alpha = self.random_generator.normal(0.0, 1.0, 3) * self.std
            return {"offset": np.asarray(self.vectors) @ (alpha * np.asarray(self.values))}

        def apply(
            self, img: npt.NDArray[Any], offset: npt.NDArray[np.float64], **params: Any
        ) -> npt.NDArray[Any]:
            if img.dtype == np.uint8:
                shifted = img + np.round(255 * offset)
                return np.clip(shifted, 0, 255).astype(np.uint8)
            return np.clip(img + offset, 0, 1).astype(img.dtype)

    PCAColor.__qualname__ = "PCAColor"
    return PCAColor


def __getattr__(name: str) -> Any:
    if name == "PCAColor":
        globals()["PCAColor"] = _pca_color_class()
        return globals()["PCAColor"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
