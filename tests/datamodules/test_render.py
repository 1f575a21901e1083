"""The renderer against a slow plain one, and what must be true of every picture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.figure import (
    GIRTHS,
    NUM_OUTFIT_UNIFORMS,
    PARTS,
    Cones,
    build_figure,
    outfit_from_uniforms,
)
from datamodules.rays import depth_buffer, figure_boxes, joints_occluded, quadratic_forms, trace
from datamodules.render import NUM_SCENE_UNIFORMS, Scene, occluding_boxes, render
from zoo.skeleton import H36M_17

HIDDEN_BOX = (-1.0, -1.0, -1.0, -1.0)

# A person who stands upright, 17 joints, mm: x to the person's left, y up, z to the front.
STANDING = {
    "pelvis": (0, 0, 0),
    "r_hip": (-120, 0, 0), "r_knee": (-125, -440, 20), "r_ankle": (-130, -875, -10),
    "l_hip": (120, 0, 0), "l_knee": (125, -440, 20), "l_ankle": (130, -875, -10),
    "spine": (0, 230, 0), "thorax": (0, 485, 0), "nose": (0, 610, 15), "head_top": (0, 720, 0),
    "l_shoulder": (165, 485, 0), "l_elbow": (300, 240, 0), "l_wrist": (360, 10, 60),
    "r_shoulder": (-165, 485, 0), "r_elbow": (-300, 240, 0), "r_wrist": (-360, 10, 60),
}  # fmt: skip


def person(azimuth: float = 0.0, distance: float = 4500.0, **moved: tuple[float, ...]) -> Tensor:
    """(17, 3) mm, camera frame; azimuth 0 faces the camera."""
    body = np.array([moved.get(j, STANDING[j]) for j in H36M_17.joints], dtype=np.float64)
    x, y, z = body.T
    cos, sin = math.cos(azimuth), math.sin(azimuth)
    # Facing the camera, the person's left is to the right of the image, the front is towards us.
    return torch.tensor(
        np.stack([cos * x + sin * z, -y, distance + sin * x - cos * z], -1), dtype=torch.float64
    )


def scene(joints: Tensor, size: int, seed: int = 0, margin: float = 1.15) -> Scene:
    """Crops around people (N, 17, 3), random clothes and surroundings."""
    count = len(joints)
    generator = torch.Generator().manual_seed(seed)
    outfit = torch.rand(count, NUM_OUTFIT_UNIFORMS, generator=generator)
    girth = torch.ones(count, len(GIRTHS))
    hair = outfit_from_uniforms(outfit).hair_length
    camera = torch.tensor([[1145.0, 0, 500], [0, 1145, 500], [0, 0, 1]], dtype=torch.float64)
    box = figure_boxes(build_figure(joints, girth, hair.double()), camera.expand(count, 3, 3))
    side = margin * (box[:, 2:] - box[:, :2]).amax(-1)
    zoom = size / side
    intrinsics = camera.repeat(count, 1, 1) * zoom[:, None, None]
    intrinsics[:, 2, 2] = 1
    corner = (box[:, :2] + box[:, 2:]) / 2 - side[:, None] / 2
    intrinsics[:, :2, 2] = (camera[:2, 2] - corner) * zoom[:, None] - 0.5
    return Scene(
        joints.float(), intrinsics.float(), girth, outfit,
        torch.rand(count, NUM_SCENE_UNIFORMS, generator=generator),
        torch.tensor(HIDDEN_BOX).repeat(count, 2, 1),
    )  # fmt: skip


def crowd(count: int, seed: int = 0) -> Tensor:
    """People of all azimuths with bent limbs."""
    rng = np.random.default_rng(seed)
    people = []
    for i in range(count):
        moved = {}
        for j in ("l_elbow", "r_elbow", "l_knee", "r_knee"):
            moved[j] = tuple(np.array(STANDING[j]) + rng.normal(0, 90, 3))
        for side in "lr":
            for a, b, length in (("elbow", "wrist", 255.0), ("knee", "ankle", 435.0)):
                way = rng.normal(0, 1, 3) + (np.array([0, -1.5, 0]) if a == "knee" else 0)
                start = np.array(moved[f"{side}_{a}"])
                moved[f"{side}_{b}"] = tuple(start + length * way / np.linalg.norm(way))
        people.append(person(2 * math.pi * i / count, rng.uniform(3000, 5500), **moved))
    return torch.stack(people)


def figures(the_scene: Scene) -> Cones:
    hair = outfit_from_uniforms(the_scene.outfit).hair_length
    return build_figure(the_scene.joints.double(), the_scene.girth, hair.double())


def slow_hit(cones: Cones, n: int, p: int, direction: np.ndarray) -> tuple[float, float]:
    """Depth by brute force, and by how much (mm, squashed) the ray enters the cone at most.

    A round cone is a union of balls: takes 2001 of them, one after the other.
    """
    start, end = cones.start[n, p].numpy(), cones.end[n, p].numpy()
    metric = cones.metric[n, p].numpy()
    r0, r1 = float(cones.radius_start[n, p]), float(cones.radius_end[n, p])
    s = np.linspace(0, 1, 2001)
    centre = start + s[:, None] * (end - start)
    radius = r0 + s * (r1 - r0)
    dd = direction @ metric @ direction
    dc = centre @ metric @ direction
    nearest = np.einsum("si,ij,sj->s", centre, metric, centre) - dc**2 / dd
    depth_inside = radius - np.sqrt(np.maximum(nearest, 0))
    hit = depth_inside > 0
    if not hit.any():
        return math.inf, float(depth_inside.max())
    t = (dc[hit] - np.sqrt(dd * (radius[hit] ** 2 - nearest[hit]))) / dd
    return float(t.min()), float(depth_inside.max())


@pytest.mark.parametrize("dense", [False, True])
def test_equals_a_slow_float64_caster(dense: bool) -> None:
    size = 14
    the_scene = scene(crowd(3), size)
    cones = figures(the_scene)
    intrinsics = the_scene.intrinsics.double()
    buffer = depth_buffer(cones, quadratic_forms(cones), intrinsics, size, dense)
    hits = 0
    for n in range(3):
        inverse = np.linalg.inv(intrinsics[n].numpy())
        for v in range(size):
            for u in range(size):
                ray = inverse @ np.array([u, v, 1.0])
                slow = [slow_hit(cones, n, p, ray) for p in range(len(PARTS))]
                depths = np.array([t for t, _ in slow])
                inside = max(entered for _, entered in slow)
                hit = bool(buffer.hit[n, v * size + u])
                if abs(inside) < 0.02:  # on the very edge
                    continue
                assert hit == (inside > 0), (n, u, v, inside)
                if hit:
                    hits += 1
                    depth = float(buffer.depth[n, v * size + u])
                    assert abs(depth - depths.min()) < 0.3, (n, u, v)
                    part = int(buffer.part[n, v * size + u])
                    assert depths[part] - depths.min() < 0.3
    assert hits > 60


def test_axis_towards_the_camera() -> None:
    """A cone seen along its axis, from either end: the side's quadratic degenerates."""
    joints = person()[None]
    cones = figures(scene(joints, 16))
    number = len(PARTS)
    for r0, r1 in ((50.0, 20.0), (20.0, 50.0), (30.0, 30.0), (80.0, 10.0)):
        start = torch.tensor([0.0, 0.0, 4000.0], dtype=torch.float64).expand(1, number, 3)
        end = torch.tensor([1.0, 0.0, 3700.0], dtype=torch.float64).expand(1, number, 3)
        one = torch.ones(1, number, dtype=torch.float64)
        same = cones._replace(
            start=start, end=end, radius_start=r0 * one, radius_end=r1 * one,
            metric=torch.eye(3, dtype=torch.float64).expand(1, number, 3, 3),
        )  # fmt: skip
        for x in (-0.012, -0.006, 0.0, 0.0003, 0.004, 0.011, 0.02):
            ray = np.array([x, 0.001, 1.0])
            fast = float(trace(same, torch.tensor(ray)[None, None])[0, 0, 0])
            slow, entered = slow_hit(same, 0, 0, ray)
            if abs(entered) > 0.02:
                assert fast == slow or abs(fast - slow) < 0.5, (r0, r1, x)


