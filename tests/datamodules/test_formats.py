"""Readers of HumanEva-I, MPI-INF-3DHP, KTH Football II, MPII, LSP, and their synthetic copies."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import loadmat, savemat

from datamodules import humaneva, kth, lsp, mpi_inf_3dhp, mpii, mpii_json
from datamodules.readers import READERS, find_reader, get_reader, read_recordings
from datamodules.recordings import Camera, ImageFiles, Recording, VideoFile
from datamodules.synth import humaneva as write_humaneva
from datamodules.synth import kth as write_kth
from datamodules.synth import lsp as write_lsp
from datamodules.synth import mpi_inf_3dhp as write_3dhp
from datamodules.synth import mpii as write_mpii
from datamodules.synth import mpii_json as write_mpii_json
from datamodules.synth.closeups import closeups
from datamodules.synth.joints import named_joints
from datamodules.synth.people import People, make_people
from zoo.base import InputSpec
from zoo.cli import main
from zoo.errors import DataError, UsageError
from zoo.geometry import affine_apply, project
from zoo.registry import dataset_class
from zoo.skeleton import get_skeleton

WRITERS: dict[str, tuple[Any, tuple[str, ...], tuple[tuple[int, int], ...]]] = {
    "humaneva": (write_humaneva, ("S1",), ((160, 120),) * 3),
    "mpi-inf-3dhp": (write_3dhp, ("S1", "TS1", "S8"), ((128, 128),)),
    "kth": (write_kth, ("S2",), ((96, 128),) * 3),
    "mpii": (write_mpii, ("S1", "S5"), ((192, 192),) * 2),
    "mpii-json": (write_mpii_json, ("S1", "S5"), ((192, 192),) * 2),
    "lsp": (write_lsp, ("S1", "S5"), ((480, 480),) * 2),
}
DATASETS = {"mpii-json": "mpii"}
FRAMES = 6


@pytest.fixture(scope="module")
def crowd() -> dict[str, People]:
    """The people of each copy."""
    return {
        name: make_people(
            subjects, writer.ACTIONS, frames=FRAMES if name != "kth" else 20, sizes=sizes, detail=48
        )
        for name, (writer, subjects, sizes) in WRITERS.items()
    }


@pytest.fixture(scope="module")
def copies(crowd: dict[str, People], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each format; no test changes them."""
    root = tmp_path_factory.mktemp("copies")
    for name, (writer, _, _) in WRITERS.items():
        writer.write(root / name, crowd[name])
    return {name: root / name for name in WRITERS}


