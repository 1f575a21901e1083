"""``zoo.lift``: planted people, layouts, sizes, places, many at once, the command line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import zoo
from datamodules.bodies import PARENTS, bodies, retarget
from datamodules.motion import MotionBank
from zoo.checkpoint import save_weights
from zoo.cli import main
from zoo.errors import CheckpointError, UsageError
from zoo.keypoints import Keypoints
from zoo.lift2d import Lifted, lift_arrays, make_lift, mean_stature, place_root, to_prior
from zoo.lifting import PPCALift
from zoo.pose import load_poses
from zoo.predict_keypoints import predict_keypoints
from zoo.prior import Prior, pose_size
from zoo.prior_files import load_prior, prior_names
from zoo.registry import get_method, resolve_class, resource, section
from zoo.skeleton import H36M_17, SKELETONS, get_skeleton, joint_map

Array = npt.NDArray[np.float64]
FOCAL = np.array([[1100.0, 0, 500], [0, 1100, 400], [0, 0, 1]])


@pytest.fixture(scope="module")
def layer() -> PPCALift:
    return make_lift(load_prior("cmu-mixture"))


@pytest.fixture(scope="module")
def people() -> Array:
    """(60, 17, 3) mm, world: people of the motion generator, of a held-out split."""
    bank = MotionBank.generated(1, splits=["val"], recordings={"val": 1}, seconds=2.0)
    rng = np.random.default_rng(0)
    rows = rng.choice(bank.num_frames, 60, replace=False)
    lengths = np.stack([body.lengths for body in bodies("val")])
    return retarget(bank.positions[rows], PARENTS, lengths[rng.integers(len(lengths), size=60)])


def camera(pitch: float, azimuth: float = 0.0) -> Array:
    c, s, ca, sa = math.cos(pitch), math.sin(pitch), math.cos(azimuth), math.sin(azimuth)
    level = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    turn = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ level @ turn


def views(world: Array, pitch: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """(N, 3, 3) cameras and the poses relative to the pelvis in their frames."""
    rng = np.random.default_rng(seed)
    rotations = np.stack([camera(pitch, a) for a in rng.uniform(0, 2 * math.pi, len(world))])
    return rotations, (world - world[:, :1]) @ rotations.transpose(0, 2, 1)


def seen(truth: Array, root: Array, lens: Array = FOCAL) -> Array:
    """(N, J, 2) px of a pinhole camera."""
    image = (truth + root[:, None]) @ lens.T
    return image[..., :2] / image[..., 2:]


def error(found: Lifted, truth: Array) -> float:
    """Mean error in mm over lifted people, after scaling each to the truth's size."""
    own = torch.as_tensor(found.joints_3d[found.lifted]).double()
    real = torch.as_tensor(truth[found.lifted])
    own = own * (pose_size(real) / pose_size(own))[:, None, None]
    return float((own - real).norm(dim=2).mean())


# ---- the shipped priors -------------------------------------------------------------------------


def test_the_shipped_priors_are_whole_and_of_the_registered_sizes() -> None:
    assert {"cmu-mixture", "cmu-single"} <= set(prior_names())
    for name, entry in section("priors").items():
        prior = load_prior(name)
        assert (prior.components, prior.basis_size) == (entry["components"], entry["basis"])
        assert entry["sha256"][:8] in entry["file"]
        assert resource(entry["file"]).stat().st_size < 200_000
        assert prior.calibration
        # People of ordinary height.
        assert 1600 < mean_stature(prior) < 1850


