"""Own recordings: the layout, its round trip, what is refused, and training on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.own import INDEX, OwnDataModule, identify, missing, read
from datamodules.readers import find_reader
from datamodules.recordings import Recording
from datamodules.synth.own import write
from datamodules.synth.people import People, make_people
from zoo.base import InputSpec
from zoo.errors import DataError, ZooError
from zoo.metrics import PoseMetrics
from zoo.registry import get_method, list_models, resolve_class

SIZES = ((120, 122), (120, 120))


@pytest.fixture(scope="module")
def people() -> People:
    return make_people(
        ("S1", "S5", "S9"), ("Walking",), (1,), frames=6, sizes=SIZES, detail=96, seed=2
    )


@pytest.fixture(scope="module")
def made(people: People, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "data"
    write(root, people)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((root / INDEX).read_text())
    change(document)
    (root / INDEX).write_text(json.dumps(document))


def arrays(root: Path, number: int = 0) -> dict[str, Any]:
    document = json.loads((root / INDEX).read_text())
    with np.load(root / document["recordings"][number]["poses"]) as file:
        return {key: file[key] for key in file.files}


def save(root: Path, content: dict[str, Any], number: int = 0) -> None:
    document = json.loads((root / INDEX).read_text())
    np.savez(root / document["recordings"][number]["poses"], **content)


def test_round_trip(made: Path, people: People) -> None:
    assert find_reader(made).name == "own"
    found = read(made)
    assert len(found) == 6
    for recording in found:
        (take,) = [t for t in people.takes if t.subject == recording.subject]
        assert recording.camera is not None
        assert recording.joints_3d is not None
        assert recording.joints_2d is not None
        name = recording.camera.name.partition("-")[2]
        (camera,) = [c for c in people.cameras[take.subject] if c.name == name]
        assert np.abs(recording.joints_3d - take.world).max() < 1e-3
        assert np.abs(recording.joints_2d - people.pixels(take, camera)).max() < 1e-3
        projected = recording.reprojected()
        assert projected is not None
        assert np.abs(projected - recording.joints_2d).max() < 0.01
        assert recording.split == ("test" if take.subject == "S9" else "")
        assert recording.pictures is not None
        assert recording.pictures.missing() == ""
        (picture,) = recording.pictures.read([3])
        assert picture.pixels.shape[:2] == (camera.size[1], camera.size[0])
    assert missing(made, found) == []


def same(left: list[Recording], right: list[Recording], tolerance: float = 1e-3) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.label == b.label
        for one, two in ((a.camera_joints(), b.camera_joints()), (a.pixels(), b.pixels())):
            assert one is not None
            assert two is not None
            assert np.abs(one - two).max() < tolerance


def test_units_axes_and_json_give_the_same(copy: Path, made: Path) -> None:
    turn = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # z up to y up
    document = json.loads((copy / INDEX).read_text())
    document["units"], document["up"] = "m", "y"
    for camera in document["cameras"].values():
        camera["position"] = (turn @ np.array(camera["position"]) / 1000).tolist()
        camera["rotation"] = (np.array(camera["rotation"]) @ turn.T).tolist()
    for entry in document["recordings"]:
        with np.load(copy / entry["poses"]) as file:
            content = {key: file[key] for key in file.files}
        content["joints_3d"] = content["joints_3d"].astype(np.float64) @ turn.T / 1000
        entry["poses"] = entry["poses"].replace(".npz", ".json")
        (copy / entry["poses"]).write_text(
            json.dumps({key: value.tolist() for key, value in content.items()})
        )
    (copy / INDEX).write_bytes(
        json.dumps(document, indent=1).replace("\n", "\r\n").encode("utf-8-sig")
    )
    same(read(copy), read(made))


def test_missing_joints_are_null_or_nan(copy: Path) -> None:
    content = arrays(copy)
    content["joints_3d"][:, 4] = np.nan
    content["joints_2d"][0, 7] = np.nan
    save(copy, content)
    edit(copy, lambda d: d.update(test_subjects=[]))
    data = OwnDataModule(str(copy), val_subjects=[], input_spec=InputSpec("keypoints"))
    batch = data.train_set.__getitems__(range(len(data.train_set)))
    assert not batch["valid_3d"][..., 4].all()
    assert (batch["joints_3d"][~batch["valid_3d"]] == 0).all()
    assert int((~batch["valid_2d"]).sum()) == int((~batch["valid_2d"][..., 7]).sum()) > 0


def test_frames_of_a_longer_folder(copy: Path) -> None:
    content = {key: value[[0, 2, 5]] for key, value in arrays(copy).items()}
    save(copy, {**content, "frames": np.array([0, 2, 5])})
    (recording,) = [r for r in read(copy) if len(r) == 3]
    assert recording.numbers.tolist() == [0, 2, 5]
    assert recording.pictures.names == ("000000.jpg", "000002.jpg", "000005.jpg")  # type: ignore[union-attr]


def test_who_trains_who_is_held_out_and_who_is_tested(made: Path) -> None:
    data = OwnDataModule(str(made), input_spec=InputSpec("keypoints"))

    def subjects(dataset: Any) -> set[str]:
        return {r.subject for r in dataset.recordings}

    assert data.val_subjects == ("S5",)  # the last of those that are not tested
    assert subjects(data.train_set) == {"S1"}
    assert subjects(data.val_set) == {"S5"}
    assert subjects(data.test_set) == {"S9"}
    assert data.protocol("test").test_subjects == ("S9",)
    assert data.protocol("test").train_subjects == ("S1",)
    everyone = OwnDataModule(str(made), val_subjects=[], input_spec=InputSpec("keypoints"))
    assert subjects(everyone.train_set) == {"S1", "S5"}
    assert everyone.protocol("test").train_subjects == ("S1", "S5")
    other = OwnDataModule(str(made), val_subjects=["S1"], input_spec=InputSpec("keypoints"))
    assert subjects(other.train_set) == {"S5"}


def test_a_synthetic_copy_says_so_in_every_definition(tmp_path: Path) -> None:
    from zoo.synth_cli import write_copy

    write_copy("own", tmp_path / "copy", frames=2, size=64)
    data = OwnDataModule(str(tmp_path / "copy"), input_spec=InputSpec("keypoints"))
    for split in ("val", "test"):
        assert "SYNTHETIC COPY of own data" in data.protocol(split).definition  # type: ignore[arg-type]
    assert len(data.test_set) > 0


def test_the_folder_may_say_who_is_held_out(copy: Path) -> None:
    edit(copy, lambda d: d.update(val_subjects=["S1"]))
    assert OwnDataModule(str(copy)).val_subjects == ("S1",)


def test_what_a_folder_lacks_is_said(copy: Path) -> None:
    def strip(document: dict[str, Any]) -> None:
        document["recordings"] = document["recordings"][:1]
        document["test_subjects"] = []
        del document["recordings"][0]["images"]

    edit(copy, strip)
    content = arrays(copy)
    del content["joints_3d"]
    save(copy, content)
    lines = missing(copy, read(copy))
    assert [line.split(":")[0] for line in lines] == [
        "no 3D", "no pictures", "nothing to test on", "one subject for training",
    ]  # fmt: skip


# ---- refused, in one line ------------------------------------------------------------------------


def _index(key: str, value: Any) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda d: d.update({key: value}))


def _entry(key: str, value: Any) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda d: d["recordings"][0].update({key: value}))


def _camera(key: str, value: Any) -> Callable[[Path], None]:
    def change(document: dict[str, Any]) -> None:
        document["cameras"]["S1-54138969"][key] = value

    return lambda root: edit(root, change)


def _array(key: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def run(root: Path) -> None:
        content = arrays(root)
        content[key] = change(content.get(key))
        save(root, content)

    return run


def _file(content: bytes) -> Callable[[Path], None]:
    def run(root: Path) -> None:
        document = json.loads((root / INDEX).read_text())
        (root / document["recordings"][0]["poses"]).write_bytes(content)

    return run


def _pickled(root: Path) -> None:
    content = arrays(root)
    content["joints_2d"] = np.array([{"a": 1}] * 6, dtype=object)
    save(root, content)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no json": (lambda r: (r / INDEX).write_text("{") and None, "not valid JSON"),
    "empty": (lambda r: (r / INDEX).write_text("") and None, "not valid JSON"),
    "format": (_index("format", "zoo-own-9"), "format is 'zoo-own-9'"),
    "recordings": (_index("recordings", []), "at least one entry"),
    "key": (_index("skeletton", "x"), "did you mean skeleton"),
    "up": (_index("up", "x"), "points up"),
    "unit": (_index("units", "inch"), "no unit 'inch'"),
    "wrong unit": (_index("units", "m"), r"is `units` \(mm, cm, m\) right"),
    "skeleton": (_index("skeleton", "h36m_18"), "no skeleton 'h36m_18'"),
    "test subjects": (_index("test_subjects", "S9"), "list of subjects"),
    "subject": (_entry("subject", ""), "subject is missing"),
    "camera": (_entry("camera", "front"), "no camera 'front'"),
    "no camera": (_entry("camera", None), "needs a camera"),
    "trial": (_entry("trial", 0), "number from 1"),
    "split": (_entry("split", "tset"), "did you mean test"),
    "space": (_entry("space", "room"), "no space 'room'"),
    "fps": (_entry("fps", -3), "fps is -3"),
    "poses": (_entry("poses", "poses/none.npz"), "no such file"),
    "poses kind": (_entry("poses", "poses/none.txt"), ".npz or .json"),
    "outside": (_entry("poses", "../../x.npz"), "outside of the folder"),
    "images": (_entry("images", "images/none"), "no folder images/none"),
    "both": (_entry("video", "x.mp4"), "not both"),
    "twice": (_entry("trial", 1), "stands twice"),
    "size of matrix": (_camera("matrix", [[1, 2], [3, 4]]), r"matrix must be \(3, 3\)"),
    "no rotation": (_camera("rotation", [[2, 0, 0], [0, 1, 0], [0, 0, 1]]), "no rotation"),
    "half a place": (_camera("position", None), "belong together"),
    "lens": (_camera("lens", "fish"), "no lens 'fish'"),
    "zero bytes": (_file(b""), "not readable"),
    "truncated": (_file(b"PK\x03\x04broken"), "not readable"),
    "pickle": (_pickled, "not readable"),
    "joints": (_array("joints_2d", lambda a: a[:, :16]), "joints_2d is"),
    "rows": (_array("joints_3d", lambda a: a[:4]), "joints_3d is"),
    "all NaN": (_array("joints_3d", lambda a: a * np.nan), "no finite number"),
    "frames": (_array("frames", lambda a: np.array([0, 1, 2, 2, 3, 4])), "do not increase"),
    "half frames": (_array("frames", lambda a: np.arange(6) + 0.5), "whole numbers"),
    "unknown array": (_array("joints", lambda a: np.zeros(3)), "no key 'joints'"),
    "flags": (_array("occluded", lambda a: np.full((6, 17), 2)), "true and false"),
    "pictures": (
        lambda r: next((r / "images").glob("S1*54138969/*.jpg")).unlink(), "5 pictures for 6 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_folder_is_one_line(name: str, copy: Path) -> None:
    damage, says = BROKEN[name]
    if name == "twice":
        edit(copy, lambda d: d["recordings"].append(dict(d["recordings"][0])))
    damage(copy)
    assert identify(copy)
    with pytest.raises(DataError, match=says) as error:
        read(copy)
    assert "\n" not in str(error.value)
    # What is right can still be read, and everything wrong is collected.
    faults: list[DataError] = []
    found = read(copy, faults.append)
    assert any(str(f) == str(error.value) for f in faults)
    good = {"subject", "trial", "poses", "all NaN", "zero bytes", "pictures", "pickle"}
    if name in good:
        assert len(found) == 5


# ---- trained and tested on -----------------------------------------------------------------------


def own_names() -> list[str]:
    return [name for name in list_models() if get_method(name).origin == "zoo"]


CLASSES = {get_method(name).class_path: name for name in reversed(own_names())}


@pytest.mark.parametrize("name", sorted(CLASSES.values()))
def test_every_method_trains_and_is_tested_on_it(name: str, made: Path) -> None:
    model = resolve_class(get_method(name)).tiny()
    data = OwnDataModule(
        str(made), train_fps=50, batch_size=4, num_workers=0, input_spec=model.input_spec
    )
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    model.fit_statistics(data.training_poses())
    train = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    model.phase = model.phases()[-1]
    loss = model.train().compute_loss(train)["loss"]
    assert loss.isfinite()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    metrics = PoseMetrics(data.protocol("test"), model.skeleton, data.action_names)
    model.eval()
    with torch.no_grad():
        for batch in data.test_dataloader():
            full = data.on_after_batch_transfer(batch, 0)
            metrics.update(model(full), model.select_frames(full))
    assert metrics.compute()["mpjpe_mm"].isfinite()
    assert metrics.per_action()["all frames"]["samples"] > 0
    says = "own-test: own data (synthetic people), trained on S1, tested on S9"
    assert metrics.definition.startswith(says)


@pytest.mark.slow
def test_from_the_command_line(made: Path, in_tmp: Path, capsys: Any) -> None:
    from zoo.cli import main

    common = ["--method", "park", "--recipe", "small", "--gpus", "0", "--data", "own",
              "--data.root", str(made), "--data.num_workers", "0"]  # fmt: skip
    assert main(["fit", *common, "--trainer.max_epochs", "1", "--run", "run", "--data.batch_size",
                 "4", "--trainer.enable_progress_bar", "false"]) == 0  # fmt: skip
    assert main(["test", *common, "--ckpt_path", "run/checkpoints/last.ckpt", "--json", "out.json",
                 "--run", "tested", "--trainer.enable_progress_bar", "false"]) == 0  # fmt: skip
    document = json.loads((in_tmp / "out.json").read_text())
    assert document["protocol"]["test_subjects"] == ["S9"]
    assert document["per_action"]["Walking"]["samples"] == 12
    assert main(["fit", *common[:6], "--data", "own", "--run", "none"]) == 2
    assert "needs --data.root DIR" in capsys.readouterr().err
    assert not (in_tmp / "none").exists()


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    for root in ("", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(ZooError) as error:
            OwnDataModule(root).prepare_data()
        assert "\n" not in str(error.value)
