"""Human3.6M: every format gives the same people back, and faulty copies say what is wrong."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.human36m import (
    ACTIONS,
    CAMERAS,
    EXCLUSIONS,
    Human36MDataModule,
    read_metadata,
    rotation_from_angles,
    split_name,
    trials_of,
)
from datamodules.human36m_cdf import read_cdf
from datamodules.human36m_mmpose import read_cameras
from datamodules.readers import READERS, find_reader, get_reader, read_recordings
from datamodules.recordings import Recording
from datamodules.resection import resect
from datamodules.synth import (
    human36m_cdf,
    human36m_fetch,
    human36m_lists,
    human36m_mmpose,
    human36m_videopose3d,
)
from datamodules.synth.people import People, Take, make_people
from zoo.base import InputSpec
from zoo.errors import DataError, UsageError
from zoo.geometry import project

KEYPOINTS = InputSpec("keypoints", image_size=64)


@pytest.fixture(scope="session")
def people() -> People:
    return make_people(("S1", "S9"), ("Directions", "SittingDown"), (1, 2), 11, detail=64)


@pytest.fixture(scope="session")
def copies(people: People, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each format; tests change copies of them only."""
    root = tmp_path_factory.mktemp("human36m")
    human36m_cdf.write_poses(root / "cdf", people)
    xml = human36m_cdf.metadata_xml(people.cameras, people)
    (root / "cdf" / "metadata.xml").write_text(xml, encoding="utf-8")
    human36m_cdf.write_poses(root / "cdf-bare", people, "Poses_{}")
    human36m_fetch.write(root / "fetch", people)
    human36m_mmpose.write(root / "mmpose", people)
    human36m_videopose3d.write(root / "videopose3d", people)
    human36m_lists.write(root / "lists", people)
    human36m_lists.write_ssc(root / "ssc", people)
    return {path.name: path for path in root.iterdir()}


READER = {
    "cdf": "human36m-cdf", "cdf-bare": "human36m-cdf", "fetch": "human36m-fetch",
    "mmpose": "human36m-mmpose", "videopose3d": "human36m-videopose3d",
    "lists": "human36m-lists", "ssc": "human36m-lists",
}  # fmt: skip


@pytest.fixture(scope="session")
def loaded(copies: dict[str, Path]) -> Callable[[str], list[Recording]]:
    """The recordings of each copy, read once."""
    return cache(lambda name: find_reader(copies[name]).read(copies[name]))


def take_of(people: People, recording: Recording) -> Take:
    key = (recording.subject, recording.action, recording.trial)
    return next(t for t in people.takes if (t.subject, t.action, t.trial) == key)


# ---- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READER)
def test_every_format_gives_the_people_back(
    people: People,
    copies: dict[str, Path],
    loaded: Callable[[str], list[Recording]],
    name: str,
) -> None:
    assert find_reader(copies[name]).name == READER[name]
    recordings = loaded(name)
    assert len(recordings) == len(people.takes) * 4
    assert len({r.label for r in recordings}) == len(recordings)
    for recording in recordings:
        take = take_of(people, recording)
        assert recording.camera is not None
        camera = people.cameras[recording.subject][CAMERAS.index(recording.camera.name)]
        rows, numbers = slice(None), recording.numbers
        joints = recording.camera_joints(rows)
        truth = camera.to_camera(take.world)[numbers]
        pixels = people.pixels(take, camera)[numbers]
        if name == "ssc":
            sixteen = [j for j in range(17) if j != 9]
            truth = (truth - truth[:, :1])[:, sixteen]
            pixels = pixels[:, sixteen]
        assert joints is not None
        np.testing.assert_allclose(joints, truth, atol=0.02 if name == "videopose3d" else 2e-3)
        np.testing.assert_allclose(recording.pixels(), pixels, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "gap"),
    [("cdf", 1e-3), ("cdf-bare", 1e-3), ("mmpose", 1e-3), ("videopose3d", 1e-3),
     ("lists", 2e-2), ("fetch", 2.0)],
)  # fmt: skip
def test_the_stored_camera_lands_on_the_stored_2d(
    loaded: Callable[[str], list[Recording]], name: str, gap: float
) -> None:
    for recording in loaded(name):
        assert recording.reprojected() is not None
        distance = np.linalg.norm(recording.reprojected() - recording.pixels(), axis=-1)
        assert distance.max() < gap, recording.label