def test_unknown_or_damaged_priors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="did you mean cmu-mixture"):
        load_prior("cmu-mixtur")
    with pytest.raises(CheckpointError, match="no such file"):
        load_prior(tmp_path / "none.safetensors")
    import zoo.prior_files as files

    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(resource(section("priors")["cmu-single"]["file"]).read_bytes()[:-1] + b"x")
    monkeypatch.setattr(files, "resource", lambda _: damaged)
    with pytest.raises(CheckpointError, match="is not the registered"):
        files._shipped.__wrapped__("cmu-single")


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_every_layout_keeps_the_joints_it_shares(name: str) -> None:
    source = get_skeleton(name)
    joints = np.random.default_rng(0).normal(size=(3, len(source), 2))
    points, weights = to_prior(joints, np.ones(joints.shape[:2]), source, H36M_17)
    shared = [j for j in H36M_17.joints if j in source.joints and j[:2] in ("l_", "r_")]
    assert len(shared) >= 12
    for joint in shared:
        np.testing.assert_array_equal(
            points[:, H36M_17.index(joint)], joints[:, source.index(joint)]
        )
        assert (weights[:, H36M_17.index(joint)] == 1).all()


def test_joints_made_of_used_ones_are_left_to_the_prior() -> None:
    source = get_skeleton("coco_17")
    joints = np.random.default_rng(0).normal(size=(1, 17, 2))
    points, weights = to_prior(joints, np.ones((1, 17)), source, H36M_17)
    for joint in ("pelvis", "spine", "thorax", "nose"):
        assert weights[0, H36M_17.index(joint)] == 0
    ears = joints[0, [source.index("l_ear"), source.index("r_ear")]].mean(0)
    np.testing.assert_allclose(points[0, H36M_17.index("head_top")], ears)


def test_the_head_falls_back_on_what_is_seen() -> None:
    source, top = get_skeleton("coco_17"), H36M_17.index("head_top")
    joints = np.random.default_rng(0).normal(size=(3, 17, 2))
    scores = np.ones((3, 17))
    scores[1, source.index("l_ear")] = 0
    scores[2, [source.index("l_ear"), source.index("r_ear")]] = 0
    points, weights = to_prior(joints, scores, source, H36M_17)
    np.testing.assert_array_equal(points[1, top], joints[1, source.index("r_ear")])
    np.testing.assert_array_equal(points[2, top], joints[2, source.index("nose")])
    assert weights[0, top] > weights[1, top] > weights[2, top] > 0


def test_layouts_of_the_same_person_agree(layer: PPCALift, people: Array) -> None:
    rotations, truth = views(people)
    px = 0.25 * truth[..., :2] + 300
    whole = lift_arrays(px, "h36m_17", world_to_camera=rotations, prior=layer)
    alone = error(whole, truth)
    limit = {"h36m_16": 5.0, "humaneva_15": 8.0, "coco_17": 25.0, "mpii_16": 15.0, "lsp_14": 25.0}
    for name, more in limit.items():
        mapped, valid = joint_map("h36m_17", name)(px)
        found = lift_arrays(mapped, name, visible=valid, world_to_camera=rotations, prior=layer)
        assert found.lifted.all()
        assert error(found, truth) < alone + more, name


# ---- what comes out -----------------------------------------------------------------------------


def test_one_pose_equals_itself_among_many(layer: PPCALift, people: Array) -> None:
    _, truth = views(people[:40], pitch=0.2)
    px = 0.3 * truth[..., :2] + 200
    visible = np.random.default_rng(3).random(px.shape[:2]) > 0.2
    scores = np.random.default_rng(4).uniform(0.3, 1, px.shape[:2])
    many = zoo.lift(px, "h36m_17", visible=visible, scores=scores, prior=layer)
    assert [p.person for p in many] == list(range(40))
    for k in (0, 17, 39):
        (one,) = zoo.lift(px[k], "h36m_17", visible=visible[k], scores=scores[k], prior=layer)
        np.testing.assert_allclose(one.joints_3d, many[k].joints_3d, atol=0.1)
        assert one.std_3d is not None
        np.testing.assert_allclose(one.std_3d, many[k].std_3d, rtol=1e-3)