def test_both_ways_agree() -> None:
    the_scene = scene(crowd(6), 48)
    tiled, dense = render(the_scene, 48, dense=False), render(the_scene, 48, dense=True)
    assert (tiled.part != dense.part).float().mean() < 1e-4
    same = tiled.part == dense.part
    assert torch.allclose(tiled.depth[same], dense.depth[same], rtol=1e-6, atol=0.05)
    assert torch.equal(tiled.occluded, dense.occluded)
    assert (tiled.image - dense.image).abs().mean() < 1e-5


@pytest.mark.parametrize("size", [33, 64, 97])
def test_any_size(size: int) -> None:
    drawn = render(scene(crowd(2), size), size)
    assert drawn.image.shape == (2, 3, size, size)
    assert drawn.image.dtype == torch.float32
    assert drawn.image.min() >= 0
    assert drawn.image.max() <= 1
    assert 0.03 < (drawn.part >= 0).float().mean() < 0.6
    assert torch.isinf(drawn.depth[drawn.part < 0]).all()


def test_visible_joints_lie_on_the_person() -> None:
    size = 96
    the_scene = scene(crowd(24), size)
    drawn = render(the_scene, size)
    pixels = the_scene.joints @ the_scene.intrinsics.mT
    pixels = (pixels[..., :2] / pixels[..., 2:]).round().long()
    seen = ~drawn.occluded
    assert seen.float().mean() > 0.5
    for n, j in seen.nonzero().tolist():
        u, v = pixels[n, j].tolist()
        assert drawn.part[n, v, u] >= 0, (n, H36M_17.joints[j])