def test_world_cameras_agree_between_formats(
    people: People, loaded: Callable[[str], list[Recording]]
) -> None:
    truth = people.cameras["S9"][2]
    for name in ("cdf", "mmpose", "videopose3d"):
        camera = next(
            r.camera for r in loaded(name)
            if r.subject == "S9" and r.camera and r.camera.name == truth.name
        )  # fmt: skip
        np.testing.assert_allclose(camera.rotation, truth.rotation, atol=1e-5)
        np.testing.assert_allclose(camera.position, truth.position, atol=0.05)


@pytest.mark.slow
def test_2d_of_a_detector_with_other_joints_is_mapped_by_name(
    people: People, copies: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(copies["videopose3d"] / "data_3d_h36m.npz", tmp_path)
    coco = np.array([9, 10, 10, 10, 10, 11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3])
    rng = np.random.default_rng(0)
    flat: dict[str, Any] = {}
    for take in people.takes:
        views = [people.pixels(take, c)[:, coco] for c in people.cameras[take.subject]]
        noisy = [(v + rng.normal(0, 0.5, v.shape)).astype(np.float32) for v in views]
        flat.setdefault(take.subject, {})[human36m_videopose3d._name(take)] = noisy
    sides = [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]]
    metadata: Any = {"layout_name": "coco", "num_joints": 17, "keypoints_symmetry": sides}
    path = tmp_path / "data_2d_h36m_detectron_ft_h36m.npz"
    np.savez(path, positions_2d=flat, metadata=metadata)  # type: ignore[arg-type]
    for recording in read_recordings(tmp_path):
        truth = take_of(people, recording)
        assert recording.camera is not None
        camera = people.cameras[recording.subject][CAMERAS.index(recording.camera.name)]
        gap = np.abs(recording.pixels()[:, 13] - people.pixels(truth, camera)[:, 13])  # type: ignore[index]
        assert gap.max() < 3  # the wrist is the wrist
        assert np.linalg.norm(recording.camera.position - camera.position) < 300  # type: ignore[operator]


def test_resection_finds_a_camera_exactly_and_survives_wrong_points(people: People) -> None:
    camera, take = people.cameras["S1"][1], people.takes[0]
    points = np.concatenate([t.world for t in people.takes[:4]]).reshape(-1, 3)
    pixels = camera.project(camera.to_camera(points))
    found = resect("c", points, pixels)
    assert found is not None
    np.testing.assert_allclose(found.position, camera.position, atol=1e-2)
    np.testing.assert_allclose(found.project(found.to_camera(points)), pixels, atol=1e-4)
    rng = np.random.default_rng(0)
    wrong = pixels + np.where(rng.random(len(pixels)) < 0.02, 200.0, 0.0)[:, None]
    rough = resect("c", points, wrong)
    assert rough is not None
    assert np.linalg.norm(rough.position - camera.position) < 100  # type: ignore[operator]
    flat = np.array(points)
    flat[:, 2] = 0
    assert resect("c", flat, pixels) is None
    assert resect("c", points[:20], pixels[:20]) is None
    assert take.world.shape[1:] == (17, 3)


def test_metadata_of_the_official_code(people: People, copies: dict[str, Path]) -> None:
    metadata = read_metadata(copies["cdf"] / "metadata.xml")
    assert len(metadata.cameras) == 44
    truth = people.cameras["S9"][3]
    camera = metadata.cameras["S9", truth.name]
    for field in ("rotation", "position", "radial", "tangential"):
        np.testing.assert_allclose(getattr(camera, field), getattr(truth, field), atol=1e-9)
    np.testing.assert_allclose(camera.matrix[:2], truth.matrix[:2], atol=1e-9)  # type: ignore[index]
    assert metadata.trials["S1", "TakingPhoto 1"] == 1
    assert metadata.trials["S9", "SittingDown 1"] == 2
    assert metadata.trials["S11", "Phoning 3"] == 1
    assert np.allclose(rotation_from_angles([0, 0, 0]), np.eye(3))