def test_scale_shift_and_third_column_change_nothing(layer: PPCALift, people: Array) -> None:
    _, truth = views(people[:5])
    px = 0.3 * truth[..., :2]
    scores = np.random.default_rng(4).uniform(0.3, 1, px.shape[:2])
    first = lift_arrays(px, "h36m_17", scores=scores, prior=layer)
    third = np.concatenate((4.0 * px + 1000, scores[..., None]), 2)
    second = lift_arrays(torch.from_numpy(third), "h36m_17", prior=layer)
    np.testing.assert_allclose(first.joints_3d, second.joints_3d, atol=0.05)
    np.testing.assert_allclose(4 * first.joints_2d + 1000, second.joints_2d, atol=0.05)


def test_missing_joints_are_not_read_and_are_filled_in(layer: PPCALift, people: Array) -> None:
    rotations, truth = views(people)
    px = 0.3 * truth[..., :2]
    hidden = [H36M_17.index(j) for j in ("l_wrist", "r_ankle", "spine", "nose")]
    scores = np.ones(px.shape[:2])
    scores[:, hidden] = 0
    broken = px.copy()
    broken[:, hidden[:2]] = np.nan
    broken[:, hidden[2:]] = 1e30
    clean = lift_arrays(px, "h36m_17", scores=scores, world_to_camera=rotations, prior=layer)
    dirty = lift_arrays(broken, "h36m_17", world_to_camera=rotations, prior=layer)
    np.testing.assert_array_equal(clean.joints_3d, dirty.joints_3d)
    assert np.isfinite(clean.joints_2d).all()
    assert (clean.scores_2d[:, hidden] == 0).all()
    # What was hidden is less sure than what was seen.
    ankles = [H36M_17.index("r_ankle"), H36M_17.index("l_ankle")]
    assert clean.std_3d[:, ankles[0]].mean() > 1.2 * clean.std_3d[:, ankles[1]].mean()


def test_people_with_too_few_joints_are_left_out_with_a_reason(
    layer: PPCALift, people: Array
) -> None:
    px = 0.3 * views(people[:3])[1][..., :2]
    visible = np.ones(px.shape[:2], bool)
    visible[1, 4:] = False
    with pytest.warns(UserWarning, match="1 of 3 people left out, fewer than 5 joints: person 1"):
        poses = zoo.lift(px, "h36m_17", visible=visible, prior=layer)
    assert [p.person for p in poses] == [0, 2]
    found = lift_arrays(px, "h36m_17", visible=visible, prior=layer)
    np.testing.assert_array_equal(found.lifted, [True, False, True])
    assert np.isnan(found.joints_3d[1]).all()
    assert found.joints_seen.tolist() == [17, 4, 17]
    with pytest.warns(UserWarning, match="1 of 1 people left out"):
        assert zoo.lift(np.full((17, 2), 5.0), "h36m_17", prior=layer) == []
    visible[1, 4] = True
    assert lift_arrays(px, "h36m_17", visible=visible, prior=layer).lifted.all()


def test_nobody_is_an_empty_list(layer: PPCALift) -> None:
    assert zoo.lift([], prior=layer) == []
    assert zoo.lift(np.zeros((0, 17, 2)), prior=layer) == []


