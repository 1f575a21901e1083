"""Layouts, flips and maps between skeletons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import UsageError
from zoo.skeleton import H36M_17, SKELETONS, get_skeleton, joint_map, torso_bones

NAMES = sorted(SKELETONS)


def test_the_agreed_skeletons_exist_and_their_names_tell_their_size() -> None:
    assert set(NAMES) == {
        "h36m_17", "h36m_16", "mpii_16", "coco_17", "lsp_14", "humaneva_15", "humaneva_14",
        "kth_14", "mpi_inf_3dhp_17", "openpose_25", "halpe_26",
    }  # fmt: skip
    for name in NAMES:
        assert len(get_skeleton(name)) == int(name.rsplit("_", 1)[1])


@pytest.mark.parametrize("name", NAMES)
def test_each_skeleton_is_one_tree_with_mirrored_sides(name: str) -> None:
    skeleton = get_skeleton(name)
    assert len(set(skeleton.joints)) == len(skeleton)
    assert skeleton.parents.count(-1) == 1
    for joint in range(len(skeleton)):  # every joint reaches the root: no cycle
        steps = 0
        while skeleton.parents[joint] >= 0:
            joint, steps = skeleton.parents[joint], steps + 1
            assert steps < len(skeleton)
    assert [skeleton.flip[i] for i in skeleton.flip] == list(range(len(skeleton)))
    # The tree is symmetric: the mirrored bone is a bone.
    bones = set(skeleton.bones)
    assert {(skeleton.flip[c], skeleton.flip[p]) for c, p in bones} == bones


def test_known_orders() -> None:
    assert H36M_17.index("l_shoulder") == 11
    assert H36M_17.index("r_wrist") == 16
    h36m_16 = get_skeleton("h36m_16")
    assert h36m_16.joints == tuple(j for j in H36M_17.joints if j != "nose")
    # The parent list of the 16-joint form.
    assert list(h36m_16.parents[1:]) == [0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14]
    coco = get_skeleton("coco_17")
    assert [coco.index(j) for j in ("l_shoulder", "r_shoulder", "l_hip", "r_hip")] == [5, 6, 11, 12]
    mpii = get_skeleton("mpii_16")
    assert [mpii.index(j) for j in ("pelvis", "thorax", "upper_neck", "head_top", "l_wrist")] == [
        6, 7, 8, 9, 15,
    ]  # fmt: skip


def test_torso_bones_of_h36m() -> None:
    bones = {frozenset(bone) for bone in torso_bones(H36M_17)}
    assert bones == {frozenset(b) for b in [(0, 7), (7, 8), (0, 1), (0, 4), (8, 11), (8, 14)]}


def test_unknown_name_is_suggested() -> None:
    with pytest.raises(UsageError, match="did you mean coco_17"):
        joint_map("coco17")


@pytest.mark.parametrize("name", NAMES)
def test_the_map_to_itself_is_the_identity(name: str) -> None:
    skeleton = get_skeleton(name)
    joints = torch.randn(2, 3, len(skeleton), 3)
    valid = torch.rand(2, 3, len(skeleton)) > 0.3
    mapped, mapped_valid = joint_map(name, name)(joints, valid)
    assert torch.equal(mapped_valid, valid)
    assert torch.equal(mapped[valid], joints[valid])
    assert joint_map(name, name).missing == ()


def test_halpe_to_h36m_is_the_list_in_common_use() -> None:
    halpe = np.random.default_rng(0).normal(size=(4, 26, 2))
    order = [19, 12, 14, 16, 11, 13, 15, -1, 18, 0, 17, 5, 7, 9, 6, 8, 10]
    expected = halpe[:, order]
    expected[:, 7] = (halpe[:, 18] + halpe[:, 19]) / 2
    mapped, valid = joint_map("halpe_26")(halpe)
    assert valid.all()
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


def test_coco_to_h36m_recipes() -> None:
    coco = np.random.default_rng(1).normal(size=(5, 17, 2))
    mapped, valid = joint_map("coco_17", "h36m_17")(coco)
    pelvis = coco[:, [11, 12]].mean(1)
    thorax = coco[:, [5, 6]].mean(1)
    for joint, value in {
        "pelvis": pelvis,
        "thorax": thorax,
        "spine": (pelvis + thorax) / 2,
        "nose": coco[:, 0],
        "head_top": coco[:, [1, 2]].mean(1),
        "l_wrist": coco[:, 9],
        "r_ankle": coco[:, 16],
    }.items():
        np.testing.assert_allclose(mapped[:, H36M_17.index(joint)], value, atol=1e-12)
    assert valid.all()


def test_dhp_to_h36m_follows_the_names() -> None:
    poses = np.random.default_rng(2).normal(size=(17, 3))
    mapped, _ = joint_map("mpi_inf_3dhp_17")(poses)
    order = [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]
    np.testing.assert_array_equal(mapped, poses[order])


def test_what_has_no_source_is_missing_and_finite() -> None:
    mapping = joint_map("mpii_16", "h36m_17")
    assert mapping.missing == ("nose",)
    assert set(mapping.derived) == {"spine"}
    mapped, valid = mapping(torch.full((16, 2), 7.0))
    assert valid.tolist() == [j != "nose" for j in H36M_17.joints]
    assert mapped[H36M_17.index("nose")].tolist() == [0.0, 0.0]
    assert set(joint_map("h36m_17", "coco_17").missing) == {"l_eye", "r_eye", "l_ear", "r_ear"}


def test_a_derived_joint_needs_all_its_sources() -> None:
    coco = torch.randn(17, 2)
    valid = torch.ones(17, dtype=torch.bool)
    valid[11] = False  # l_hip
    coco[11] = torch.nan
    mapped, mapped_valid = joint_map("coco_17")(coco, valid)
    invalid = {H36M_17.joints[i] for i in range(17) if not mapped_valid[i]}
    assert invalid == {"l_hip", "pelvis", "spine"}
    assert mapped.isfinite().all()
    assert (mapped[~mapped_valid] == 0).all()


def test_scores_take_the_smallest_source() -> None:
    scores = np.linspace(0.1, 0.9, 17).astype(np.float32)
    coco = np.zeros((17, 2), dtype=np.float32)
    coco[0] = np.nan  # a detector without a nose
    mapped, out = joint_map("coco_17")(coco, scores)
    assert out.dtype == np.float32
    assert mapped.dtype == np.float32
    assert out[H36M_17.index("pelvis")] == scores[11]
    assert out[H36M_17.index("spine")] == scores[5]
    assert out[H36M_17.index("nose")] == 0
    assert np.isfinite(mapped).all()


@given(source=st.sampled_from(NAMES), target=st.sampled_from(NAMES), seed=st.integers(0, 2**31 - 1))
def test_numpy_and_torch_agree_and_maps_commute_with_mirroring(
    source: str, target: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = get_skeleton(source), get_skeleton(target)
    joints = rng.normal(size=(2, len(a), 3))
    valid = rng.random((2, len(a))) > 0.3
    mapping = joint_map(source, target)
    mapped, out = mapping(joints, valid)
    mapped_t, out_t = mapping(torch.from_numpy(joints), torch.from_numpy(valid))
    np.testing.assert_allclose(mapped, mapped_t.numpy(), atol=1e-12)
    np.testing.assert_array_equal(out, out_t.numpy())
    assert out_t.dtype == torch.bool
    # Swapping left and right before or after the map is the same.
    swapped, swapped_out = mapping(joints[:, list(a.flip)], valid[:, list(a.flip)])
    np.testing.assert_allclose(swapped, mapped[:, list(b.flip)], atol=1e-12)
    np.testing.assert_array_equal(swapped_out, out[:, list(b.flip)])


@given(source=st.sampled_from(NAMES), target=st.sampled_from(NAMES))
def test_maps_are_affine_so_they_commute_with_moving_a_pose(source: str, target: str) -> None:
    mapping = joint_map(source, target)
    joints = np.random.default_rng(3).normal(size=(len(get_skeleton(source)), 3))
    shift = np.array([10.0, -4.0, 3.0])
    mapped, valid = mapping(joints)
    moved, _ = mapping(joints + shift)
    np.testing.assert_allclose(moved[valid], mapped[valid] + shift, atol=1e-12)


def test_a_map_passes_gradients() -> None:
    joints = torch.randn(17, 3, dtype=torch.float64, requires_grad=True)
    mapping = joint_map("coco_17")
    assert torch.autograd.gradcheck(lambda x: mapping(x)[0], joints)


def test_wrong_shapes_say_what_is_right() -> None:
    with pytest.raises(UsageError, match="coco_17 has 17 joints"):
        joint_map("coco_17")(np.zeros((16, 2)))
    with pytest.raises(UsageError, match="validity must be"):
        joint_map("coco_17")(np.zeros((4, 17, 2)), np.ones(17))