@pytest.mark.parametrize(
    ("subject", "action", "suffixes", "trials"),
    [
        ("S1", "Walking", ("1", ""), {"1": 1, "": 2}),
        ("S5", "Discussion", ("2", "3"), {"2": 1, "3": 2}),
        ("S1", "Eating", ("2", ""), {"2": 1, "": 2}),
        ("S11", "Phoning", ("2", "3"), {"3": 1, "2": 2}),
        ("S9", "SittingDown", ("1", ""), {"": 1, "1": 2}),
        ("S6", "SittingDown", ("1", ""), {"1": 1, "": 2}),
        ("S6", "Photo", ("1", ""), {"": 1, "1": 2}),
        ("S7", "Walking", ("",), {"": 2}),
        ("S7", "Walking", ("1",), {"1": 1}),
    ],
)
def test_trials_of_the_file_names(
    subject: str, action: str, suffixes: tuple[str, ...], trials: dict[str, int]
) -> None:
    found = trials_of(subject, action, suffixes)
    assert {k: found[k] for k in trials} == trials


@pytest.mark.parametrize(
    ("stem", "parsed"),
    [
        ("Sitting 1", ("Sitting", "1")), ("SittingDown", ("SittingDown", "")),
        ("TakingPhoto 1", ("Photo", "1")), ("WalkingDog", ("WalkDog", "")),
        ("WalkTogether_2", ("WalkTogether", "2")), ("_ALL 1", None), ("Walk", None),
    ],
)  # fmt: skip
def test_action_names(stem: str, parsed: tuple[str, str] | None) -> None:
    assert split_name(stem) == parsed
    assert len(ACTIONS) == 15


# ---- the data module ----------------------------------------------------------------------------


def test_the_data_module_reads_any_format_and_follows_the_protocol(
    copies: dict[str, Path],
) -> None:
    data = Human36MDataModule(str(copies["cdf"]), num_workers=0, input_spec=KEYPOINTS)
    assert data.action_names == ACTIONS
    assert data.protocol("test").exclusions == EXCLUSIONS
    assert "THE FOLDER HAS NO S11: not the protocol's number." in data.protocol("test").definition
    data.setup("test")
    batch = data.on_after_batch_transfer(data.test_set.__getitems__(range(len(data.test_set))), 0)
    assert set(batch["subject"].tolist()) == {9}
    assert set(batch["frame"].tolist()) == {0, 5, 10}  # 10 fps of 50
    assert set(batch["camera"].tolist()) == {0, 1, 2, 3}
    assert set(batch["action"].tolist()) == {ACTIONS.index("Directions"), 8}
    pixels = project(batch["joints_3d"] + batch["root_3d"].unsqueeze(-2), batch["intrinsics"])
    assert (pixels - batch["joints_2d"]).abs().max() < 0.5
    frontal = Human36MDataModule(
        str(copies["cdf"]), protocol="p3-tome", num_workers=0, input_spec=KEYPOINTS
    )
    frontal.setup("test")
    assert {r.label for r in frontal.test_set.recordings} == {
        "S9 Directions trial 1 camera 60457274", "S9 SittingDown trial 1 camera 60457274"
    }  # fmt: skip
    shifted = Human36MDataModule(
        str(copies["cdf"]), skip_shifted=True, num_workers=0, input_spec=KEYPOINTS
    )
    assert len(shifted.split("test")) == len(data.split("test")) - 4
    with pytest.raises(DataError, match="nothing for val"):
        data.setup("fit")  # the copy has no S8


def test_the_same_batch_from_two_formats(copies: dict[str, Path]) -> None:
    first, second = (
        Human36MDataModule(str(copies[n]), num_workers=0, input_spec=KEYPOINTS).test_set
        for n in ("cdf", "mmpose")
    )
    ids = ("subject", "action", "camera", "sequence", "frame")

    def table(dataset: Any) -> dict[tuple[int, ...], torch.Tensor]:
        batch = dataset.__getitems__(range(len(dataset)))
        keys = torch.stack([batch[k] for k in ids], 1).tolist()
        return {tuple(k): j for k, j in zip(keys, batch["joints_3d"], strict=True)}

    a, b = table(first), table(second)
    assert set(a) == set(b)
    for key, joints in a.items():
        torch.testing.assert_close(joints, b[key], atol=2e-3, rtol=0)


