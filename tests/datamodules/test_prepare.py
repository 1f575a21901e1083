"""Stores of crops: what goes in comes out, and a killed preparation goes on."""

from __future__ import annotations

import os
import shutil
import signal
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import prepare as module
from datamodules.crops import StoredCrops, is_stored, write_recording
from datamodules.filedata import RecordingDataset, number_recordings
from datamodules.human36m import ACTIONS, EXCLUSIONS, Human36MDataModule
from datamodules.prepare import RATES, Settings, bytes_needed, prepare
from datamodules.readers import Fault, Reader, find_reader, read_recordings, stop
from datamodules.recordings import ImageFiles, Picture, Recording
from datamodules.synth import human36m_cdf
from datamodules.synth.people import People, make_people
from tests.conftest import CliResult
from zoo.base import InputSpec
from zoo.errors import DataError, OutputError, UsageError
from zoo.geometry import affine_apply

SETTINGS = Settings(step=5, size=64)


class InMemory(Reader):
    """A reader of recordings that are given."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        super().__init__("memory", "human36m", "", "")
        object.__setattr__(self, "given", recordings)

    def read(self, root: Path, fault: Fault = stop) -> list[Recording]:
        return list(self.given)  # type: ignore[attr-defined]

    def exclusions(self) -> tuple[Any, ...]:
        return EXCLUSIONS


@pytest.fixture(scope="module")
def people() -> People:
    return make_people(("S1", "S8", "S9"), ("Directions",), (1,), 11, sizes=((250, 252),) * 2)


@pytest.fixture(scope="module")
def recordings(people: People, tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for take in people.takes:
        for camera in people.cameras[take.subject]:
            names = []
            for i, pixels in enumerate(people.pictures(take, camera)):
                names.append(f"{take.subject}_{camera.name}_{i}.png")
                Image.fromarray(pixels).save(folder / names[-1])
            found.append(
                Recording(
                    take.subject, take.action, take.trial, camera,
                    joints_2d=people.pixels(take, camera).astype(np.float32),
                    joints_3d=take.world.astype(np.float32), space="world", fps=50.0,
                    pictures=ImageFiles(str(folder), tuple(names)),
                )
            )  # fmt: skip
    return found


def made(recordings: Sequence[Recording], out: Path, **arguments: Any) -> dict[str, int]:
    settings = arguments.pop("settings", SETTINGS)
    return prepare(InMemory(recordings), Path("memory"), out, settings, quiet=True, **arguments)


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "recordings").iterdir())}


def test_what_goes_in_comes_out(recordings: list[Recording], tmp_path: Path) -> None:
    counts = made(recordings, tmp_path)
    assert (counts["recordings"], counts["crops"]) == (6, 18)
    assert find_reader(tmp_path).name == "human36m-crops"
    stored = {r.label: r for r in read_recordings(tmp_path)}
    spec = InputSpec(image_size=48)
    for recording in recordings:
        other = stored[recording.label]
        assert other.numbers.tolist() == [0, 5, 10]
        np.testing.assert_array_equal(other.joints_2d, recording.joints_2d[::5])  # type: ignore[index]
        np.testing.assert_allclose(
            other.camera_joints(), recording.camera_joints(slice(None, None, 5)), atol=1e-3
        )
        for field in ("matrix", "radial", "tangential", "rotation", "position"):
            np.testing.assert_array_equal(
                getattr(other.camera, field), getattr(recording.camera, field)
            )
    direct, cut = (
        RecordingDataset(rs, number_recordings(rs, ACTIONS), spec, step=5)
        for rs in (recordings, [stored[r.label] for r in recordings])
    )
    a, b = (d.__getitems__(range(len(d))) for d in (direct, cut))
    for key in ("joints_2d", "crop_to_image", "intrinsics", "frame", "sequence", "camera"):
        torch.testing.assert_close(a[key], b[key], atol=1e-3, rtol=0)  # type: ignore[literal-required]
    gap = (a["image"].float() - b["image"].float()).abs() / 255
    assert gap.mean() < 0.02  # JPEG, and sampled twice


def test_the_map_of_a_crop_leads_to_the_source(recordings: list[Recording], tmp_path: Path) -> None:
    y, x = np.mgrid[0:252, 0:250]
    Image.fromarray(np.stack([x, y, 0 * x + 90], -1).astype(np.uint8)).save(tmp_path / "map.png")
    one = replace(recordings[0], pictures=ImageFiles(str(tmp_path), ("map.png",) * 11))
    made([one], tmp_path / "out", settings=Settings(5, 96, quality=100))
    picture = read_recordings(tmp_path / "out")[0].pictures.read([1])[0]  # type: ignore[union-attr]
    affine = torch.from_numpy(picture.to_source)  # type: ignore[arg-type]
    size = picture.pixels.shape[0]
    for u, v in [(size // 3, size // 2), (size // 2, size // 3)]:
        place = affine_apply(affine, torch.tensor([[u, v]]).double())[0]
        assert abs(int(picture.pixels[v, u, 0]) - float(place[0])) < 4  # JPEG blurs colours
        assert abs(int(picture.pixels[v, u, 1]) - float(place[1])) < 4


def test_nobody_and_nan_joints_keep_their_picture(
    recordings: list[Recording], tmp_path: Path
) -> None:
    flat = np.array(recordings[0].joints_2d)
    flat[5] = np.nan
    made([replace(recordings[0], joints_2d=flat)], tmp_path)
    stored = read_recordings(tmp_path)[0]
    assert np.isnan(stored.joints_2d[1]).all()  # type: ignore[index]
    assert stored.pictures.read([1])[0].pixels.shape == (64, 64, 3)  # type: ignore[union-attr]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill a process exactly")
@pytest.mark.parametrize("at", range(13))
def test_killed_at_any_step_it_goes_on(
    recordings: list[Recording], tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at each of the system calls that make a file whole; no clean-up runs."""
    two = recordings[:2]
    whole, out = tmp_path / "whole", tmp_path / "out"
    made(two, whole)
    child = os.fork()
    if child == 0:
        count = [0]

        def dying(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*arguments: Any, **keywords: Any) -> Any:
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                return real(*arguments, **keywords)

            return call

        os.replace, os.fsync = dying("replace"), dying("fsync")
        made(two, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    finished = (out / "store.json").is_file()
    assert os.WIFSIGNALED(status) == (at < 10)  # 1 + 2 x (2 fsync, 2 replace) + 1
    assert finished == (at >= 10)
    if not finished and (out / "settings.json").is_file():
        with pytest.raises(DataError, match="not finished; run `zoo data prepare` again"):
            find_reader(out).read(out)
        for recording in two:  # what counts as stored is whole
            if is_stored(out, recording):
                name = f"S1_Directions_1_{recording.camera.name}"  # type: ignore[union-attr]
                assert contents(out)[f"{name}.bin"] == contents(whole)[f"{name}.bin"]
    counts = made(two, out)
    assert counts["recordings"] == 2
    left, right = contents(out), contents(whole)
    assert set(left) == set(right)  # no temporary file stays
    assert all(left[n] == right[n] for n in left if n.endswith(".bin"))
    assert len(read_recordings(out)) == 2


def test_done_recordings_are_not_done_again(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(recordings[:2], tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(module, "crop_rows", lambda *_: pytest.fail("cut again"))
    assert made(recordings[:2], tmp_path)["made"] == 0
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_processes_do_the_same(recordings: list[Recording], tmp_path: Path) -> None:
    made(recordings[:3], tmp_path / "one")
    made(recordings[:3], tmp_path / "two", workers=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert all(one[n] == two[n] for n in one if n.endswith(".bin"))
    assert set(one) == set(two)


class Broken:
    """Pictures that end too early."""

    def read(self, rows: Sequence[int]) -> list[Picture]:
        if max(rows) > 5:
            raise DataError("S1 Directions.mp4 is truncated")
        return [Picture(np.zeros((252, 250, 3), np.uint8)) for _ in rows]

    def missing(self) -> str:
        return ""


def test_faulty_recordings_are_told_and_the_others_done(
    recordings: list[Recording], tmp_path: Path
) -> None:
    given = [replace(recordings[0], pictures=Broken()), recordings[1],
             replace(recordings[2], pictures=None)]  # fmt: skip
    with pytest.raises(DataError, match=r"2 recordings could not be prepared, the first: S8 .*no "):
        made(given, tmp_path)
    assert is_stored(tmp_path, recordings[1])
    assert not is_stored(tmp_path, recordings[0])
    assert not (tmp_path / "store.json").exists()
    assert not list((tmp_path / "recordings").glob(".*"))
    counts = made(given, tmp_path, skip_faulty=True)
    assert counts["recordings"] == 1
    assert len(read_recordings(tmp_path)) == 1


def test_refusals_write_nothing(
    recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(recordings[:1], tmp_path / "out")
    with pytest.raises(UsageError, match="holds crops made with step 5; choose another --out"):
        made(recordings[:1], tmp_path / "out", settings=replace(SETTINGS, step=25))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and no store"):
        made(recordings[:1], tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["thesis.tex"]
    with pytest.raises(UsageError, match="--workers is 0"):
        made(recordings[:1], tmp_path / "new", workers=0)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(OutputError, match=r"are needed and 0\.0 GB are free; lower --size"):
        made(recordings[:1], tmp_path / "full")
    assert not (tmp_path / "full" / "recordings").exists()


def test_the_disk_need_is_an_upper_guess(recordings: list[Recording], tmp_path: Path) -> None:
    crops, need = bytes_needed(recordings, SETTINGS)
    counts = made(recordings, tmp_path)
    assert crops == counts["crops"]
    assert need > 0.5 * counts["bytes"]
    assert {rate: step for rate, step in RATES.items()} == {"10": 5, "5": 10, "2": 25, "64th": 64}


def test_excluded_recordings_are_left_out(recordings: list[Recording], tmp_path: Path) -> None:
    bad = replace(recordings[0], subject="S11", trial=2)
    assert made([bad, recordings[1]], tmp_path)["recordings"] == 1


def test_damaged_stores_say_so(recordings: list[Recording], tmp_path: Path) -> None:
    made(recordings[:2], tmp_path)
    first = read_recordings(tmp_path)[0]
    path = Path(first.pictures.path)  # type: ignore[union-attr]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert "its index says" in first.pictures.missing()  # type: ignore[union-attr]
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="a damaged crop; prepare the data again"):
        first.pictures.read([0])  # type: ignore[union-attr]
    path.unlink()
    with pytest.raises(DataError, match="no such file; prepare"):
        first.pictures.read([0])  # type: ignore[union-attr]
    path.with_suffix(".npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_recordings(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(DataError, match="not a readable store"):
        read_recordings(tmp_path)
    (tmp_path / "store.json").write_text('{"version": 9}')
    with pytest.raises(DataError, match="version 9, expected 1"):
        read_recordings(tmp_path)


def test_reading_takes_the_memory_of_a_crop(tmp_path: Path) -> None:
    """Crops at both ends of a file of a gigabyte (sparse on disk)."""
    data = tmp_path / "crop.jpg"
    Image.fromarray(np.full((64, 64, 3), 77, np.uint8)).save(data)
    jpeg = data.read_bytes()
    path = tmp_path / "a.bin"
    with path.open("wb") as stream:
        stream.write(jpeg)
        stream.seek(2**30)
        stream.write(jpeg)
    offsets = np.array([0, len(jpeg), 2**30, 2**30 + len(jpeg)])
    source = StoredCrops(str(path), offsets, np.zeros((3, 2, 3)))
    assert source.missing() == ""
    source.read([0])
    tracemalloc.start()
    pictures = source.read([2, 0, 2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    assert all(abs(int(p.pixels.mean()) - 77) < 3 for p in pictures)


def test_protocols_whose_frames_the_store_lacks(
    recordings: list[Recording], tmp_path: Path
) -> None:
    others = [replace(r, subject="S11") for r in recordings if r.subject == "S9"]
    made([*recordings, *others], tmp_path)
    keypoints = InputSpec("keypoints", image_size=48)
    arguments: Any = {"num_workers": 0, "input_spec": keypoints}
    data = Human36MDataModule(str(tmp_path), protocol="p1-10fps", **arguments)
    data.setup("fit")
    assert len(data.train_set) == 2 * 3  # S1 only: S8 is held out
    assert len(data.val_set) == 2 * 3
    with pytest.raises(DataError, match="holds every 5th frame, and protocol p2-tome wants every "
                                        "64th"):  # fmt: skip
        Human36MDataModule(str(tmp_path), protocol="p2-tome", **arguments).setup("test")
    slow = Human36MDataModule(str(tmp_path), train_fps=5, **arguments)
    assert len(slow.train_set) == 2 * 2  # frames 0 and 10


def test_write_recording_counts_bytes(recordings: list[Recording], tmp_path: Path) -> None:
    crops = [(b"abc", np.zeros((2, 3))), (b"de", np.zeros((2, 3)))]
    size = write_recording(tmp_path, recordings[0], np.array([0, 1]), iter(crops))
    assert size == 5


@pytest.mark.slow
def test_from_videos_by_the_command_line(tmp_path: Path, zoo_cli: Callable[..., CliResult]) -> None:
    people = make_people(("S1", "S8", "S9"), ("Walking",), (1,), 11, detail=48)
    human36m_cdf.write(tmp_path / "h36m", people)
    done = zoo_cli("data", "prepare", "human36m", "--root", "h36m", "--out", "crops",
                   "--size", 96, "--workers", 2, timeout=550)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "36 crops of 12 recordings" in done.stdout
    assert "12 of 12 recordings to do: 36 crops, about 0.00 GB" in done.stderr
    again = zoo_cli("data", "prepare", "human36m", "--root", "h36m", "--out", "crops",
                    "--size", 96)  # fmt: skip
    assert "0 of 12 recordings to do" in again.stderr
    other = zoo_cli("data", "prepare", "human36m", "--root", "h36m", "--out", "crops", "--fps", 3)
    assert other.returncode == 2
    assert other.stderr.startswith("zoo: error: no --fps '3'")
    check = zoo_cli("data", "check", "crops", "--no-sheet")
    assert check.returncode == 0, check.stdout
    assert "human36m-crops" in check.stdout
    fit = zoo_cli("fit", "--method", "park", "--recipe", "small", "--data", "human36m",
                  "--data.root", "crops", "--data.batch_size", 2, "--data.num_workers", 2,
                  "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2)  # fmt: skip
    assert fit.returncode == 0, fit.stderr
    test = zoo_cli("test", "--method", "park", "--data", "human36m", "--data.root", "h36m",
                   "--ckpt_path", "last", "--recipe", "small")  # fmt: skip
    assert test.returncode == 0, test.stderr
