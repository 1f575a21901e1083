"""Mirror images, colours and crops."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules import transforms
from datamodules.transforms import (
    apply_colour,
    flip_batch,
    jitter_colour,
    pca_colour,
    pca_of_pixels,
    pca_offset,
    standard_normal,
)
from zoo.batch import PoseBatch
from zoo.crop import crop_image
from zoo.errors import DataError
from zoo.geometry import affine_apply, project
from zoo.skeleton import H36M_17

SIZE = 20


def example(batch: int = 4, frames: int = 2, seed: int = 0) -> PoseBatch:
    g = torch.Generator().manual_seed(seed)
    joints = 300 * torch.randn(batch, frames, 17, 3, generator=g)
    joints[:, :, 0] = 0
    root = torch.tensor([50.0, -30.0, 4000.0]) + torch.rand(batch, frames, 3, generator=g)
    intrinsics = torch.tensor([[120.0, 0.0, 7.0], [0.0, 118.0, 11.0], [0.0, 0.0, 1.0]])
    intrinsics = intrinsics.expand(batch, frames, 3, 3).clone()
    rotation = torch.linalg.qr(torch.randn(batch, 3, 3, generator=g)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None].sign()
    seen = torch.rand(batch, frames, 17, generator=g) < 0.7
    return PoseBatch(
        image=torch.rand(batch, frames, 3, SIZE, SIZE, generator=g),
        joints_3d=joints, root_3d=root, intrinsics=intrinsics, world_to_camera=rotation,
        joints_2d=project(joints + root[:, :, None], intrinsics),
        scores_2d=torch.rand(batch, frames, 17, generator=g), valid_2d=seen, valid_3d=~seen,
        occluded=torch.rand(batch, frames, 17, generator=g) < 0.3,
        crop_to_image=torch.randn(batch, frames, 2, 3, generator=g),
        subject=torch.arange(batch),
    )  # fmt: skip


def entries(batch: PoseBatch) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], batch)


# ---- mirror images ------------------------------------------------------------------------------


def test_flipping_twice_is_identity() -> None:
    batch = example()
    twice = flip_batch(flip_batch(batch, H36M_17, SIZE), H36M_17, SIZE)
    for key, value in entries(batch).items():
        assert torch.allclose(entries(twice)[key], value, atol=1e-5), key


def test_flipping_changes_every_entry_that_has_a_side() -> None:
    batch, flipped = example(), flip_batch(example(), H36M_17, SIZE)
    for key in set(entries(batch)) - {"subject"}:
        assert not torch.equal(entries(flipped)[key], entries(batch)[key]), key
    assert torch.equal(flipped["subject"], batch["subject"])


def test_flipped_camera_projects_the_flipped_pose() -> None:
    flipped = flip_batch(example(), H36M_17, SIZE)
    absolute = flipped["joints_3d"] + flipped["root_3d"][:, :, None]
    assert torch.allclose(project(absolute, flipped["intrinsics"]), flipped["joints_2d"], atol=1e-3)
    rotation = flipped["world_to_camera"]
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(4), atol=1e-5)


def test_flip_swaps_left_and_right() -> None:
    batch, flipped = example(), flip_batch(example(), H36M_17, SIZE)
    left, right = H36M_17.index("l_wrist"), H36M_17.index("r_wrist")
    assert torch.equal(flipped["valid_2d"][:, :, left], batch["valid_2d"][:, :, right])
    expected = batch["joints_3d"][:, :, right] * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.equal(flipped["joints_3d"][:, :, left], expected)
    expected = SIZE - 1 - batch["joints_2d"][:, :, right, 0]
    assert torch.allclose(flipped["joints_2d"][:, :, left, 0], expected)


def test_a_planted_dot_moves_with_its_joint() -> None:
    batch = example(batch=1, frames=1)
    image = torch.zeros(1, 1, 3, SIZE, SIZE)
    image[..., 13, 4] = 1
    joints = batch["joints_2d"].clone()
    joints[0, 0, H36M_17.index("l_ankle")] = torch.tensor([4.0, 13.0])
    dotted = cast(PoseBatch, {**batch, "image": image, "joints_2d": joints})
    flipped = flip_batch(dotted, H36M_17, SIZE)
    u, v = flipped["joints_2d"][0, 0, H36M_17.index("r_ankle")].long().tolist()
    assert flipped["image"][0, 0, 0, v, u] == 1
    assert flipped["image"].sum() == 3


def test_only_the_chosen_samples_flip() -> None:
    batch = example()
    which = torch.tensor([True, False, True, False])
    some, every = flip_batch(batch, H36M_17, SIZE, which), flip_batch(batch, H36M_17, SIZE)
    for key, value in entries(batch).items():
        for i in range(4):
            expected = entries(every)[key][i] if which[i] else value[i]
            assert torch.equal(entries(some)[key][i], expected), key


# ---- colours ------------------------------------------------------------------------------------


def test_no_strength_no_jitter() -> None:
    image, u = example()["image"], torch.rand(4, 3)
    assert torch.allclose(jitter_colour(image, u, 0.0), image, atol=1e-6)
    assert torch.allclose(jitter_colour(image, torch.full((4, 3), 0.5), 0.8), image, atol=1e-6)


@given(seed=st.integers(0, 100), strength=st.floats(0.05, 0.5))
@settings(max_examples=20)
def test_jitter_is_brightness_saturation_contrast(seed: int, strength: float) -> None:
    image = 0.3 + 0.3 * example(seed=seed)["image"]
    u = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    slow = []
    for picture, draw in zip(image, u, strict=True):
        brightness, saturation, contrast = (1 + strength * (2 * draw - 1)).tolist()
        out = picture * brightness
        grey = 0.299 * out[:, :1] + 0.587 * out[:, 1:2] + 0.114 * out[:, 2:]
        out = grey + saturation * (out - grey)
        out = grey.mean() + contrast * (out - grey.mean())
        slow.append(out.clamp(0, 1))
    assert torch.allclose(jitter_colour(image, u, strength), torch.stack(slow), atol=1e-5)


def test_pca_noise_zero_is_identity_and_otherwise_constant() -> None:
    image = 0.3 + 0.3 * example()["image"]
    values, vectors = pca_of_pixels(image)
    assert torch.equal(pca_colour(image, torch.zeros(4, 3), values, vectors), image)
    assert torch.equal(pca_colour(image, torch.ones(4, 3), 0 * values, vectors), image)
    shift = pca_colour(image, torch.randn(4, 3), values, vectors) - image
    assert (shift.std((3, 4)) < 1e-6).all()
    assert (shift.std((0,)) > 1e-3).any()
    assert torch.allclose(shift[:, 0], shift[:, 1], atol=1e-6)  # frames of a clip share it


def test_pca_noise_formula() -> None:
    values = torch.tensor([0.5, 0.2, 0.1])
    vectors = torch.linalg.qr(torch.randn(3, 3)).Q
    alpha = torch.tensor([[0.3, -0.2, 0.7]])
    expected = sum(alpha[0, i] * values[i] * vectors[:, i] for i in range(3))
    assert torch.allclose(pca_offset(alpha, values, vectors)[0], cast(Tensor, expected))


def test_pca_of_grey_pixels() -> None:
    grey = torch.rand(5, 1, 8, 8).expand(5, 3, 8, 8)
    values, vectors = pca_of_pixels(grey)
    assert torch.allclose(vectors[:, 0], torch.full((3,), 3**-0.5).double(), atol=1e-6)
    expected = grey[:, 0].double().flatten().std() * 3**0.5
    assert values[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values[1:].abs().max() < 1e-6


def test_pca_finds_planted_axes() -> None:
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64)).Q
    std = torch.tensor([0.2, 0.07, 0.02]).double()
    amount = torch.randn(200000, 3, generator=g).double() * std
    values, vectors = pca_of_pixels((0.5 + amount @ axes.mT).T.reshape(1, 3, 400, 500))
    assert torch.allclose(values, std, rtol=0.02)
    assert ((vectors * axes).sum(0).abs() > 0.999).all()


def test_standard_normal() -> None:
    z = standard_normal((torch.arange(100000) + 0.5) / 100000)
    assert abs(z.mean()) < 1e-3
    assert abs(z.std() - 1) < 1e-3
    assert torch.isfinite(standard_normal(torch.tensor([0.0, 1.0]))).all()


def test_apply_colour_is_a_matrix_per_sample() -> None:
    image = 0.4 + 0.2 * example()["image"]
    swap = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]).expand(4, 3, 3)
    out = apply_colour(image, swap, torch.tensor([0.0, 0.0, 0.1]).expand(4, 3))
    assert torch.allclose(out[:, :, 0], image[:, :, 1])
    assert torch.allclose(out[:, :, 2], image[:, :, 2] + 0.1)


def test_albumentations_is_imported_when_asked_for() -> None:
    code = (
        "import sys, datamodules.synthetic, datamodules.transforms, zoo.crop; "
        "assert 'albumentations' not in sys.modules; "
        "from datamodules.transforms import PCAColor; import os; "
        "assert 'albumentations' in sys.modules and os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pca_color_of_albumentations() -> None:
    transform_class: Any = transforms.PCAColor
    image = np.full((6, 5, 3), 120, dtype=np.uint8)
    still = transform_class(std=0.0, p=1.0)(image=image)["image"]
    assert np.array_equal(still, image)
    fixed = transform_class(std=0.3, values=(0.4, 0.0, 0.0),
                            vectors=((1, 0, 0), (0, 1, 0), (0, 0, 1)), p=1.0)  # fmt: skip
    seen = []
    for _ in range(20):
        out = fixed(image=image)["image"].astype(int) - 120
        assert (out == out[0, 0]).all()  # one colour for the whole image
        assert (out[..., 1:] == 0).all()  # along the axis that was given, whatever the image
        seen.append(int(out[0, 0, 0]))
    assert np.std(seen) == pytest.approx(255 * 0.4 * 0.3, rel=0.6)
    floats = fixed(image=np.full((4, 4, 3), 0.5, dtype=np.float32))["image"]
    assert floats.dtype == np.float32


# ---- crops --------------------------------------------------------------------------------------


@given(
    x=st.integers(2, 57), y=st.integers(2, 37), left=st.floats(-20, 1), top=st.floats(-20, 1),
    side=st.floats(60, 90), size=st.sampled_from([64, 97, 200, 256]),
)  # fmt: skip
@settings(max_examples=40)
def test_a_dot_lands_where_the_map_says(
    x: int, y: int, left: float, top: float, side: float, size: int
) -> None:
    assume(x + 1 <= left + side)  # the whole dot is inside
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[y, x] = 255
    crop, affine = crop_image(image, (left, top, left + side, top + side), size)
    assert crop.shape == (3, size, size)
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mass = crop[0].double()
    middle = torch.stack([(mass * u).sum(), (mass * v).sum()]) / mass.sum()
    back = affine_apply(affine.double()[None], middle[None, None])[0, 0]
    assert (back - torch.tensor([x, y])).abs().max() < 0.12


def test_the_whole_picture_is_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    crop, affine = crop_image(image, (-0.5, -0.5, 23.5, 23.5), 24)
    assert torch.allclose(affine, torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    assert torch.allclose(crop, torch.from_numpy(image).permute(2, 0, 1) / 255, atol=1e-6)


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checks[..., None], 3, 2)
    crop, _ = crop_image(image, (-0.5, -0.5, 63.5, 63.5), 8)
    assert (crop - 0.5).abs().max() < 0.02
    ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    large, affine = crop_image(ramp, (0.5, 0.5, 6.5, 6.5), 12)
    places = affine[0, 2] + affine[0, 0] * torch.arange(12)
    assert torch.allclose(large[0, 5] * 255, 10 * places, atol=1e-3)


def test_a_box_becomes_the_square_around_it() -> None:
    image = np.zeros((50, 80, 3), dtype=np.uint8)
    _, affine = crop_image(image, (20, 10, 30, 40), 32)
    corners = affine_apply(affine[None], torch.tensor([[[-0.5, -0.5], [31.5, 31.5]]]))[0]
    assert torch.allclose(corners, torch.tensor([[10.0, 10.0], [40.0, 40.0]]), atol=1e-4)


def test_edges_repeat_beyond_the_picture() -> None:
    image = np.full((10, 10, 3), 77, dtype=np.uint8)
    crop, _ = crop_image(image, (-30, -30, 40, 40), 16)
    assert torch.allclose(crop, torch.full_like(crop, 77 / 255), atol=1e-6)


def test_a_strided_picture_of_real_size_is_cropped() -> None:
    image = np.zeros((1200, 1800, 3), dtype=np.uint8)[:, ::-1]
    crop, _ = crop_image(image, (-0.5, -0.5, 1799.5, 1199.5), 64)
    assert crop.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("image", "box", "size"),
    [
        (np.zeros((4, 4), np.uint8), (0, 0, 3, 3), 8),
        (np.zeros((4, 4, 3), np.float32), (0, 0, 3, 3), 8),
        (np.zeros((0, 4, 3), np.uint8), (0, 0, 3, 3), 8),
        (np.zeros((4, 4, 3), np.uint8), (3, 0, 3, 3), 8),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, float("nan"), 3), 8),
        (np.zeros((4, 4, 3), np.uint8), (0, 0, 3, 3), 0),
    ],
)
def test_wrong_crops_are_one_line(image: Any, box: Any, size: int) -> None:
    with pytest.raises(DataError) as caught:
        crop_image(image, box, size)
    assert "\n" not in str(caught.value)