def test_hidden_joints_are_behind_something() -> None:
    size = 192
    the_scene = scene(crowd(24), size)
    drawn = render(the_scene, size)
    pixels = the_scene.joints @ the_scene.intrinsics.mT
    pixels = (pixels[..., :2] / pixels[..., 2:]).round().long()
    hidden = drawn.occluded.nonzero().tolist()
    assert len(hidden) > 20
    behind = 0
    for n, j in hidden:
        u, v = pixels[n, j].tolist()
        # Half a pixel from the joint the edge of the thing in front may have been passed.
        near = drawn.depth[n, max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2].min()
        assert near < the_scene.joints[n, j, 2] - 40, (n, H36M_17.joints[j])
        behind += 1
    assert behind == len(hidden)


def occluded_names(joints: Tensor, size: int = 64) -> set[str]:
    drawn = render(scene(joints[None], size), size)
    return {H36M_17.joints[j] for j in drawn.occluded[0].nonzero()[:, 0].tolist()}


def test_hand_behind_and_before_the_body() -> None:
    assert occluded_names(person()) == set()
    behind = {"r_elbow": (-290, 285, -120), "r_wrist": (-60, 245, -190)}
    assert occluded_names(person(**behind)) == {"r_wrist"}
    # Seen from behind, the same hand is in front of the spine.
    assert "spine" in occluded_names(person(math.pi, **behind))
    assert "r_wrist" not in occluded_names(person(math.pi, **behind))


def test_thigh_towards_the_camera_hides_the_hip() -> None:
    sitting = {"l_knee": (120, 30, 440), "l_ankle": (120, -400, 440)}
    assert "l_hip" in occluded_names(person(**sitting))
    assert "l_knee" not in occluded_names(person(**sitting))


def test_side_view_hides_the_far_side() -> None:
    names = occluded_names(person(math.pi / 2))
    far = "r" if "r_hip" in names else "l"
    assert {f"{far}_hip", f"{far}_shoulder"} <= names
    near = "l" if far == "r" else "r"
    assert not {f"{near}_hip", f"{near}_shoulder", f"{near}_knee"} & names