def test_height_scales_the_person(layer: PPCALift, people: Array) -> None:
    px = 0.3 * views(people[:4])[1][..., :2]
    usual = lift_arrays(px, "h36m_17", prior=layer)
    tall = lift_arrays(px, "h36m_17", height_mm=1800, prior=layer)
    factor = 1800 / mean_stature(layer.prior)
    np.testing.assert_allclose(tall.joints_3d, factor * usual.joints_3d, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(tall.std_3d, factor * usual.std_3d, rtol=1e-4)
    np.testing.assert_allclose(tall.joints_2d, usual.joints_2d, atol=1e-2)
    sizes = pose_size(torch.as_tensor(usual.joints_3d).double())
    np.testing.assert_allclose(sizes, float(layer.size_mm), rtol=1e-5)


# ---- cameras ------------------------------------------------------------------------------------


def test_the_root_of_an_exact_pose_is_exact() -> None:
    """Only rounding: the reprojection of the true pose is exact at the true root."""
    rng = np.random.default_rng(0)
    pose = torch.as_tensor(rng.normal(0, 300, (50, 17, 3)))
    root = torch.as_tensor(rng.uniform((-1500, -800, 2000), (1500, 800, 9000), (50, 3)))
    at = pose + root[:, None]
    weights = torch.as_tensor(rng.uniform(0.2, 1, (50, 17)))
    rays = at[..., :2] / at[..., 2:]
    rays[:, 3] = 1e3  # missing: not read
    weights[:, 3] = 0
    torch.testing.assert_close(place_root(pose, rays, weights), root, atol=1e-5, rtol=0)


def test_intrinsics_recover_place_and_help_near_the_camera(layer: PPCALift, people: Array) -> None:
    rng = np.random.default_rng(1)
    rotations, truth = views(people, pitch=0.15)
    root = rng.uniform((-1000, -300, 2500), (1000, 300, 5000), (len(people), 3))
    px = seen(truth, root)
    # As tall as the truth, which a picture does not tell.
    own = pose_size(torch.as_tensor(truth)).numpy()
    found = lift_arrays(
        px, "h36m_17", intrinsics=FOCAL, world_to_camera=rotations, prior=layer
    )  # fmt: skip
    plain = lift_arrays(px, "h36m_17", world_to_camera=rotations, prior=layer)
    assert error(found, truth) < error(plain, truth) - 3
    assert found.root_3d is not None
    placed = found.root_3d * (own / float(layer.size_mm))[:, None]
    # Depth is focal length times size in mm over size in px: a pose wrong by 5 % of its size puts
    # its place wrong by as much along the ray, so the tolerance is 5 % of the distance in the
    # median; across the ray a joint's error, some centimetres.
    assert float(np.median(np.abs(placed[:, 2] / root[:, 2] - 1))) < 0.05
    across = placed[:, :2] / placed[:, 2:] - root[:, :2] / root[:, 2:]
    assert float(np.median(np.linalg.norm(across, axis=1) * root[:, 2])) < 60
    assert plain.root_3d is None
    # The projection is that of the pose at its place.
    whole = found.joints_3d + found.root_3d[:, None]
    np.testing.assert_allclose(seen(found.joints_3d, found.root_3d), found.joints_2d, atol=0.05)
    assert (whole[..., 2] > 0).all()


def test_people_of_one_picture_share_its_pitch(layer: PPCALift, people: Array) -> None:
    pitch = 0.4
    rotations, truth = views(people, pitch)
    rng = np.random.default_rng(2)
    px = 0.3 * truth[..., :2] + rng.normal(0, 3, truth[..., :2].shape)
    known = error(lift_arrays(px, "h36m_17", world_to_camera=rotations, prior=layer), truth)
    level = np.stack([camera(0.0)] * len(px))
    ignored = error(lift_arrays(px, "h36m_17", world_to_camera=level, prior=layer), truth)
    shared = error(
        lift_arrays(px, "h36m_17", pictures=np.zeros(len(px), int), prior=layer), truth
    )  # fmt: skip
    alone = error(lift_arrays(px, "h36m_17", prior=layer), truth)
    assert shared < known + 5
    assert shared < alone
    assert alone < ignored - 10


def test_thousands_in_seconds(layer: PPCALift, people: Array) -> None:
    _, truth = views(np.tile(people, (50, 1, 1)), pitch=0.1)
    px = 0.3 * truth[..., :2] + 100
    lift_arrays(px[:10], "h36m_17", prior=layer)  # its tables
    start = time.process_time()
    found = lift_arrays(px, "h36m_17", prior=layer)
    spent = time.process_time() - start
    assert found.lifted.all()
    assert len(found.joints_3d) == 3000
    # About 4 s on one core; a loop over people would take minutes.
    assert spent < 30


# ---- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints_2d": np.zeros((16, 2))}, r"shape \(16, 2\), expected \(17, 2\)"),
        ({"joints_2d": np.zeros((2, 17, 4))}, r"shape \(2, 17, 4\)"),
        ({"joints_2d": "abc"}, "no keypoint file abc"),
        ({"joints_2d": [["a"]]}, "not an array of numbers"),
        ({"skeleton": "coco"}, "did you mean coco_17"),
        ({"scores": np.ones(16)}, r"scores has shape"),
        ({"scores": np.full(17, 3.0)}, r"scores must lie in \[0, 1\]; the largest is 3"),
        ({"min_score": 2}, "min_score is 2"),
        ({"height_mm": -1}, "height_mm is -1"),
        ({"intrinsics": np.eye(4)}, r"intrinsics has shape \(4, 4\)"),
        ({"intrinsics": -np.eye(3)}, "positive focal lengths"),
        ({"world_to_camera": np.eye(2)}, "world_to_camera has shape"),
        ({"pictures": [0, 0]}, "pictures must be 1 whole numbers"),
        ({"prior": "cmu"}, "no pose prior 'cmu'"),
    ],
)
def test_wrong_input_is_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"joints_2d": np.random.default_rng(0).normal(size=(17, 2))}
    with pytest.raises(zoo.ZooError, match=message) as caught:
        zoo.lift(**{**arguments, **change})
    assert "\n" not in str(caught.value)