# ---- malformed copies ---------------------------------------------------------------------------


class Payload:
    """Unpickled by the standard module it would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def first_file(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def edit_npz(path: Path, **changes: Callable[[Any], Any]) -> None:
    content = dict(np.load(path, allow_pickle=True))
    content = {k: v.item() if v.shape == () else v for k, v in content.items()}
    np.savez(path, **{k: changes[k](v) if k in changes else v for k, v in content.items()})


def edit_h5(path: Path, key: str, change: Callable[[Any], Any] | None) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        value = file[key][()]
        del file[key]
        if change is not None:
            file[key] = change(value)


def edit_text(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, count).encode())


def rewrite(path: Path, change: Callable[[Any], Any], width: int) -> None:
    import cdflib

    pose = np.asarray(cdflib.CDF(path).varget("Pose")).reshape(-1, 32, width)
    human36m_cdf.write_cdf(path, change(pose))


def pickled_camera(root: Path, change: Callable[[Any], Any]) -> None:
    path = root / "annotation_body3d" / "cameras.pkl"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(content)))


def without(mapping: dict[Any, Any], *keys: Any) -> dict[Any, Any]:
    return {k: v for k, v in mapping.items() if k not in keys}


def nan_like(value: Any) -> Any:
    return np.full_like(value, np.nan)


def mirrored_camera(content: Any) -> Any:
    key = next(iter(content))
    return {**content, key: {**content[key], "R": -content[key]["R"]}}


def small_pictures(content: Any) -> Any:
    key = next(iter(content))
    return {**content, key: {**content[key], "h": 204}}


FLAT = "D2_Positions/Directions 1.54138969.cdf"
DEEP = "D3_Positions_mono/Directions 1.54138969.cdf"
LIST = "linux_accv_train_camera_1_label_2d.txt"

FAULTS: list[tuple[str, str, Callable[[Path], Any], str]] = [
    # the official files
    ("cdf", "0-byte file", lambda r: first_file(r, FLAT).write_bytes(b""), "an empty file"),
    ("cdf", "truncated CDF", lambda r: truncate(first_file(r, DEEP)), "a damaged one"),
    ("cdf", "text instead of CDF", lambda r: first_file(r, DEEP).write_text("moved"), "not a CDF"),
    ("cdf", "2D missing", lambda r: first_file(r, FLAT).unlink(), "no such file"),
    ("cdf", "17 joints", lambda r: rewrite(first_file(r, DEEP), lambda p: p[:, :17], 3),
     "expected (1, frames, 96): 32 joints"),
    ("cdf", "2D in the 3D's place", lambda r: shutil.copy(first_file(r, FLAT), first_file(r, DEEP)),
     "(11, 64), expected (1, frames, 96)"),
    ("cdf", "NaN joints", lambda r: rewrite(first_file(r, DEEP), nan_like, 3), "no finite number"),
    ("cdf", "fewer 2D frames", lambda r: rewrite(first_file(r, FLAT), lambda p: p[:7], 2),
     "7 frames, but Directions 1.54138969.cdf of the 3D has 11"),
    ("cdf", "unknown action",
     lambda r: first_file(r, DEEP).rename(first_file(r, DEEP).with_name("Dancing 1.54138969.cdf")),
     "'Dancing 1' is no action"),
    ("cdf", "broken XML", lambda r: truncate(r / "metadata.xml"), "not a readable XML"),
    ("cdf", "short w0", lambda r: edit_text(r / "metadata.xml", "<w0>[", "<w0>[1 2 ", 1),
     "302 numbers, expected 300"),
    ("cdf", "words in w0", lambda r: edit_text(r / "metadata.xml", "<w0>[", "<w0>[x "),
     "no number"),
    ("cdf", "2D only", lambda r: [shutil.rmtree(p) for p in r.glob("S1/MyPoseFeatures/D3*")],
     "2D without 3D"),
    ("cdf-bare", "world without cameras",
     lambda r: [shutil.rmtree(p) for p in r.glob("S*/Poses_D3_Positions_mono")],
     "world coordinates without cameras"),
    ("cdf-bare", "3D only, no metadata",
     lambda r: [shutil.rmtree(p) for p in r.glob("S*/Poses_D2_Positions")],
     "3D without 2D and without metadata.xml"),
    # h36m-fetch
    ("fetch", "0-byte file", lambda r: first_file(r, "annot.h5").write_bytes(b""), "an empty file"),
    ("fetch", "truncated HDF5", lambda r: truncate(first_file(r, "annot.h5")), "damaged"),
    ("fetch", "no 3D", lambda r: edit_h5(first_file(r, "annot.h5"), "pose/3d", None),
     "no pose/3d"),
    ("fetch", "wrong joint count",
     lambda r: edit_h5(first_file(r, "annot.h5"), "pose/3d", lambda v: v[:, :17]), "32, 3)"),
    ("fetch", "NaN joints", lambda r: edit_h5(first_file(r, "annot.h5"), "pose/3d", nan_like),
     "no finite number"),
    ("fetch", "frames from 0",
     lambda r: edit_h5(first_file(r, "annot.h5"), "frame", lambda v: v - 1), "count from 1"),
    ("fetch", "missing camera's lens",
     lambda r: edit_h5(first_file(r, "annot.h5"), "intrinsics/60457274", None),
     "no intrinsics/60457274"),
    ("fetch", "unknown folder", lambda r: (r / "S1" / "Directions-1").rename(r / "S1" / "Jumps-1"),
     "expected a folder ACTION-1"),
    ("fetch", "frames twice",
     lambda r: edit_h5(first_file(r, "annot.h5"), "camera", lambda v: 0 * v + 54138969),
     "do not increase"),
    # VideoPose3D
    ("videopose3d", "no 2D", lambda r: (r / "data_2d_h36m_gt.npz").unlink(), "no data_2d_h36m_"),
    ("videopose3d", "not a zip", lambda r: (r / "data_3d_h36m.npz").write_text("404"),
     "not an .npz file"),
    ("videopose3d", "truncated", lambda r: truncate(r / "data_3d_h36m.npz"), "not an .npz file"),
    ("videopose3d", "another key",
     lambda r: np.savez(r / "data_3d_h36m.npz", poses=np.zeros(3)), "no array 'positions_3d'"),
    ("videopose3d", "millimetres",
     lambda r: edit_npz(r / "data_3d_h36m.npz", positions_3d=lambda v: {
         s: {a: p * 1000 for a, p in d.items()} for s, d in v.items()}), "must be metres"),
    ("videopose3d", "3 cameras",
     lambda r: edit_npz(r / "data_2d_h36m_gt.npz", positions_2d=lambda v: {
         s: {a: c[:3] for a, c in d.items()} for s, d in v.items()}), "list of 4 cameras"),
    ("videopose3d", "too few 2D frames",
     lambda r: edit_npz(r / "data_2d_h36m_gt.npz", positions_2d=lambda v: {
         s: {a: [x[:5] for x in c] for a, c in d.items()} for s, d in v.items()}),
     "5 frames, fewer than the 3D's 11"),
    ("videopose3d", "wrong joint count",
     lambda r: edit_npz(r / "data_3d_h36m.npz", positions_3d=lambda v: {
         s: {a: p[:, :20] for a, p in d.items()} for s, d in v.items()}), "(frames, 32, 3)"),
    ("videopose3d", "unknown layout",
     lambda r: edit_npz(r / "data_2d_h36m_gt.npz", metadata=lambda v: {**v, "num_joints": 15}),
     "none of the known layouts"),
    ("videopose3d", "an action of the 3D alone",
     lambda r: edit_npz(r / "data_2d_h36m_gt.npz", positions_2d=lambda v: {
         **v, "S1": without(v["S1"], "Directions")}), "not in the file"),
    ("videopose3d", "hostile pickle",
     lambda r: np.savez(r / "data_3d_h36m.npz", positions_3d=np.array(
         {"S1": Payload(str(r / "pwned"))}, dtype=object)), "refused, because it wants"),
    # mmpose
    ("mmpose", "hostile cameras.pkl",
     lambda r: pickled_camera(r, lambda c: {**c, "x": Payload(str(r / "pwned"))}),
     "refused, because it wants"),
    ("mmpose", "truncated cameras.pkl",
     lambda r: truncate(r / "annotation_body3d" / "cameras.pkl"), "truncated"),
    ("mmpose", "a camera without R",
     lambda r: pickled_camera(r, lambda c: {k: without(v, "R") for k, v in c.items()}),
     "with R, T, f, c, k, p, w, h"),
    ("mmpose", "a mirrored camera", lambda r: pickled_camera(r, mirrored_camera), "no rotation"),
    ("mmpose", "204 px high", lambda r: pickled_camera(r, small_pictures), "1000 x 204 px"),
    ("mmpose", "millimetres",
     lambda r: edit_npz(first_file(r, "h36m_train.npz"), S=lambda v: v * [1e3, 1e3, 1e3, 1]),
     "must be metres"),
    ("mmpose", "24 joints",
     lambda r: edit_npz(first_file(r, "h36m_train.npz"), S=lambda v: np.zeros((len(v), 24, 4))),
     "24, 4), expected"),
    ("mmpose", "other file names",
     lambda r: edit_npz(first_file(r, "h36m_train.npz"), imgname=lambda v: np.char.add(v, "x/")),
     "imgname"),
    ("mmpose", "0-byte npz", lambda r: first_file(r, "h36m_test.npz").write_bytes(b""),
     "not an .npz file"),
    # lists
    ("lists", "a word among numbers", lambda r: edit_text(first_file(r, LIST), ",", ",abc,"),
     "no number"),
    ("lists", "a number too many", lambda r: edit_text(first_file(r, LIST), ".jpg ", ".jpg 1.5,"),
     ":1: 35 numbers, expected 34"),
    ("lists", "3D list missing",
     lambda r: first_file(r, LIST.replace("2d", "3d")).unlink(), "is missing"),
    ("lists", "another order",
     lambda r: edit_text(first_file(r, LIST), "/1.jpg", "/7.jpg"), "lists other pictures"),
    ("lists", "an empty list", lambda r: first_file(r, LIST).write_text("\n"), "an empty list"),
    ("lists", "not text", lambda r: first_file(r, LIST).write_bytes(b"\xff\xfe\x00"), "readable"),
    ("ssc", "no range file",
     lambda r: (r / "16point_mean_limb_scaled_max_min.csv").unlink(), "has no unit"),
    ("ssc", "range rows swapped",
     lambda r: (r / "16point_mean_limb_scaled_max_min.csv").write_text("\n".join(
         (r / "16point_mean_limb_scaled_max_min.csv").read_text().split()[::-1])),
     "the larger first"),
    ("ssc", "no clip flag",
     lambda r: edit_text(first_file(r, "*train*clip.txt"), " 0\n", "\n"), "PATH NUMBERS CLIP"),
    ("ssc", "other paths",
     lambda r: edit_text(first_file(r, "*train*clip.txt"), "camera_1/", "cam1/", 1000),
     "expected .../camera_C"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "what", "spoil", "message"), FAULTS, ids=[f"{n}-{w}" for n, w, _, _ in FAULTS]
)
def test_a_faulty_copy_says_in_one_line_what_is_wrong(
    copies: dict[str, Path], tmp_path: Path, name: str, what: str,
    spoil: Callable[[Path], Any], message: str,
) -> None:  # fmt: skip
    root = tmp_path / name
    shutil.copytree(copies[name], root, ignore=shutil.ignore_patterns("*.jpg"))
    spoil(root)
    reader = get_reader(READER[name])
    found: list[DataError] = []
    reader.read(root, found.append)
    assert found, what
    assert message in str(found[0])
    assert str(root) in str(found[0])
    assert all("\n" not in str(error) for error in found)
    with pytest.raises(DataError):
        reader.read(root)
    assert not (root / "pwned").exists()


@pytest.mark.parametrize("name", ["lists", "ssc"])
def test_windows_line_ends_change_nothing(
    copies: dict[str, Path], tmp_path: Path, name: str
) -> None:
    shutil.copytree(copies[name], tmp_path / name, ignore=shutil.ignore_patterns("*.jpg"))
    for path in (tmp_path / name).rglob("*.[tc][xs][tv]"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    for a, b in zip(read_recordings(copies[name]), read_recordings(tmp_path / name), strict=True):
        np.testing.assert_array_equal(a.joints_2d, b.joints_2d)
        np.testing.assert_array_equal(a.joints_3d, b.joints_3d)


def test_a_missing_camera_is_no_fault_and_is_told(copies: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "cdf"
    shutil.copytree(copies["cdf"], root)
    for path in root.glob("S1/MyPoseFeatures/*/*.60457274.cdf"):
        path.unlink()
    reader = find_reader(root)
    recordings = reader.read(root)
    assert len(recordings) == 7 * 4
    lines = reader.missing(root, recordings)
    assert any("S1: no camera 60457274" in line for line in lines)
    assert any(line.startswith("S5: no poses; register at vision.imar.ro") for line in lines)
    assert any("S1: no Discussion" in line for line in lines)


def test_folders_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_reader(tmp_path / "gone")
    (tmp_path / "S1").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="of no known format: "):
        find_reader(tmp_path)
    with pytest.raises(UsageError, match="did you mean human36m-"):
        read_recordings(tmp_path, "human36m-mpose")
    assert all(not reader.identify(tmp_path) for reader in READERS)


def test_pictures_that_are_missing_or_damaged(copies: dict[str, Path], tmp_path: Path) -> None:
    recording = read_recordings(copies["mmpose"])[0]
    assert recording.pictures is not None
    assert recording.pictures.missing() == ""
    assert recording.pictures.read([1, 1])[0].pixels.shape == (1002, 1000, 3)
    shutil.copytree(copies["mmpose"] / "annotation_body3d", tmp_path / "annotation_body3d")
    (tmp_path / "images").mkdir()
    bare = read_recordings(tmp_path)[0]
    assert bare.pictures is not None
    assert "no picture" in bare.pictures.missing()
    with pytest.raises(DataError, match="no such picture"):
        bare.pictures.read([0])
    name = bare.pictures.names[0]  # type: ignore[attr-defined]
    (tmp_path / "images" / name).parent.mkdir(parents=True)
    source = copies["mmpose"] / "images" / name
    (tmp_path / "images" / name).write_bytes(source.read_bytes()[:300])
    with pytest.raises(DataError, match="not a readable picture"):
        bare.pictures.read([0])


def test_videos_longer_shorter_and_truncated(people: People, tmp_path: Path) -> None:
    some = People(people.takes[:1], {"S1": people.cameras["S1"][:1]}, people.fps, 64)
    human36m_cdf.write(tmp_path, People(some.takes, people.cameras, people.fps, 32))
    recording = read_recordings(tmp_path)[0]
    assert recording.pictures is not None
    pictures = recording.pictures.read([10, 0])  # the video has two frames more than the poses
    truth = some.pictures(some.takes[0], some.cameras["S1"][0], [10, 0])
    for picture, true in zip(pictures, truth, strict=True):
        assert picture.pixels.shape[1] == 1000
        small = np.asarray(Image.fromarray(picture.pixels[:1000]).resize((50, 50)), float)
        assert np.abs(small - np.asarray(Image.fromarray(true[:1000]).resize((50, 50)), float)
                      ).mean() < 12  # fmt: skip
    with pytest.raises(DataError, match="has no frame 40: it is shorter than its poses"):
        recording.pictures.read([40])
    truncate(first_file(tmp_path, "Directions 1.54138969.mp4"))
    with pytest.raises(DataError, match="is truncated"):
        recording.pictures.read([10])


def test_read_cdf_of_the_real_shape(people: People, copies: dict[str, Path]) -> None:
    path = copies["cdf"] / "S9" / "MyPoseFeatures" / "D3_Positions" / "Directions.cdf"
    take = next(t for t in people.takes if (t.subject, t.trial) == ("S9", 2))
    np.testing.assert_allclose(read_cdf(path, 3), take.world, atol=1e-3)
    cameras = read_cameras(copies["mmpose"] / "annotation_body3d" / "cameras.pkl")
    assert len(cameras) == 8