def test_boxes_and_the_border_hide_joints() -> None:
    size = 64
    the_scene = scene(person()[None], size)
    everything = torch.tensor([[[-0.1, 1.1, -0.1, 1.1], list(HIDDEN_BOX)]])
    drawn = render(the_scene._replace(boxes=everything), size, noise=0.0)
    assert drawn.occluded.all()
    assert drawn.image[0, :, 5].std(-1).max() < 1e-6  # the box is all there is
    upper = torch.tensor([[[-0.1, 1.1, -0.1, 0.5], list(HIDDEN_BOX)]])
    hidden = render(the_scene._replace(boxes=upper), size).occluded[0]
    pixels = the_scene.joints[0] @ the_scene.intrinsics[0].mT
    above = (pixels[:, 1] / pixels[:, 2] + 0.5) / size < 0.5
    assert torch.equal(hidden, above)
    # A crop of the upper half: what is outside does not show.
    moved = the_scene.intrinsics.clone()
    moved[:, 1, 2] += size / 2
    outside = render(the_scene._replace(intrinsics=moved), size).occluded[0]
    below = (pixels[:, 1] / pixels[:, 2]) + size / 2 > size - 0.5
    assert torch.equal(outside, below)


def test_boxes_are_drawn_with_their_probability() -> None:
    u = torch.rand(4000, 10, generator=torch.Generator().manual_seed(0))
    boxes = occluding_boxes(u, 0.3)
    used = boxes[..., 1] > boxes[..., 0]
    assert abs(used.float().mean() - 0.3) < 0.02
    assert not (occluding_boxes(u, 0.0)[..., 1] > 0).any()


def test_mirrored_person_is_the_mirrored_picture() -> None:
    """Left and right carry the same colours; only geometry tells them apart."""
    size = 64
    joints = crowd(4)
    the_scene = scene(joints, size)
    plain = the_scene.outfit.clone()
    plain[:, 15], plain[:, 18] = 0.0, 1.0  # no pattern
    still = torch.full_like(the_scene.scene, 0.5)
    mirrored = joints[:, list(H36M_17.flip)] * torch.tensor([-1.0, 1.0, 1.0])
    intrinsics = the_scene.intrinsics.clone()
    intrinsics[:, 0, 2] = size - 1 - intrinsics[:, 0, 2]
    one = the_scene._replace(outfit=plain, scene=still)
    other = one._replace(joints=mirrored.float(), intrinsics=intrinsics)
    a, b = render(one, size, noise=0.0), render(other, size, noise=0.0)
    swapped = [
        PARTS.index({"l_": "r_", "r_": "l_"}.get(p[:2], p[:2]) + p[2:]) for p in PARTS
    ]  # fmt: skip
    part = torch.where(b.part >= 0, torch.tensor(swapped)[b.part], -1).flip(-1)
    # Where two cones touch at the same depth, either may win: the ball of a shared joint.
    assert (a.part != part).float().mean() < 0.02
    assert torch.equal(a.part >= 0, part >= 0)
    on = a.part >= 0
    assert torch.allclose(a.depth[on], b.depth.flip(-1)[on], atol=0.1)
    assert torch.equal(a.occluded, b.occluded[:, list(H36M_17.flip)])


def test_face_in_front_hair_behind() -> None:
    size = 128
    head = [PARTS.index(p) for p in ("head", "nose", "hair")]
    the_scene = scene(torch.stack([person(), person(math.pi)]), size)
    outfit = the_scene.outfit.clone()
    outfit[:, 27], outfit[:, 28] = 0.0, 0.0  # light skin, black hair
    drawn = render(the_scene._replace(outfit=outfit), size, noise=0.0)
    mask = torch.isin(drawn.part, torch.tensor(head))
    front, back = (drawn.image[i].mean(0)[mask[i]].mean() for i in range(2))
    assert front > back + 0.15


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    size = 40
    the_scene = scene(crowd(5), size)
    whole = render(the_scene, size)
    alone = render(Scene(*(value[3:4] for value in the_scene)), size)
    assert torch.equal(whole.part[3:4], alone.part)
    assert torch.allclose(whole.image[3:4], alone.image, atol=1e-5)