# ---- files and the command line -----------------------------------------------------------------


def coco_file(path: Path, people: Array) -> Path:
    """Three people in two pictures, as results; the second picture's name is a number."""
    mapped, valid = joint_map("h36m_17", "coco_17")(0.1 * views(people[:3])[1][..., :2] + 120)
    records = []
    for k, image in enumerate((12, 12, 5)):
        flat = np.concatenate((mapped[k], valid[k][:, None] * 0.9), 1).ravel().tolist()
        records.append({"image_id": image, "category_id": 1, "keypoints": flat, "score": 0.9})
    records.append({"image_id": 5, "category_id": 1, "keypoints": [0] * 51, "score": 0.1})
    path.write_text(json.dumps(records))
    return path


def test_a_keypoint_file_through_the_command_line(
    tmp_path: Path, people: Array, zoo_cli: Callable[..., Any]
) -> None:
    coco_file(tmp_path / "k.json", people)
    (tmp_path / "img").mkdir()
    Image.fromarray(np.full((240, 240, 3), 80, np.uint8)).save(tmp_path / "img/000000000012.jpg")
    done = zoo_cli("predict", "k.json", "--images", "img", "--height", 1800, "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "1 of 4 people left out, fewer than 5 joints: person 1 of 5" in done.stderr
    poses = load_poses(tmp_path / "out" / "poses.json")
    assert [(p.source, p.frame_index, p.person) for p in poses] == [
        ("12", 0, 0), ("12", 0, 1), ("5", 1, 0),
    ]  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "12.overlay.png", "5.overlay.png", "poses.json",
    }  # fmt: skip
    with pytest.warns(UserWarning, match="left out"):
        again = zoo.lift(tmp_path / "k.json", height_mm=1800)
    for one, other in zip(poses, again, strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=0.1)