@pytest.fixture(scope="module")
def read(copies: dict[str, Path]) -> dict[str, list[Recording]]:
    return {name: get_reader(name).read(folder) for name, folder in copies.items()}


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_each_copy_is_recognised_as_its_own_format_and_no_other(
    name: str, copies: dict[str, Path]
) -> None:
    assert find_reader(copies[name]).name == name
    assert [r.name for r in READERS if r.name in WRITERS and r.identify(copies[name])] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_3d_projects_onto_2d_with_the_stored_camera(
    name: str, read: dict[str, list[Recording]]
) -> None:
    for recording in read[name]:
        if recording.joints_3d is None:
            assert name in ("mpii", "mpii-json", "lsp")
            continue
        seen = recording.reprojected()
        assert seen is not None
        assert recording.joints_2d is not None
        gap = np.abs(seen - recording.joints_2d)
        assert np.isfinite(gap).any()
        # TS: the camera itself is estimated from these pairs.
        assert np.nanmax(gap) < (1e-9 if not recording.subject.startswith("TS") else 1e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_are_those_of_their_rows(
    name: str, read: dict[str, list[Recording]], crowd: dict[str, People]
) -> None:
    """The person stands where the joints are: there the picture differs from its own background."""
    for recording in read[name]:
        assert recording.pictures is not None
        assert recording.pictures.missing() == ""
        assert recording.joints_2d is not None
        if recording.pictures is not None and isinstance(recording.pictures, ImageFiles):
            assert len(recording.pictures.names) == len(recording)
        pixels = recording.pictures.read([0])[0].pixels
        joints = recording.joints_2d[0]
        inside = joints[np.isfinite(joints).all(-1)]
        assert (inside >= 0).all()
        assert (inside < [pixels.shape[1], pixels.shape[0]]).all()


def test_humaneva_poses_frames_and_synchronised_videos(
    read: dict[str, list[Recording]], crowd: dict[str, People]
) -> None:
    people = crowd["humaneva"]
    takes = {1: people.takes[0], 2: people.takes[1]}
    assert len(read["humaneva"]) == 6
    for recording in read["humaneva"]:
        take = takes[1 if recording.split == "test" else 2]
        world, pixels = write_humaneva.truth(people, take)
        kept = np.isfinite(world).all((1, 2))
        assert kept.sum() == len(world) - 1  # one frame of invalid capture is left out
        assert recording.joints_3d is not None
        np.testing.assert_array_equal(recording.joints_3d, world[kept])
        assert recording.camera is not None
        camera = humaneva.CAMERAS.index(recording.camera.name)
        np.testing.assert_array_equal(recording.joints_2d, pixels[camera, kept])
        start = 5 if recording.split == "test" else 590
        np.testing.assert_array_equal(recording.numbers, start + np.flatnonzero(kept))
        # The rendered frame, not the grey around it and not its neighbour, within what the
        # encoder loses.
        assert isinstance(recording.pictures, VideoFile)
        last = len(recording) - 1
        found = recording.pictures.read([last])[0].pixels.astype(float)
        drawn = people.pictures(take, write_humaneva.cameras_of(people, "S1")[camera])
        gaps = [np.abs(found - frame).mean() for frame in drawn.astype(float)]
        assert int(np.argmin(gaps)) == FRAMES - 1


def test_humaneva_lens_is_opencvs(copies: dict[str, Path]) -> None:
    cal = humaneva.parse_cal(copies["humaneva"] / "S1" / "Calibration_Data" / "C2.cal")
    camera = Camera(
        "C2", (0, 0), cal.matrix, cal.distortion[[0, 1, 4]], cal.distortion[2:4], "opencv",
        cal.rotation, cal.position,
    )  # fmt: skip
    points = np.random.default_rng(0).uniform(-900, 900, (50, 3))
    turned = cv2.Rodrigues(cal.rotation)[0]
    expected = cv2.projectPoints(points, turned, cal.translation, cal.matrix, cal.distortion)[0]
    np.testing.assert_allclose(camera.project(camera.to_camera(points)), expected[:, 0], atol=1e-6)


def test_humaneva_rotations_by_columns_are_noticed(
    copies: dict[str, Path], tmp_path: Path, read: dict[str, list[Recording]]
) -> None:
    shutil.copytree(copies["humaneva"], tmp_path / "he")
    path = tmp_path / "he" / CAL
    values = path.read_text().split()
    values[10:19] = np.array(values[10:19]).reshape(3, 3).T.reshape(-1).tolist()
    path.write_text("\n".join(values))
    for ours, theirs in zip(read_recordings(tmp_path / "he"), read["humaneva"], strict=True):
        assert ours.camera is not None
        assert theirs.camera is not None
        np.testing.assert_array_equal(ours.camera.rotation, theirs.camera.rotation)
        np.testing.assert_allclose(ours.camera.position, theirs.camera.position, atol=1e-9)


def test_3dhp_training_poses_and_world(
    read: dict[str, list[Recording]], crowd: dict[str, People], copies: dict[str, Path]
) -> None:
    names = [mpi_inf_3dhp.JOINTS_28[i] for i in mpi_inf_3dhp.RELEVANT]
    assert tuple(names) == get_skeleton("mpi_inf_3dhp_17").joints
    people = crowd["mpi-inf-3dhp"]
    true_size = mpi_inf_3dhp.read(copies["mpi-inf-3dhp"], annotation="annot3")
    trained = [
        (one, true) for one, true in zip(read["mpi-inf-3dhp"], true_size, strict=True)
        if one.split == ""
    ]  # fmt: skip
    assert {one.subject for one, _ in trained} == {"S1", "S8"}
    for one, same in zip(read["mpi-inf-3dhp"], true_size, strict=True):
        if one.split == "test":  # whatever is trained on, the metric is the official one
            np.testing.assert_array_equal(one.joints_3d, same.joints_3d)
    for one, true in trained:
        take = [t for t in people.takes if t.subject == true.subject][true.trial - 1]
        assert true.camera is not None
        assert true.joints_3d is not None
        assert one.joints_3d is not None
        # Back in the world: the file's has y up, ours z up.
        world = true.camera.to_world(true.joints_3d)
        np.testing.assert_allclose(world, named_joints(take.world, names), atol=1e-6)
        np.testing.assert_allclose(one.joints_3d, 0.95 * true.joints_3d, rtol=1e-12)
        assert true.fps == (50.0 if (true.subject, true.trial) == ("S1", 2) else 25.0)
    assert {one.camera.name for one, _ in trained if one.camera} == {"0", "1"}  # those with videos


def test_3dhp_test_frames_are_the_valid_ones_by_activity(
    read: dict[str, list[Recording]], copies: dict[str, Path]
) -> None:
    tested = [r for r in read["mpi-inf-3dhp"] if r.split == "test"]
    with h5py.File(copies["mpi-inf-3dhp"] / "TS1" / "annot_data.mat") as file:
        valid = file["valid_frame"][:, 0] == 1
        activity = file["activity_annotation"][:, 0]
        poses = file["univ_annot3"][:, 0]
    assert [r.action for r in tested] == ["Stand/Walk", "Sit on Chair"]
    for recording, number in zip(tested, (1, 3), strict=True):
        rows = np.flatnonzero(valid & (activity == number))
        np.testing.assert_array_equal(recording.numbers, rows)
        np.testing.assert_array_equal(recording.joints_3d, poses[rows])
        assert isinstance(recording.pictures, ImageFiles)
        assert recording.pictures.names[0] == f"imageSequence/img_{rows[0] + 1:06d}.jpg"


def test_the_pinhole_of_a_3dhp_test_sequence_is_found_and_its_doubt_told() -> None:
    rng = np.random.default_rng(1)
    matrix = np.array([[1500.0, 0, 1020], [0, 1490, 1040], [0, 0, 1]])
    points = rng.uniform(-800, 800, (40, 17, 3)) + np.array([0, 0, 4000])
    pixels = (points @ matrix.T)[..., :2] / points[..., 2:]
    found, left = mpi_inf_3dhp.fit_pinhole(points, pixels)
    np.testing.assert_allclose(found, matrix, rtol=1e-9)
    assert left < 1e-6
    _, left = mpi_inf_3dhp.fit_pinhole(points, pixels + rng.normal(0, 8, pixels.shape))
    assert 7 < left < 9


def test_kth_halves_and_cameras_that_follow(
    read: dict[str, list[Recording]], crowd: dict[str, People]
) -> None:
    people = crowd["kth"]
    take = write_kth.centred(people.takes[0])
    world = named_joints(take.world, get_skeleton("kth_14").joints)
    cameras = write_kth.affine_cameras(people, take)
    mine = [r for r in read["kth"] if r.trial == 1 and r.camera and r.camera.name == "Camera 2"]
    assert [(r.split, len(r)) for r in mine] == [("train", 10), ("test", 10)]
    for recording in mine:
        np.testing.assert_allclose(recording.joints_3d, world[recording.numbers], atol=1e-9)
        assert recording.camera is not None
        np.testing.assert_allclose(
            recording.camera.affine, cameras[1][recording.numbers], rtol=1e-12, atol=1e-9
        )
        assert isinstance(recording.pictures, ImageFiles)
        assert recording.pictures.names[0] == f"{recording.numbers[0] + 1:05d}.png"
    assert {r.subject for r in read["kth"]} == {"player2"}


@settings(max_examples=20, deadline=None)
@given(
    arrays(np.float64, (3, 3, 2, 4), elements=st.floats(-500, 500).map(lambda v: v + 0.125)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_kth_files_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, cameras: Any, seed: int, end: str
) -> None:
    folder = tmp_path_factory.mktemp("kth")
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 1, (3, 14, 3))
    pixels = rng.uniform(0, 500, (3, 3, 14, 2))  # frames, cameras
    cameras[np.linalg.norm(cameras[..., :3], axis=-1) == 0] = 1.0
    joints[:, [8, 9]] = joints[:, [2, 3]] + [0, 0, 0.5]  # a trunk of half a metre
    for name, values in {
        "positions3d.txt": joints, "positions2d.txt": pixels,
        "cameras.txt": cameras.transpose(0, 1, 3, 2),
    }.items():  # fmt: skip
        text = end.join(repr(float(v)) for v in values.reshape(-1)) + end
        (folder / name).write_bytes(text.encode())
    found = kth.parse_sequence(folder)
    np.testing.assert_array_equal(found.joints_3d, joints * 1000)
    np.testing.assert_array_equal(found.joints_2d, pixels.transpose(1, 0, 2, 3) - 1)
    # One and the same point: metres in the file, mm here; pixels from 1 there, from 0 here.
    seen = np.einsum("tcij,tnj->tcni", cameras[..., :3], joints) + cameras[:, :, None, :, 3]
    ours = np.stack([Camera("c", affine=c).project(found.joints_3d) for c in found.cameras])
    np.testing.assert_allclose(ours, seen.transpose(1, 0, 2, 3) - 1, rtol=1e-9, atol=1e-6)


def test_mpii_joints_hidden_and_absent_ones(
    read: dict[str, list[Recording]], crowd: dict[str, People]
) -> None:
    for name in ("mpii", "mpii-json"):
        truth = {}
        for index, (image, who) in enumerate(write_mpii.images_of(crowd[name])):
            for i, person in enumerate(who):
                joints, number = person.joints.copy(), index + i
                joints[list(write_mpii.absent_joints(number))] = np.nan
                truth[image, i] = joints, write_mpii.hidden_joints(number)
        count = 0
        for recording in (r for r in read[name] if r.split != "test"):
            assert isinstance(recording.pictures, ImageFiles)
            assert recording.joints_2d is not None
            assert recording.joints_3d is None
            assert recording.occluded is not None
            for row, image in enumerate(recording.pictures.names):
                i = list(recording.pictures.names[:row]).count(image)
                joints, hidden = truth[image, i]
                np.testing.assert_allclose(recording.joints_2d[row], joints, atol=1e-9)
                assert tuple(np.flatnonzero(recording.occluded[row])) == hidden
                count += 1
        assert count == len(truth)


def test_mpii_validation_videos_are_not_trained_on(copies: dict[str, Path]) -> None:
    people = mpii.parse_mat(copies["mpii"] / mpii.MAT_NAME)
    held = {p.video for p in people if p.held_out}
    assert held
    assert held.isdisjoint(p.video for p in people if not p.held_out)
    shares = [
        mpii.Person("", np.zeros((16, 2)), np.zeros(16, bool), 1, np.zeros(2), np.zeros(4), v)
        for v in range(2000)
    ]
    assert 0.07 < np.mean([p.held_out for p in shares]) < 0.13


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, (16, 2), elements=st.floats(1, 2000)),
    arrays(np.int64, 16, elements=st.integers(0, 1)),
    st.sets(st.integers(0, 15)),
    st.sampled_from([0.0, -1.0]),
)
def test_mpii_json_reads_back(
    tmp_path_factory: pytest.TempPathFactory, joints: Any, visible: Any, gone: set[int], mark: float
) -> None:
    path = tmp_path_factory.mktemp("json") / "train.json"
    rows = list(gone)
    joints[rows], visible[rows] = mark, 0
    entry = {"image": "a.jpg", "joints": joints.tolist(), "joints_vis": visible.tolist(),
             "center": [10, 20], "scale": 2}  # fmt: skip
    path.write_text(json.dumps([entry]))
    (person,) = mpii.parse_json(path)
    expected = joints - 1
    expected[rows] = np.nan
    np.testing.assert_array_equal(person.joints, expected)
    there = ~np.isnan(expected).any(-1)
    np.testing.assert_array_equal(person.occluded, (visible == 0) & there)