def test_precision_does_not_depend_on_the_users_settings() -> None:
    size = 64
    the_scene = scene(crowd(4), size)
    before = render(the_scene, size)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            after = render(the_scene, size)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(before.depth, after.depth)
    assert after.image.dtype == torch.float32
    person_pixels = (before.part >= 0)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(before.image[person_pixels], after.image[person_pixels])


def test_supersampling_smooths_the_same_picture() -> None:
    size = 48
    the_scene = scene(crowd(2), size)
    one = render(the_scene, size, noise=0.0)
    four = render(the_scene, size, noise=0.0, supersample=4)
    assert four.image.shape == one.image.shape
    mass = [(d.image - d.image[:, :, :1, :1]).abs().mean() for d in (one, four)]
    assert abs(mass[0] - mass[1]) < 0.02
    assert torch.equal(one.occluded, four.occluded)
    assert (one.image - four.image).abs().mean() < 0.03


def test_nobody_behind_the_camera() -> None:
    the_scene = scene(person()[None], 32)
    away = the_scene.joints * torch.tensor([1.0, 1.0, -1.0])
    drawn = render(the_scene._replace(joints=away), 32, dense=True)
    assert (drawn.part < 0).all()
    assert torch.isfinite(drawn.image).all()


def test_boxes_hold_the_silhouette() -> None:
    size = 128
    the_scene = scene(crowd(8), size, margin=1.3)
    drawn = render(the_scene, size)
    box = figure_boxes(figures(the_scene), the_scene.intrinsics.double())
    for n in range(8):
        rows, columns = (drawn.part[n] >= 0).nonzero(as_tuple=True)
        seen = torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()])
        grown = box[n] - seen
        assert (grown[:2] < 1.5).all()  # holds it ...
        assert (grown[2:] > -1.5).all()
        assert grown.abs().max() < 4  # ... and not much more


def test_margin_of_occlusion() -> None:
    the_scene = scene(crowd(12), 64)
    cones = figures(the_scene)
    arguments = (cones, the_scene.joints, the_scene.intrinsics, the_scene.boxes, 64)
    strict, loose = (joints_occluded(*arguments, margin=m) for m in (10.0, 400.0))
    assert (strict | ~loose).all()
    assert strict.sum() > loose.sum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_without_waiting() -> None:
    size = 96
    the_scene = scene(crowd(8), size)
    cpu = render(the_scene, size)
    there = Scene(*(value.cuda() for value in the_scene))
    render(there, size)  # constants reach the device once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu = render(there, size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (gpu.part.cpu() != cpu.part).float().mean() < 1e-3
    assert (gpu.image.cpu() - cpu.image).abs().mean() < 1e-3
    assert (gpu.occluded.cpu() == cpu.occluded).all()


def test_skin_does_not_shine_through_clothes() -> None:
    size = 96
    the_scene = scene(crowd(4), size)
    outfit = the_scene.outfit.clone()
    outfit[:, 21], outfit[:, 22] = 0.6, 0.9  # long sleeves
    outfit[:, 23], outfit[:, 24] = 0.9, 0.9  # long trousers
    pictures = []
    for skin in (0.0, 1.0):
        outfit[:, 27] = skin
        pictures.append(render(the_scene._replace(outfit=outfit.clone()), size, noise=0.0))
    changed = (pictures[0].image != pictures[1].image).any(1)
    bare = ("head", "nose", "hair", "neck", "r_hand", "l_hand", "r_forearm", "l_forearm",
            "r_shank", "l_shank")  # fmt: skip
    part = pictures[0].part
    parts = {PARTS[p] for p in part[changed].unique().tolist()}
    assert "head" in parts
    assert parts <= set(bare)