def test_wrong_commands_write_nothing(
    in_tmp: Path, people: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_file(in_tmp / "k.json", people)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(in_tmp / "p.png")
    (in_tmp / "bad.json").write_text("[1")
    for arguments, message in (
        (["k.json", "--detector", "keypointrcnn"], "holds keypoints already"),
        (["k.json", "p.png"], "p.png is no keypoint file"),
        (["bad.json"], "bad.json is not valid JSON"),
        (["k.json", "--height", "5"], "no person's height"),
        (["k.json", "--intrinsics", "1,2"], "--intrinsics takes FX,FY,CX,CY"),
        (["k.json", "--box", "1,2,3,4"], "--box is for pictures"),
        (["k.json", "--images", "none"], "none is not a folder"),
        (["k.json", "--prior", "cmu"], "no pose prior 'cmu'"),
        (["k.json", "--skeleton", "lsp_14"], "record 0: it has 17 joints, but lsp_14 has 14"),
        (["p.png"], "pictures need --method NAME"),
        (["p.png", "--detector", "hrnet"], "no detector 'hrnet'"),
        (["k.json", "--method", "parc"], "did you mean park"),
    ):
        assert main(["predict", *arguments, "--out", "out", "--gpus", "0"]) == 2
        err = capsys.readouterr().err.strip()
        assert message in err
        assert "\n" not in err
        assert not list(in_tmp.glob("out/*"))


def test_a_lifting_method_brings_its_own_prior(
    in_tmp: Path, people: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    path = coco_file(in_tmp / "k.json", people)
    torch.manual_seed(0)
    for name, code in (("tome-mixture", 0), ("park", 2)):
        model = resolve_class(get_method(name)).tiny()
        model.zoo_name = name
        weights = save_weights(model, in_tmp / f"{name}.safetensors", half=False)
        command = ["predict", "k.json", "--method", name, "--weights", str(weights)]
        assert main([*command, "--gpus", "0", "--no-overlay", "--out", name]) == code
        if code:
            assert "park takes pictures, not keypoints" in capsys.readouterr().err
            continue
        layer = [m for m in model.modules() if isinstance(m, PPCALift)][-1]
        with pytest.warns(UserWarning, match="left out"):
            expected = zoo.lift(path, prior=layer.prior)
        poses = load_poses(in_tmp / name / "poses.json")
        assert {p.method for p in poses} == {name}
        for one, other in zip(poses, expected, strict=True):
            np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=1)


def test_a_method_with_keypoint_input(people: Array) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "plugins/linear_lifter/src"))
    try:
        from zoo_linear_lifter import LinearLifter
    finally:
        sys.path.pop(0)
    torch.manual_seed(0)
    model = LinearLifter.tiny()
    model.train()
    px = 0.3 * views(people[:3])[1][..., :2].astype(np.float32)
    ones = np.ones(17, np.float32)
    inputs = [Keypoints(px[k], ones, "h36m_17", "v", frame=k) for k in range(3)]
    inputs.append(Keypoints(px[0], 0 * ones, "h36m_17", "v", frame=3))
    poses = predict_keypoints(model, inputs)
    assert [p.frame_index for p in poses] == [0, 1, 2]
    assert model.training
    # A larger picture, elsewhere, is the same crop.
    moved = predict_keypoints(
        model, [Keypoints(3 * px[k] + 500, ones, "h36m_17", "v") for k in range(3)]
    )
    for one, other in zip(poses, moved, strict=True):
        np.testing.assert_allclose(one.joints_3d, other.joints_3d, atol=0.05)
    assert not np.allclose(poses[0].joints_3d, poses[1].joints_3d, atol=1)
    with pytest.raises(UsageError, match="takes pictures"):
        predict_keypoints(resolve_class(get_method("park")).tiny(), inputs)


def test_zoo_prior_fit(in_tmp: Path, capsys: pytest.CaptureFixture[str], people: Array) -> None:
    command = ["prior", "fit", "--components", "1", "--basis", "4", "--poses", "600"]
    assert main([*command, "--out", "prior-{sha}.safetensors", "--quiet"]) == 0
    output = capsys.readouterr().out.split()
    path = Path(output[-1])
    assert path.is_file()
    assert path.stem.removeprefix("prior-") == output[output.index("sha256") + 1][:8]
    prior = Prior.load(path)
    assert (prior.components, prior.basis_size) == (1, 4)
    assert [p.name for p in in_tmp.iterdir()] == [path.name]
    assert zoo.lift(0.3 * people[0][:, [0, 2]] * [1, -1], "h36m_17", prior=path)
    for arguments, message in (
        (["--out", "prior.bin"], "must end in .safetensors"),
        (["--out", "none/prior.safetensors"], "does not exist"),
        (["--out", "p.safetensors", "--poses", "-1"], "--poses must be at least 0"),
        (["--out", "p.safetensors", "--mocap", "none.npz"], "none.npz"),
    ):
        assert main(["prior", "fit", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert [p.name for p in in_tmp.iterdir()] == [path.name]