def test_lsp_and_lspet_invert_the_third_value(
    read: dict[str, list[Recording]], crowd: dict[str, People]
) -> None:
    people = crowd["lsp"]
    pictures = closeups(people, get_skeleton("lsp_14").joints, 96)
    half = len(pictures) // 2
    parts = {r.split: r for r in read["lsp"] if r.subject == "LSP"}
    assert sum(len(r) for r in parts.values()) == half
    for recording in parts.values():
        assert recording.occluded is not None
        assert recording.joints_2d is not None
        for row, number in enumerate(recording.numbers):
            assert np.flatnonzero(recording.occluded[row]) == number % 14  # hidden, and annotated
            np.testing.assert_allclose(recording.joints_2d[row], pictures[number].joints, atol=1e-9)
    (extended,) = (r for r in read["lsp"] if r.subject == "LSPET")
    assert extended.split == "train"
    assert extended.joints_2d is not None
    for row, joints in enumerate(extended.joints_2d):
        gone = np.isnan(joints).any(-1)
        assert np.flatnonzero(gone) == row % 14  # not visible there is not annotated
        truth = pictures[half + row].joints
        np.testing.assert_allclose(joints[~gone], truth[~gone], atol=1e-9)


def test_the_official_sizes_split_lsp_as_published(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im0001.jpg").touch()
    joints = np.random.default_rng(0).uniform(1, 100, (3, 14, 2000))
    joints[2] = 0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    found = {r.split: r for r in lsp.read(tmp_path)}
    assert {s: (r.numbers[0], len(r)) for s, r in found.items()} == {
        "train": (0, 900), "val": (900, 100), "test": (1000, 1000),
    }  # fmt: skip


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_feeds_the_methods(name: str, copies: dict[str, Path]) -> None:
    module = dataset_class(DATASETS.get(name, name))(
        root=str(copies[name]), num_workers=0, batch_size=4, flip=0.0,
        input_spec=InputSpec("image", image_size=32),
    )  # fmt: skip
    module.setup("fit")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        batch = module.on_after_batch_transfer(next(iter(loader)), 0)
        assert batch["image"].shape[1:] == (1, 3, 32, 32)
        assert batch["joints_2d"].shape[1:] == (1, 17, 2)
        assert bool(batch["valid_2d"].any(-1).all())
        flat = name in ("mpii", "mpii-json", "lsp")
        assert bool(batch["valid_3d"].any()) != flat
        inside = batch["joints_2d"][batch["valid_2d"]]
        assert bool(((inside > -8) & (inside < 40)).all())
        if not flat:
            # What reaches a method is a pinhole view of the pose, up to lens distortion and, for
            # KTH, to the perspective of a camera 50 m away.
            points = batch["joints_3d"] + batch["root_3d"][:, :, None]
            seen = project(points.double(), batch["intrinsics"].double())
            both = batch["valid_2d"] & batch["valid_3d"]
            gap = (seen - batch["joints_2d"]).norm(dim=-1)[both]
            assert float(gap.max()) < 1.0
    module.setup("test")
    assert len(module.test_set) > 0
    assert module.training_poses(10)["joints_3d"].shape[-2:] == (17, 3)


def test_kth_batches_follow_the_camera_of_each_frame(copies: dict[str, Path]) -> None:
    module = dataset_class("kth")(
        root=str(copies["kth"]), num_workers=0, train_fps=25.0,
        input_spec=InputSpec("keypoints", image_size=64, frames=3, clip_fps=25.0),
    )  # fmt: skip
    module.setup("fit")
    dataset = module.train_set
    batch = dataset.__getitems__(range(len(dataset)))
    points = batch["joints_3d"] + batch["root_3d"][:, :, None]
    seen = project(points.double(), batch["intrinsics"].double())
    both = batch["valid_2d"] & batch["valid_3d"]
    # Exact at the root; elsewhere the pinhole 50 m away differs by the share of depth in it.
    gap = (seen - batch["joints_2d"]).norm(dim=-1)
    share = (batch["joints_3d"][..., 2].abs() / (50_000 - 1000)) * 64
    assert bool((gap <= share + 1e-2)[both].all())
    assert float(gap[both].max()) < 0.7
    source = affine_apply(batch["crop_to_image"], batch["joints_2d"])
    recording = dataset.recordings[dataset.which[4]]
    row = int(dataset.rows[4])
    assert recording.joints_2d is not None
    wrist = recording.joints_2d[row - 1 : row + 2, get_skeleton("kth_14").index("l_wrist")]
    np.testing.assert_allclose(source[4, :, 13].numpy(), wrist, atol=1e-2)


def test_mpii_needs_its_pictures_only_for_images(copies: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(copies["mpii"] / mpii.MAT_NAME, tmp_path)
    module = dataset_class("mpii")(
        root=str(tmp_path), num_workers=0, input_spec=InputSpec("keypoints", image_size=32)
    )
    module.setup("fit")
    assert len(module.train_set) > 0
    module.input_spec = InputSpec("image", image_size=32)
    with pytest.raises(DataError, match=r"no picture .*\.jpg"):
        module.setup("fit")
    assert any("images/: 0 of" in line for line in mpii.missing(tmp_path, module.recordings))


# ---- malformed and incomplete copies ------------------------------------------------------------


def rewrite(path: Path, **changes: Callable[[Any], Any] | None) -> None:
    """Changes variables of a MATLAB file, or takes them out."""
    variables = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    for name, change in changes.items():
        if change is None:
            del variables[name]
        else:
            variables[name] = change(variables[name])
    savemat(path, variables)


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def cells(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def changed(value: Any) -> Any:
        result = np.empty(value.shape, object)
        for i, cell in np.ndenumerate(value):
            result[i] = change(cell)
        return result

    return changed


def hdf5(path: Path, change: Callable[[Any], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replace_dataset(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


class Bomb:
    """A pickle that would run code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def mpii_points(path: Path, change: Callable[[Any], None]) -> None:
    """Changes the points of the first person."""
    release = loadmat(path)["RELEASE"]
    person = release["annolist"][0, 0]["annorect"][0, 0]
    change(person["annopoints"][0, 0]["point"][0, 0])
    savemat(path, {"RELEASE": release})


CAL = "S1/Calibration_Data/C1.cal"
POSES = "Validate/S1/Walking_1.mat"
ANNOT, TEST = "S1/Seq1/annot.mat", "TS1/annot_data.mat"
CALIBRATION = "S1/Seq1/camera.calibration"
SEQUENCE = "player2/Sequence 1"
JSON = "annot/train.json"
LSP = "lsp_dataset/joints.mat"


def swap_cameras(text: str) -> str:
    cameras = np.array(text.split()).reshape(-1, 3, 8)
    return "\n".join(cameras[:, ::-1].reshape(-1)) + "\n"


def set_id(point: Any) -> None:
    point[0, 0]["id"] = np.array([[16]])


def nan_everywhere(value: Any) -> Any:
    return np.full_like(value, np.nan)


MALFORMED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    # name: format, what is done to the copy, what the line says
    "humaneva: no calibration": (
        "humaneva",
        lambda r: (r / CAL).unlink(),
        r"C1\.cal: there is no such file",
    ),
    "humaneva: calibration cut off": (
        "humaneva",
        lambda r: edit(r / CAL, lambda t: t[: len(t) // 2]),
        "a calibration of HumanEva has 22|one number",
    ),
    "humaneva: calibration of zero bytes": (
        "humaneva",
        lambda r: (r / CAL).write_bytes(b""),
        r"C1\.cal: the file is empty",
    ),
    "humaneva: calibration is binary": (
        "humaneva",
        lambda r: (r / CAL).write_bytes(b"\xff\xfe\x00\x80"),
        "not a text file",
    ),
    "humaneva: no rotation": (
        "humaneva",
        lambda r: edit(r / CAL, lambda t: "\n".join([*t.split()[:10], *["0.5"] * 12])),
        "no rotation",
    ),
    "humaneva: the calibration of another camera": (
        "humaneva",
        lambda r: shutil.copy(r / "S1/Calibration_Data/C2.cal", r / CAL),
        r"C1\.cal puts the 3D .* of the person's size from the 2D",
    ),
    "humaneva: poses of zero bytes": (
        "humaneva",
        lambda r: (r / POSES).write_bytes(b""),
        r"Walking_1\.mat: the file is empty",
    ),
    "humaneva: truncated poses": (
        "humaneva",
        lambda r: (r / POSES).write_bytes((r / POSES).read_bytes()[:300]),
        "not a readable MATLAB file|no variable",
    ),
    "humaneva: 20 joints": (
        "humaneva",
        lambda r: rewrite(r / POSES, poses_3d=lambda v: np.zeros((6, 20, 3))),
        r"poses_3d is \(6, 20, 3\); expected \(frames, 15, 3\)",
    ),
    "humaneva: 2D of other frames": (
        "humaneva",
        lambda r: rewrite(r / POSES, poses_2d=lambda v: v[:, 1:]),
        "as poses_3d has 6 frames",
    ),
    "humaneva: metres": (
        "humaneva",
        lambda r: rewrite(r / POSES, poses_3d=lambda v: v / 1000),
        "another unit",
    ),
    "humaneva: NaN in all poses": (
        "humaneva",
        lambda r: rewrite(r / POSES, poses_3d=nan_everywhere),
        "no frame with a valid pose",
    ),
    "humaneva: no 2D": (
        "humaneva",
        lambda r: rewrite(r / POSES, poses_2d=None),
        "no variable 'poses_2d'",
    ),
    "humaneva: a trial that the set has not": (
        "humaneva",
        lambda r: (r / POSES).rename(r / "Validate/S1/Walking_3.mat"),
        "no Validate part of S1 Walking 3",
    ),
    "humaneva: synchronisation of two numbers": (
        "humaneva",
        lambda r: (r / "S1/Sync_Data/Walking_1_(C1).ofs").write_text("3\n50\n"),
        "expected three numbers",
    ),
    "3dhp: the calibration of other lenses": (
        "mpi-inf-3dhp",
        lambda r: edit(r / CALIBRATION, lambda t: t.replace(" 93.", " 63.")),
        r"camera\.calibration puts the 3D of S1 .* from the 2D",
    ),
    "3dhp: no calibration": (
        "mpi-inf-3dhp",
        lambda r: (r / CALIBRATION).unlink(),
        "camera.calibration: there is no such file",
    ),
    "3dhp: calibration cut off": (
        "mpi-inf-3dhp",
        lambda r: edit(r / CALIBRATION, lambda t: t[: t.rindex("extrinsic")]),
        "camera 13 has no extrinsic; the file is cut off",
    ),
    "3dhp: a size of 204": (
        "mpi-inf-3dhp",
        lambda r: edit(r / CALIBRATION, lambda t: t.replace("128 128", "128 12")),
        r"principal point .* outside its 128 x 12 px",
    ),
    "3dhp: another kind of calibration": (
        "mpi-inf-3dhp",
        lambda r: (r / CALIBRATION).write_text("camera 0\n"),
        "does not start with 'Skeletool",
    ),
    "3dhp: a camera is missing in the calibration": (
        "mpi-inf-3dhp",
        lambda r: edit(
            r / CALIBRATION, lambda t: t.replace("name          1\n", "name          99\n")
        ),
        "no camera 1, annot.mat has it",
    ),
    "3dhp: 17 joints in a training file": (
        "mpi-inf-3dhp",
        lambda r: rewrite(r / ANNOT, annot2=cells(lambda c: c[:, :34])),
        r"annot2 of camera 0 is \(6, 34\); expected \(frames, 56\)",
    ),
    "3dhp: a frame less in 3D": (
        "mpi-inf-3dhp",
        lambda r: rewrite(r / ANNOT, annot3=cells(lambda c: c[1:])),
        "annot3 and annot2 differ",
    ),
    "3dhp: metres": (
        "mpi-inf-3dhp",
        lambda r: rewrite(r / ANNOT, univ_annot3=cells(lambda c: c / 1000)),
        "another unit",
    ),
    "3dhp: test file truncated": (
        "mpi-inf-3dhp",
        lambda r: (r / TEST).write_bytes((r / TEST).read_bytes()[:2000]),
        "not a readable HDF5 file",
    ),
    "3dhp: test file is no HDF5": (
        "mpi-inf-3dhp",
        lambda r: savemat(r / TEST, {"annot2": np.zeros(3)}),
        r"not a version 7\.3",
    ),
    "3dhp: 16 joints in a test file": (
        "mpi-inf-3dhp",
        lambda r: hdf5(r / TEST, lambda f: replace_dataset(f, "annot2", f["annot2"][:, :, 1:])),
        r"annot2 is \(24, 1, 16, 2\); expected \(24, 1, 17, 2\)",
    ),
    "3dhp: validity of other frames": (
        "mpi-inf-3dhp",
        lambda r: hdf5(r / TEST, lambda f: replace_dataset(f, "valid_frame", np.ones((9, 1)))),
        "9 frames by valid_frame",
    ),
    "3dhp: activity 8": (
        "mpi-inf-3dhp",
        lambda r: hdf5(
            r / TEST, lambda f: replace_dataset(f, "activity_annotation", np.full((24, 1), 8.0))
        ),
        "activity_annotation must be 24 numbers of 0 to 7",
    ),
    "3dhp: text instead of numbers": (
        "mpi-inf-3dhp",
        lambda r: hdf5(r / TEST, lambda f: replace_dataset(f, "annot3", "abc")),
        "annot3 is not an array of numbers",
    ),
    "kth: cut off": (
        "kth",
        lambda r: edit(r / SEQUENCE / "positions3d.txt", lambda t: "\n".join(t.split()[:-5])),
        r"835 numbers, expected a multiple of 42; it is cut off",
    ),
    "kth: other numbers of frames": (
        "kth",
        lambda r: edit(r / SEQUENCE / "cameras.txt", lambda t: "\n".join(t.split()[:-24])),
        r"different numbers of frames: positions2d\.txt 20, positions3d\.txt 20, cameras\.txt 19",
    ),
    "kth: cameras in another order": (
        "kth",
        lambda r: edit(r / SEQUENCE / "cameras.txt", swap_cameras),
        r"cameras\.txt puts the 3D .* from the 2D",
    ),
    "kth: a word": (
        "kth",
        lambda r: edit(r / SEQUENCE / "positions2d.txt", lambda t: "x y\n" + t),
        "line 1 is 'x y'; expected one number",
    ),
    "kth: a decimal comma": (
        "kth",
        lambda r: edit(r / SEQUENCE / "positions2d.txt", lambda t: t.replace(".", ",")),
        "expected one number",
    ),
    "kth: millimetres": (
        "kth",
        lambda r: edit(
            r / SEQUENCE / "positions3d.txt",
            lambda t: "\n".join(str(1000 * float(v)) for v in t.split()),
        ),
        "another unit",
    ),
    "kth: a camera that is not finite": (
        "kth",
        lambda r: edit(r / SEQUENCE / "cameras.txt", lambda t: "nan\n" + t.split("\n", 1)[1]),
        "a camera is not finite",
    ),
    "kth: a file is missing": (
        "kth",
        lambda r: (r / SEQUENCE / "positions2d.txt").unlink(),
        r"positions2d\.txt: there is no such file",
    ),
    "kth: whose sequence": (
        "kth",
        lambda r: (r / "player2").rename(r / "someone"),
        "which player is it",
    ),
    "mpii: zero bytes": (
        "mpii",
        lambda r: (r / mpii.MAT_NAME).write_bytes(b""),
        "the file is empty",
    ),
    "mpii: truncated": (
        "mpii",
        lambda r: (r / mpii.MAT_NAME).write_bytes((r / mpii.MAT_NAME).read_bytes()[:4000]),
        "not a readable MATLAB file",
    ),
    "mpii: another file of that name": (
        "mpii",
        lambda r: savemat(r / mpii.MAT_NAME, {"RELEASE": np.zeros(3)}),
        "RELEASE has no annolist",
    ),
    "mpii: joint id 16": (
        "mpii",
        lambda r: mpii_points(r / mpii.MAT_NAME, set_id),
        r"annolist\(1\)\.annorect\(1\): joint id 16",
    ),
    "mpii: version 7.3": (
        "mpii",
        lambda r: h5py.File(r / mpii.MAT_NAME, "w", userblock_size=512).close(),
        r"version 7\.3",
    ),
    "mpii: JSON cut off": (
        "mpii-json",
        lambda r: edit(r / JSON, lambda t: t[:-30]),
        "not a JSON file, or cut off",
    ),
    "mpii: 15 joints in the JSON": (
        "mpii-json",
        lambda r: edit(
            r / JSON,
            lambda t: json.dumps([{**e, "joints": e["joints"][1:]} for e in json.loads(t)]),
        ),
        r"entry 0: joints is \(15, 2\), expected \(16, 2\)",
    ),
    "mpii: words in the JSON": (
        "mpii-json",
        lambda r: edit(
            r / JSON, lambda t: json.dumps([{**e, "joints": "none"} for e in json.loads(t)])
        ),
        "entry 0: joints must be numbers",
    ),
    "mpii: no list in the JSON": (
        "mpii-json",
        lambda r: (r / JSON).write_text("{}"),
        "expected a list of people",
    ),
    "mpii: deep JSON": ("mpii-json", lambda r: (r / JSON).write_text("[" * 100000), "not a"),
    "lsp: third value 2": (
        "lsp",
        lambda r: rewrite(r / LSP, joints=lambda v: v + np.array([0, 0, 2])[:, None, None]),
        "must be 0 or 1",
    ),
    "lsp: 16 joints": (
        "lsp",
        lambda r: savemat(r / LSP, {"joints": np.zeros((3, 16, 9))}),
        r"joints is \(3, 16, 9\); expected",
    ),
    "lsp: no array": (
        "lsp",
        lambda r: savemat(r / LSP, {"joints": "abc"}),
        "must be an array of numbers",
    ),
    "lsp: a text file": (
        "lsp",
        lambda r: (r / LSP).write_text("1 2 3\n"),
        "not a readable MATLAB file",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_copies_get_one_clear_line(
    case: str, copies: dict[str, Path], tmp_path: Path
) -> None:
    name, damage, says = MALFORMED[case]
    root = tmp_path / "copy"
    shutil.copytree(copies[name], root, ignore=shutil.ignore_patterns("*.jpg", "*.png", "*.avi"))
    if name == "lsp":
        for folder, image in (("lsp_dataset", "im0001.jpg"), ("lspet_dataset", "im00001.jpg")):
            (root / folder / "images" / image).touch()
    before = sorted(p for p in root.rglob("*"))
    assert before
    damage(root)
    if "synchronisation" in case:
        (root / "S1/Image_Data/Walking_1_(C1).avi").touch()
    with pytest.raises(DataError, match=says) as caught:
        read_recordings(root, name)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message  # it names the file or folder
    # With a fault handler the rest of the copy is still read, and all that is read is finite.
    faults: list[DataError] = []
    for recording in get_reader(name).read(root, faults.append):
        assert np.isfinite(recording.numbers).all()
    assert faults
    assert all("\n" not in str(fault) for fault in faults)


@pytest.mark.parametrize(
    ("name", "file"),
    [("humaneva", POSES), ("mpi-inf-3dhp", ANNOT), ("mpi-inf-3dhp", TEST), ("mpii", mpii.MAT_NAME),
     ("mpii-json", JSON), ("lsp", LSP), ("kth", f"{SEQUENCE}/cameras.txt"), ("humaneva", CAL)],
)  # fmt: skip
def test_no_code_of_a_file_runs(
    name: str, file: str, copies: dict[str, Path], tmp_path: Path
) -> None:
    root, target = tmp_path / "copy", tmp_path / "ran"
    shutil.copytree(copies[name], root)
    (root / file).write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(DataError) as caught:
        read_recordings(root, name)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    pickle.loads((root / file).read_bytes())  # what a careless reader would have done
    assert target.exists()


def test_windows_line_ends_and_byte_order_marks_are_no_fault(
    copies: dict[str, Path], tmp_path: Path, read: dict[str, list[Recording]]
) -> None:
    for name, files in {
        "humaneva": [CAL], "mpi-inf-3dhp": [CALIBRATION], "kth": [f"{SEQUENCE}/cameras.txt"],
        "mpii-json": [JSON],
    }.items():  # fmt: skip
        root = tmp_path / name
        shutil.copytree(copies[name], root)
        for file in files:
            text = (root / file).read_bytes().replace(b"\n", b"\r\n")
            (root / file).write_bytes(b"\xef\xbb\xbf" + text)
        for ours, theirs in zip(read_recordings(root), read[name], strict=True):
            np.testing.assert_array_equal(ours.joints_2d, theirs.joints_2d)
            if ours.camera is not None:
                assert theirs.camera is not None
                np.testing.assert_array_equal(
                    ours.camera.orientation(), theirs.camera.orientation()
                )


def test_a_truncated_video_and_a_damaged_picture_are_told(
    copies: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "he"
    shutil.copytree(copies["humaneva"], root)
    video = root / "S1/Image_Data/Walking_1_(C1).avi"
    video.write_bytes(video.read_bytes()[:-20000])
    recording = next(r for r in read_recordings(root) if r.split == "train")
    assert recording.pictures is not None
    with pytest.raises(DataError, match="Walking_1_") as caught:
        recording.pictures.read([len(recording) - 1])
    assert "\n" not in str(caught.value)
    root = tmp_path / "lsp"
    shutil.copytree(copies["lsp"], root)
    (root / "lsp_dataset/images/im0001.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    recording = read_recordings(root)[0]
    assert recording.pictures is not None
    with pytest.raises(DataError, match=r"im0001\.jpg: not a readable picture"):
        recording.pictures.read([0])


def test_videos_without_their_synchronisation_are_not_used(
    copies: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "he"
    shutil.copytree(copies["humaneva"], root)
    (root / "S1/Sync_Data/Walking_1_(C1).ofs").unlink()
    found = read_recordings(root)
    assert all(
        (r.pictures is None) == (r.camera is not None and r.camera.name == "C1") for r in found
    )
    assert any("Sync_Data" in line for line in humaneva.missing(root, found))


def test_a_humaneva_export_is_found_beside_the_official_files(
    copies: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(copies["humaneva"] / "S1", tmp_path / "S1")
    for split in ("Train", "Validate"):
        shutil.copytree(copies["humaneva"] / split, tmp_path / "converted_15j" / split)
    for root in (tmp_path, tmp_path / "converted_15j"):
        assert find_reader(root).name == "humaneva"
        assert len(read_recordings(root)) == 6


def test_what_a_copy_lacks_is_told_and_how_to_get_it(
    copies: dict[str, Path], read: dict[str, list[Recording]]
) -> None:
    says = {
        "humaneva": "Train: no S1 Jog", "mpi-inf-3dhp": "test: no TS2", "kth": "no player1",
        "lsp": "LSP: 24 of 2000",
    }  # fmt: skip
    for name, beginning in says.items():
        lines = get_reader(name).missing(copies[name], read[name])
        assert any(line.startswith(beginning) and "http" in line for line in lines), (name, lines)
        assert all("\n" not in line for line in lines)
    assert mpii_json.missing(copies["mpii-json"], read["mpii-json"]) == []


# ---- the command --------------------------------------------------------------------------------


def test_synth_writes_a_copy_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "copy"
    command = ["data", "synth", "lsp", "--out", str(out), "--subjects", "1", "--frames", "2"]
    assert main([*command, "--size", "100"]) == 0
    assert "MB" in capsys.readouterr().out
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert find_reader(out).name == "lsp"
    assert main([*command, "--size", "100"]) == 2  # never over something
    assert "not empty" in capsys.readouterr().err
    again = [*command[:4], str(tmp_path / "again"), *command[5:], "--size", "100"]
    assert main(again) == 0  # the same numbers every time
    for name, content in files.items():
        if not name.endswith(".mat"):  # whose header holds the time
            assert (tmp_path / "again" / name).read_bytes() == content

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datamodules.synth.lsp.write_mat", full)
    assert main([*command[:4], str(tmp_path / "third"), *command[5:]]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "new"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mpi"], "did you mean"),
        (["lsp", "--subjects", "9"], "1 to 3"),
        (["lsp", "--frames", "1"], "2 to 10000"),
        (["lsp", "--size", "7"], "64 to 8192"),
        (["lsp", "--seed", "-1"], "negative"),
    ],
)
def test_synth_refuses_what_it_cannot_write(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "synth", *arguments, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_synth_list_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "synth", "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in WRITERS)


def test_no_reader_of_that_name() -> None:
    with pytest.raises(UsageError, match="mpii"):
        get_reader("mpi")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpii", "kth", "humaneva"])
def test_a_method_trains_on_it_through_the_command_line(
    name: str, copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # 2D alone does not tell the size of people: it fine-tunes what has learnt it.
    start = ["--weights", "park.small"] if name == "mpii" else ["--recipe", "small"]
    assert (
        main(
            ["fit", "--method", "park", *start, "--data", name,
             f"--data.root={copies[name]}", "--data.num_workers=0", "--data.batch_size=4",
             "--trainer.fast_dev_run=1", "--gpus", "0"]
        )
        == 0
    )  # fmt: skip
