"""Wrong input through the real command line: status 2, one clear line, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ENVIRONMENT

JOINTS = 17
pytestmark = pytest.mark.xdist_group("errors")  # one process runs all commands once


def _picture(path: Path) -> None:
    Image.fromarray(np.full((64, 48, 3), 128, np.uint8)).save(path)


def _motion(path: Path, **changes: object) -> None:
    """A motion file in the layout of the documentation, with some keys changed or dropped."""
    from zoo.skeleton import H36M_17

    frames = 60
    content: dict[str, object] = {
        "names": np.array(["a/1"]),
        "actions": np.array(["walk"]),
        "starts": np.array([0]),
        "lengths": np.array([frames]),
        "positions": np.random.default_rng(0).normal(0, 300, (frames, JOINTS, 3)).astype("f4"),
        "fps": np.array(50),
        "joint_names": np.array(H36M_17.joints),
        "parents": np.array(H36M_17.parents),
        "skeletons": np.array(["01"]),
        "floor_offsets": np.zeros(1, "f4"),
    }
    content.update(changes)
    np.savez(path, **{k: v for k, v in content.items() if v is not None})


def truncated_jpeg(d: Path) -> None:
    _picture(d / "cut.jpg")
    data = (d / "cut.jpg").read_bytes()
    (d / "cut.jpg").write_bytes(data[: len(data) // 2])


def text_as_jpeg(d: Path) -> None:
    (d / "text.jpg").write_text("not a picture")


def picture(d: Path) -> None:
    _picture(d / "p.png")


def empty_folder(d: Path) -> None:
    (d / "empty").mkdir()


def file_in_the_way(d: Path) -> None:
    _picture(d / "p.png")
    (d / "taken").write_text("a file, not a folder")


def motion_without_positions(d: Path) -> None:
    _motion(d / "m.npz", positions=None)


def motion_with_nan(d: Path) -> None:
    bad = np.zeros((60, JOINTS, 3), "f4")
    bad[17, 3, 1] = np.nan
    _motion(d / "m.npz", positions=bad)


def motion_with_pickle(d: Path) -> None:
    _motion(d / "m.npz", positions=np.array([{"a": 1}], dtype=object))


def not_a_motion(d: Path) -> None:
    (d / "m.npz").write_bytes(b"PK\x03\x04 cut")


def half_checkpoint(d: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1000)}, "zoo": {"method": "park"}}, d / "h.ckpt")
    data = (d / "h.ckpt").read_bytes()
    (d / "h.ckpt").write_bytes(data[: len(data) // 2])


class Harmful:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch was-executed",)


def harmful_checkpoint(d: Path) -> None:
    torch.save({"state_dict": {}, "x": Harmful()}, d / "x.ckpt", pickle_module=pickle)


def foreign_checkpoint(d: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(3)}}, d / "f.ckpt")


def broken_safetensors(d: Path) -> None:
    (d / "w.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json....}")


def foreign_safetensors(d: Path) -> None:
    save_file({"w": torch.zeros(3)}, d / "w.safetensors")


def finished_run(d: Path) -> None:
    (d / "old" / "checkpoints").mkdir(parents=True)
    (d / "old" / "checkpoints" / "last.ckpt").write_bytes(b"precious")


def broken_yaml(d: Path) -> None:
    (d / "c.yaml").write_text("model: [1, 2\ntrainer: {")


def list_yaml(d: Path) -> None:
    (d / "c.yaml").write_text("- 1\n- 2\n")


def unknown_key_yaml(d: Path) -> None:
    (d / "c.yaml").write_text("model:\n  wings: 2\n")


def broken_asf(d: Path) -> None:
    (d / "cmu").mkdir()
    (d / "cmu" / "01.asf").write_text(":version 1.10\n:name x\n:units\n  mass 1.0\n")
    (d / "cmu" / "01_01.amc").write_text(":FULLY-SPECIFIED\n:DEGREES\n1\nroot 0 0 0 0 0\n")


def nothing(d: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """One wrong command: its words, the files it finds, and what the line must contain."""

    words: str
    says: tuple[str, ...]
    files: Callable[[Path], None] = nothing


FIT = "fit --method park --recipe small"
SEE = "predict --method park"

CASES = {
    "unknown command": Case("fitt", ("fitt", "fit")),
    "no method": Case("fit", ("--method", "zoo list")),
    "misspelt method": Case("fit --method prak", ("prak", "park")),
    "misspelt recipe": Case("fit --method park --recipe smal", ("smal", "small")),
    "misspelt data set": Case(f"{FIT} --data synthetik", ("synthetik", "synthetic")),
    "misspelt logger": Case(f"{FIT} --logger wandbb", ("wandbb", "wandb")),
    "gpus not a number": Case(f"{FIT} --gpus two", ("--gpus", "two")),
    "flag without value": Case("fit --method", ("--method", "value")),
    "missing config": Case(f"{FIT} --config none.yaml", ("none.yaml",)),
    "broken config": Case(f"{FIT} --config c.yaml", ("c.yaml", "YAML"), broken_yaml),
    "config is a list": Case(f"{FIT} --config c.yaml", ("c.yaml", "model:"), list_yaml),
    "info of unknown": Case("info parc", ("parc", "park")),
    "info without name": Case("info", ("name",)),
    "list finds none": Case("list zebra*", ("zebra*",)),
    "unknown table": Case("reproduce park-table3", ("park-table3", "park-table2")),
    "data: unknown set": Case("data prepare cmuu --root . --out a.npz", ("cmuu", "cmu")),
    "data: no root": Case("data prepare cmu --root none --out a.npz", ("none",)),
    "data: wrong suffix": Case("data prepare cmu --root . --out a.txt", ("a.txt", ".npz")),
    "data: broken asf": Case("data prepare cmu --root cmu --out a.npz", ("01.asf",), broken_asf),
    "predict: no method": Case("predict p.png", ("--method",), picture),
    "predict: no source": Case(SEE, ("pictures", "keypoint files")),
    "predict: box of three": Case(f"{SEE} p.png --box 1,2,3", ("x0,y0,x1,y1", "1,2,3"), picture),
    "predict: batch of none": Case(f"{SEE} p.png --batch_size 0", ("batch_size", "0"), picture),
    "too many gpus": Case(f"{FIT} --gpus 9", ("--gpus 9", "0")),
    "misspelt flag": Case(f"{FIT} --model.lrr 0.1", ("--model.lrr", "--model.lr")),
    "flag of wrong type": Case(f"{FIT} --model.lr fast", ("lr", "fast")),
    "unknown key in config": Case(f"{FIT} --config c.yaml", ("wings",), unknown_key_yaml),
    "impossible size": Case(f"{FIT} --model.crop_size 999", ("crop_size", "999")),
    "nothing to resume": Case(f"{FIT} --ckpt_path last", ("resume", "park-small")),
    "run folder taken": Case(f"{FIT} --run old", ("old", "--ckpt_path last"), finished_run),
    "missing motion": Case(f"{FIT} --data.mocap none.npz", ("none.npz",)),
    "motion lacks a key": Case(
        f"{FIT} --data.mocap m.npz", ("m.npz", "positions"), motion_without_positions
    ),
    "motion with NaN": Case(f"{FIT} --data.mocap m.npz", ("m.npz",), motion_with_nan),
    "motion with objects": Case(f"{FIT} --data.mocap m.npz", ("m.npz",), motion_with_pickle),
    "motion file damaged": Case(f"{FIT} --data.mocap m.npz", ("m.npz",), not_a_motion),
    "missing checkpoint": Case("test --method park --ckpt_path none.ckpt", ("none.ckpt",)),
    "half-written checkpoint": Case(
        "test --method park --ckpt_path h.ckpt", ("h.ckpt", "half-written"), half_checkpoint
    ),
    "checkpoint with code": Case(
        "test --method park --ckpt_path x.ckpt", ("x.ckpt", "not loaded"), harmful_checkpoint
    ),
    "foreign checkpoint": Case(
        "test --method park --ckpt_path f.ckpt", ("f.ckpt", "zoo fit"), foreign_checkpoint
    ),
    "damaged weights": Case(
        f"{FIT} --weights w.safetensors", ("w.safetensors",), broken_safetensors
    ),
    "foreign weights": Case(
        f"{FIT} --weights w.safetensors", ("w.safetensors", "zoo"), foreign_safetensors
    ),
    "missing picture": Case(f"{SEE} none.jpg", ("none.jpg",)),
    "truncated picture": Case(f"{SEE} cut.jpg", ("cut.jpg",), truncated_jpeg),
    "text as picture": Case(f"{SEE} text.jpg", ("text.jpg",), text_as_jpeg),
    "empty folder": Case(f"{SEE} empty", ("empty", "no picture"), empty_folder),
    "flat box": Case(f"{SEE} p.png --box 5,5,5,40", ("box",), picture),
    "output is a file": Case(f"{SEE} p.png --out taken/here", ("taken",), file_in_the_way),
}


def _snapshot(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str
    before: dict[str, str]
    after: dict[str, str]


SERVER = """
import json, os, sys, traceback
import zoo.fit, zoo.predict, zoo.draw, datamodules.synthetic, zoo.methods.park  # the slow part
from zoo.cli import main
for line in sys.stdin:
    case = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(case["folder"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["zoo", *case["words"]]
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
REAL = ("misspelt method", "motion with NaN", "truncated picture")
"""These go through `python -m zoo`; the others through a copy of a process that has imported it."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All commands, each in a process and a folder of its own."""
    environment = {**os.environ, **ENVIRONMENT}
    found = {}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None
        for name, case in CASES.items():
            folder = tmp_path_factory.mktemp("case")
            said = tmp_path_factory.mktemp("said")
            case.files(folder)
            before = _snapshot(folder)
            words = case.words.split()
            if name in REAL:
                done = subprocess.run(
                    [sys.executable, "-m", "zoo", *words], cwd=folder, env=environment,
                    capture_output=True, text=True, timeout=200, check=False,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
                status, out, err = done.returncode, done.stdout, done.stderr
            else:
                files = {key: str(said / key) for key in ("stdout", "stderr")}
                request = {"words": words, "folder": str(folder), **files}
                server.stdin.write(json.dumps(request) + "\n")
                server.stdin.flush()
                status = int(server.stdout.readline())
                out, err = (Path(files[key]).read_text() for key in ("stdout", "stderr"))
            found[name] = Outcome(status, out, err, before, _snapshot(folder))
        server.stdin.close()
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_wrong_input_gives_one_line_and_leaves_everything_alone(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    outcome, case = outcomes[name], CASES[name]
    assert outcome.returncode == 2, outcome.stderr[-2000:]
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, outcome.stderr[-2000:]
    assert lines[0].startswith("zoo: error: ")
    assert len(lines[0]) < 500
    for word in case.says:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    assert outcome.after == outcome.before


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 25


def test_weights_that_differ_from_the_registry_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo
    from zoo import checkpoint, registry
    from zoo.errors import CheckpointError
    from zoo.methods.park import Park

    model = Park.tiny()
    model.zoo_name = "park"
    path = checkpoint.save_weights(model, tmp_path / "park.tiny-{sha}.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = registry.get_method("park")
    weight = registry.WeightRecord("tiny", str(path), digest, trained_on="nothing")
    import dataclasses

    planted = dataclasses.replace(record, weights=(weight,))
    monkeypatch.setattr(registry, "_own", lambda: {"park": planted})
    assert json.dumps(dict(zoo.load("park.tiny").hparams)) == json.dumps(dict(model.hparams))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="sha256"):
        zoo.load("park.tiny")
    path.unlink()
    with pytest.raises(CheckpointError, match="train: zoo fit"):
        zoo.load("park.tiny")
