"""Tables of papers: verdicts, order, reuse, resuming, failures, the page.

Most tests put planted results in the place of trainings; those that kill something run real child
processes of a stand-in for ``zoo``.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from zoo.cli import main
from zoo.errors import DataError, UsageError, ZooError
from zoo.registry import get_method, resolve_class
from zoo.reproduce import mean_pose_baseline
from zoo.reproduce.children import Stop
from zoo.reproduce.jobs import Options
from zoo.reproduce.page import decide, overall
from zoo.reproduce.runner import Runner
from zoo.reproduce.table import Table, read_table, table_names

TABLE = {
    "title": "Planted table",
    "paper": "Somebody, somewhere, Table 9",
    "paper_data": "Other People",
    "images": 60,
    "base": {
        "method": "park",
        "epochs": 3,
        "model": {"epochs": 3},
        "data": {"seed": "{seed}", "batch_size": 10},
    },
    "rows": [
        {"name": "plain", "label": "Plain", "paper": {"mpjpe_mm": 77.25}},
        {"name": "fancy", "label": "Fancy", "model": {"link_2d": False}, "paper": {"mpjpe_mm": 70}},
    ],
    "metrics": ["mpjpe_mm"],
    "claims": [{"text": "Fancier is better", "better": "fancy", "worse": "plain"}],
}


def write_table(folder: Path, **changes: object) -> Table:
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump({**TABLE, **changes}))
    return read_table(str(path))


class Stub:
    """Stands in for the child processes: plants checkpoints and test reports, notes what ran."""

    def __init__(self, error: Callable[[str, int], float] | None = None) -> None:
        self.error = error or (lambda row, seed: 50.0)
        self.calls: list[tuple[str, ...]] = []
        self.fail: set[str] = set()
        self.epochs = 3
        self.running, self.most = 0, 0
        self.guard = threading.Lock()

    @property
    def started(self) -> list[str]:
        """``stage folder`` of each call."""
        return [f"{words[0]} {self.folder(words).name}" for words in self.calls]

    @staticmethod
    def flag(words: Sequence[str], name: str) -> str:
        return words[words.index(name) + 1]

    def folder(self, words: Sequence[str]) -> Path:
        path = Path(self.flag(words, "--run"))
        return path.parent if words[0] == "test" else path

    def __call__(self, words: Sequence[str], log: Path, stop: Stop, lock: int) -> int:
        with self.guard:
            self.calls.append(tuple(words))
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        folder = self.folder(words)
        row, _, seed = folder.name.rpartition("-seed")
        status = 0
        if f"{words[0]} {folder.name}" in self.fail:
            with log.open("a") as stream:
                stream.write("Traceback\n  somewhere\nValueError: the planted reason\n\n")
            status = 3
        elif words[0] == "fit":
            (folder / "checkpoints").mkdir(exist_ok=True)
            torch.save({"epoch": self.epochs - 1}, folder / "checkpoints" / "last.ckpt")
            shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")
        elif words[0] == "test":
            assert Path(self.flag(words, "--ckpt_path")).exists()
            report = planted_report(self.error(row, int(seed)))
            Path(self.flag(words, "--json")).write_text(json.dumps(report))
        else:
            (folder / "made.npz").write_bytes(b"features")
        with self.guard:
            self.running -= 1
        return status


def planted_report(error: float) -> dict[str, object]:
    return {
        "results": {"mpjpe_mm": error, "auc_150mm": None},
        "per_action": {
            "Walking": {"samples": 3, "mpjpe_mm": error - 10},
            "mean over actions": {"samples": 3, "mpjpe_mm": error - 10},
            "all frames": {"samples": 3, "mpjpe_mm": error},
        },
        "definition": "planted-protocol: everything, in mm.",
    }


def runner(
    folder: Path, table: Table, stub: Stub, baseline: object = None, **options: object
) -> Runner:
    chosen = Options(**{"out": folder / "out", "work": folder / "work", "jobs": 1, **options})
    return Runner(table, chosen, "zoo reproduce planted", stub, baseline)  # type: ignore[arg-type]


# ---- verdicts -----------------------------------------------------------------------------------


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_planted_verdicts() -> None:
    # Differences 4.9, 5.0, 5.1: mean 5, sd 0.1, t(2) = 4.303, half width 0.248.
    verdict = decide(by_seed(50, 60, 70), by_seed(54.9, 65.0, 75.1))
    assert verdict.text == "holds"
    assert verdict.mean == pytest.approx(5.0)
    assert verdict.half_width == pytest.approx(4.302653 * 0.1 / np.sqrt(3), rel=1e-5)
    assert decide(by_seed(54.9, 65.0, 75.1), by_seed(50, 60, 70)).text == "does not hold"
    assert decide(by_seed(50, 60, 70), by_seed(55, 59, 72)).text == "undecided"
    assert decide(by_seed(50, 60), by_seed(50, 60)).text == "undecided"  # no difference at all
    assert decide(by_seed(50), by_seed(90)).text == "undecided (one seed)"
    assert decide({0: 1.0}, {1: 2.0}).text == "no result"  # no seed in common
    assert decide({}, {}).text == "no result"


@given(st.lists(st.tuples(*[st.integers(0, 2000)] * 2), min_size=2, max_size=6))
def test_verdict_is_the_paired_t_test(pairs: list[tuple[int, int]]) -> None:
    better, worse = by_seed(*(a / 10 for a, _ in pairs)), by_seed(*(b / 10 for _, b in pairs))
    verdict = decide(better, worse)
    opposite = decide(worse, better).text
    swapped = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    assert swapped[verdict.text] == opposite
    if len({b - a for a, b in pairs}) == 1:
        return  # no spread: the t-test divides by zero (planted above)
    p = ttest_rel(list(worse.values()), list(better.values())).pvalue
    if abs(p - 0.05) > 1e-9:
        assert (verdict.text != "undecided") == (p < 0.05)
        if p < 0.05:
            assert (verdict.text == "holds") == (sum(b - a for a, b in pairs) > 0)


def test_a_claim_of_two_comparisons() -> None:
    yes, no = decide(by_seed(1, 2), by_seed(9, 10)), decide(by_seed(9, 10), by_seed(1, 2))
    open_ = decide(by_seed(1), by_seed(9))
    assert overall([yes, yes]) == "holds"
    assert overall([no, no]) == "does not hold"
    assert overall([no, open_]) == "does not hold"
    assert overall([yes, no]) == "holds in one comparison and fails in another"
    assert overall([yes, open_]) == "holds in 1 of 2 comparisons, else undecided"
    assert overall([open_, open_]) == "undecided"
    assert overall([decide({}, {})]) == "no result"


# ---- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_build_their_models(name: str) -> None:
    table = read_table(name)
    for training in (*table.shared, *table.rows):
        known = inspect.signature(resolve_class(get_method(training.method))).parameters
        assert set(training.model) <= set(known)


def test_park_table2_prints_the_plain_mean_of_the_papers_columns() -> None:
    rows = read_table("park-table2").rows
    assert [r.paper["mpjpe_mm"] for r in rows] == pytest.approx(
        [np.mean(list(r.paper["actions"].values())) for r in rows], abs=0.006
    )


def test_park_table2_has_the_four_rows_and_both_claims() -> None:
    table = read_table("park-table2")
    switches = {r.name: (r.model["link_2d"], len(r.model["roots"])) for r in table.rows}
    assert switches == {
        "baseline": (False, 1), "multi-reg": (False, 6), "2d-cls": (True, 1),
        "multi-reg+2d-cls": (True, 6),
    }  # fmt: skip
    pairs = {text: set() for text in dict.fromkeys(c.text for c in table.claims)}
    for claim in table.claims:
        pairs[claim.text].add((claim.better, claim.worse))
    assert list(pairs.values()) == [
        {("2d-cls", "baseline"), ("multi-reg+2d-cls", "multi-reg")},
        {("multi-reg", "baseline"), ("multi-reg+2d-cls", "2d-cls")},
    ]
    assert table.images == 12 * 60 * 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imags": 3}, "planted: no key 'imags'; did you mean images"),
        ({"rows": []}, "planted: no rows"),
        ({"images": 0}, "images must be at least 1"),
        ({"rows": [{"name": "a", "modl": {}}]}, "rows a: no key 'modl'"),
        ({"rows": [{"name": "a/b"}]}, "name 'a/b' must be letters"),
        ({"rows": [{"name": "a"}, {"name": "a"}]}, "name 'a' is given twice"),
        ({"rows": [{"name": "a", "method": "prak"}]}, "no method 'prak'; did you mean park"),
        ({"rows": [{"name": "a", "weights": "b"}], "claims": []}, "no shared step 'b'"),
        ({"rows": [{"name": "a", "data": {"x": "{b}"}}], "claims": []}, "no shared step 'b'"),
        ({"rows": [{"name": "a", "images": 3}], "claims": []}, "rows a: rows see the same number"),
        ({"claims": [{"text": "t", "better": "fanci", "worse": "plain"}]}, "did you mean fancy"),
        ({"claims": [{"better": "fancy", "worse": "plain"}]}, "the key 'text' is missing"),
        ({"base": {"epochs": 3}}, "the key 'method' is missing"),
        ({"base": {**TABLE["base"], "epochs": 0}}, "epochs must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_tables_are_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ZooError, match=re.escape(message)) as caught:
        write_table(tmp_path, **changes)
    assert "\n" not in str(caught.value)


# ---- what runs ----------------------------------------------------------------------------------


def test_one_seed_of_all_rows_first(tmp_path: Path) -> None:
    stub = Stub()
    assert runner(tmp_path, write_table(tmp_path), stub, seeds=(0, 5)).run() == 0
    assert stub.started == [
        "fit plain-seed0", "test plain-seed0", "fit fancy-seed0", "test fancy-seed0",
        "fit plain-seed5", "test plain-seed5", "fit fancy-seed5", "test fancy-seed5",
    ]  # fmt: skip


def test_runs_of_a_seed_see_the_same_data(tmp_path: Path) -> None:
    stub = Stub()
    motion = tmp_path / "motion.npz"
    motion.write_bytes(b"motion")
    table = write_table(tmp_path)
    assert runner(tmp_path, table, stub, seeds=(0, 1), mocap=motion, gpus=0).run() == 0
    for words in stub.calls:
        seed = stub.folder(words).name.rpartition("-seed")[2]
        assert stub.flag(words, "--data.train_samples") == "20"  # 60 images in 3 epochs
        assert stub.flag(words, "--data.seed") == seed
        assert stub.flag(words, "--seed_everything") == seed
        assert stub.flag(words, "--data.mocap") == str(motion)
        assert stub.flag(words, "--gpus") == "0"
        assert stub.flag(words, "--trainer.enable_progress_bar") == "false"
    fits = [words for words in stub.calls if words[0] == "fit"]
    assert [stub.flag(w, "--model.epochs") for w in fits] == ["3"] * 4
    unlinked = [("--model.link_2d", "false") in pairwise(words) for words in fits]
    assert unlinked == [False, True] * 2


def test_a_mixture_hands_motion_and_pictures_to_its_synthetic_sets(tmp_path: Path) -> None:
    stub = Stub()
    motion = tmp_path / "motion.npz"
    motion.write_bytes(b"motion")
    sets = [
        {"name": "synthetic"},
        {"name": "mpii", "root": "x"},
        {"name": "synthetic", "mocap": "o"},
    ]
    base = {**TABLE["base"], "dataset": "mixed", "data": {"sets": sets, "batch_size": 10}}
    runner(tmp_path, write_table(tmp_path, base=base), stub, seeds=(0,), mocap=motion).run()
    for words in stub.calls:
        assert "--data.mocap" not in words
        given = json.loads(stub.flag(words, "--data.sets"))
        files = {"mocap": str(motion), "keep": str(tmp_path / "work" / "pictures")}
        assert given == [{**sets[0], **files}, sets[1], {**files, **sets[2]}]


def test_rows_that_only_test_a_shared_step(tmp_path: Path) -> None:
    """One training, tested with the settings of each row."""
    rows = [
        {"name": "plain", "test_of": "full"},
        {"name": "fancy", "test_of": "full", "model": {"link_2d": False}},
    ]
    table = write_table(tmp_path, shared=[{"name": "full"}], rows=rows)
    stub = Stub()
    assert runner(tmp_path, table, stub, seeds=(0, 1)).run() == 0
    assert stub.started == [
        "fit shared-full-seed0", "test plain-seed0", "test fancy-seed0",
        "fit shared-full-seed1", "test plain-seed1", "test fancy-seed1",
    ]  # fmt: skip
    for words in stub.calls:
        if words[0] == "test":
            path = Path(stub.flag(words, "--ckpt_path"))
            seed = stub.folder(words).name[-1]
            assert path.parts[-3:] == (f"shared-full-seed{seed}", "checkpoints", "best.ckpt")
            fancy = "fancy" in stub.folder(words).name
            assert (("--model.link_2d", "false") in pairwise(words)) is fancy
    again = Stub()
    assert runner(tmp_path, table, again, seeds=(0, 1)).run() == 0
    assert again.calls == []
    with pytest.raises(UsageError, match="must be those of full"):
        write_table(tmp_path, shared=[{"name": "full", "epochs": 4}], rows=rows)


def test_budget_is_whole_batches(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    images = [runner(tmp_path, table, Stub(), images=n).jobs[0].images for n in (100, 60, 29, 2)]
    # Batches of 10 in 3 epochs; data modules drop a cut batch, but not the only one.
    assert images == [90, 60, 27, 3]


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    stub = Stub()
    assert runner(tmp_path, write_table(tmp_path), stub, jobs=2, seeds=(0, 1, 2)).run() == 0
    assert stub.most == 2
    assert len(stub.calls) == 12


def test_finished_runs_are_reused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, stub = write_table(tmp_path), Stub()
    runner(tmp_path, table, stub, seeds=(0,)).run()
    shutil.rmtree(tmp_path / "work")
    before = (tmp_path / "out" / "planted.md").read_text()
    again = Stub()
    assert runner(tmp_path, table, again, seeds=(0,)).run() == 0
    assert again.calls == []
    assert "2 finished runs are reused" in capsys.readouterr().out
    assert (tmp_path / "out" / "planted.md").read_text() == before
    assert runner(tmp_path, table, again, seeds=(0, 1), rows=("fancy",)).run() == 0
    assert again.started == ["fit fancy-seed1", "test fancy-seed1"]


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    runner(tmp_path, write_table(tmp_path), Stub(), seeds=(0,)).run()
    result = tmp_path / "out" / "planted" / "plain-seed0.json"
    before = result.read_text()
    changed = write_table(tmp_path, base={**TABLE["base"], "model": {"epochs": 3, "fc": 7}})
    stub = Stub()
    with pytest.raises(UsageError) as caught:
        runner(tmp_path, changed, stub, seeds=(0,)).run()
    message = str(caught.value)
    assert "model.fc None, now 7" in message
    assert "--out" in message
    assert "--redo" in message
    assert "\n" not in message
    assert (stub.calls, result.read_text()) == ([], before)
    # A work folder of other settings is not mixed in either.
    with pytest.raises(UsageError, match="--work"):
        runner(tmp_path, changed, stub, seeds=(0,), out=tmp_path / "other").run()
    stub.fail = {"fit fancy-seed0"}
    assert runner(tmp_path, changed, stub, seeds=(0,), redo=True).run() == 1
    assert stub.started == ["fit plain-seed0", "test plain-seed0", "fit fancy-seed0"]
    # Going on with the same flags repeats nothing.
    stub.fail, stub.calls = set(), []
    assert runner(tmp_path, changed, stub, seeds=(0,), redo=True).run() == 0
    assert stub.started == ["fit fancy-seed0", "test fancy-seed0"]


def test_motion_file_counts_by_content(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz"))
    first.write_bytes(b"1")
    copy.write_bytes(b"1")
    other.write_bytes(b"2")
    table = write_table(tmp_path)
    runner(tmp_path, table, Stub(), seeds=(0,), mocap=first).run()
    stub = Stub()
    assert runner(tmp_path, table, stub, seeds=(0,), mocap=copy).run() == 0
    assert stub.calls == []
    with pytest.raises(UsageError, match="mocap_sha256"):
        runner(tmp_path, table, stub, seeds=(0,), mocap=other).run()


def test_failed_run_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, stub = write_table(tmp_path), Stub()
    stub.fail = {"fit plain-seed0"}
    assert runner(tmp_path, table, stub, seeds=(0, 1)).run() == 1
    error = capsys.readouterr().err.strip()
    assert "plain seed 0 failed (exit status 3): ValueError: the planted reason" in error
    assert "\n" not in error
    assert len(stub.calls) == 1 + 3 * 2
    assert "Incomplete: 1 of 4 runs are missing" in (tmp_path / "out" / "planted.md").read_text()
    stub.fail, stub.calls = set(), []
    assert runner(tmp_path, table, stub, seeds=(0, 1)).run() == 0
    assert stub.started == ["fit plain-seed0", "test plain-seed0"]
    assert "Incomplete" not in (tmp_path / "out" / "planted.md").read_text()


def test_failed_test_does_not_train_again(tmp_path: Path) -> None:
    table, stub = write_table(tmp_path), Stub()
    stub.fail = {"test plain-seed0"}
    assert runner(tmp_path, table, stub, seeds=(0,), rows=("plain",)).run() == 1
    stub.fail, stub.calls = set(), []
    assert runner(tmp_path, table, stub, seeds=(0,), rows=("plain",)).run() == 0
    assert stub.started == ["test plain-seed0"]


def test_wrong_length_of_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = Stub()
    stub.epochs = 2
    assert runner(tmp_path, write_table(tmp_path), stub, seeds=(0,)).run() == 1
    assert "plain seed 0 trained for 2 epochs and the table says 3" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "planted").glob("*.json"))


def test_unfinished_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    table, stub = write_table(tmp_path), Stub()
    stub.fail = {"fit plain-seed0", "fit fancy-seed0"}
    runner(tmp_path, table, stub, seeds=(0,)).run()
    folders = [tmp_path / "work" / "planted" / f"{name}-seed0" for name in ("plain", "fancy")]
    for folder in folders:
        (folder / "checkpoints").mkdir()
        (folder / "metrics.csv").write_text("epoch\n0\n")
        torch.save({"epoch": 0}, folder / "checkpoints" / "last.ckpt")
    whole = (folders[1] / "checkpoints" / "last.ckpt").read_bytes()
    (folders[1] / "checkpoints" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    kept: dict[str, bool] = {}

    def look(words: Sequence[str], log: Path, stop: Stop, lock: int) -> int:
        if words[0] == "fit":
            kept[stub.folder(words).name] = (stub.folder(words) / "metrics.csv").exists()
        return stub(words, log, stop, lock)

    stub.fail, stub.calls = set(), []
    again = runner(tmp_path, table, stub, seeds=(0,))
    again.launcher = look
    assert again.run() == 0
    plain, fancy = (words for words in stub.calls if words[0] == "fit")
    assert plain[-2:] == ("--ckpt_path", "last")
    assert "--ckpt_path" not in fancy  # its checkpoint is cut: it starts anew, in an empty folder
    assert kept == {"plain-seed0": True, "fancy-seed0": False}


# ---- shared steps -------------------------------------------------------------------------------

SHARED = {
    "shared": [
        {"name": "pre", "epochs": 3, "model": {"link_2d": False}},
        {"name": "feat", "epochs": 1, "command": ["features", "--run", "{run}", "--seed", "{seed}"],
         "output": "made.npz"},
        {"name": "idle", "epochs": 3},
    ],
    "rows": [
        {"name": "plain"},
        {"name": "fancy", "weights": "pre", "data": {"features": "{feat}"}},
        {"name": "third", "weights": "pre"},
    ],
}  # fmt: skip


def test_shared_steps_run_once_a_seed_before_their_rows(tmp_path: Path) -> None:
    table, stub = write_table(tmp_path, **SHARED), Stub()
    assert runner(tmp_path, table, stub, seeds=(0, 1)).run() == 0
    one_seed = [
        "fit plain-seed{}", "test plain-seed{}",
        "fit shared-pre-seed{}", "features shared-feat-seed{}",
        "fit fancy-seed{}", "test fancy-seed{}", "fit third-seed{}", "test third-seed{}",
    ]  # fmt: skip
    assert stub.started == [s.format(seed) for seed in (0, 1) for s in one_seed]
    calls = dict(zip(stub.started, stub.calls, strict=True))
    folder = tmp_path / "work" / "planted"
    for name in ("fancy", "third"):
        weights = stub.flag(calls[f"fit {name}-seed1"], "--weights")
        assert weights == str(folder / "shared-pre-seed1" / "checkpoints" / "best.ckpt")
    for stage in ("fit", "test"):
        words = calls[f"{stage} fancy-seed1"]
        assert stub.flag(words, "--data.features") == str(folder / "shared-feat-seed1" / "made.npz")
    assert "--weights" not in calls["fit plain-seed0"]
    assert stub.flag(calls["features shared-feat-seed1"], "--seed") == "1"


def test_shared_steps_are_reused_and_fail_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, stub = write_table(tmp_path, **SHARED, claims=[]), Stub()
    stub.fail = {"fit shared-pre-seed0"}
    assert runner(tmp_path, table, stub, seeds=(0,), jobs=2).run() == 1
    error = capsys.readouterr().err
    assert "fancy seed 0 was not run: it needs pre seed 0" in error
    assert "third seed 0 was not run: it needs pre seed 0" in error
    assert "test plain-seed0" in stub.started
    stub.fail, stub.calls = {"fit third-seed0"}, []
    assert runner(tmp_path, table, stub, seeds=(0,)).run() == 1
    stub.fail, stub.calls = set(), []
    assert runner(tmp_path, table, stub, seeds=(0,)).run() == 0
    assert stub.started == ["fit third-seed0", "test third-seed0"]
    # Its output is gone, but no row needs it any more.
    shutil.rmtree(tmp_path / "work")
    stub.calls = []
    assert runner(tmp_path, table, stub, seeds=(0,)).run() == 0
    assert stub.calls == []


def test_runs_from_shipped_weights_are_bound_to_them(tmp_path: Path) -> None:
    rows = [{"name": "tuned", "model": {"trunk_weights": "park"}}, {"name": "plain"}]
    jobs = runner(tmp_path, write_table(tmp_path, rows=rows, claims=[]), Stub()).jobs
    tuned, plain = jobs[0].settings, jobs[1].settings
    assert tuned["shipped_sha256"] == {"park": get_method("park").weight(None).sha256}
    assert "shipped_sha256" not in plain


def test_rows_depend_on_the_settings_of_their_shared_step(tmp_path: Path) -> None:
    def hashes(**change: object) -> dict[str, str]:
        shared = [{**SHARED["shared"][0], **change}, *SHARED["shared"][1:]]
        table = write_table(tmp_path, **{**SHARED, "shared": shared})
        return {job.training.name: job.hash for job in runner(tmp_path, table, Stub()).jobs}

    old, new = hashes(), hashes(model={"link_2d": True})
    assert {name for name in old if old[name] != new[name]} == {"pre", "fancy", "third"}


# ---- the page -----------------------------------------------------------------------------------


def test_page_has_both_sides_and_the_verdict(tmp_path: Path) -> None:
    planted = {"plain": [80.0, 81.0, 82.5], "fancy": [75.0, 75.5, 77.25]}
    stub = Stub(lambda row, seed: planted[row][seed])
    calls = []

    def baseline(training: object, data: dict[str, object], options: Options) -> dict[str, float]:
        calls.append(data["seed"])
        return {"mpjpe_mm": 200.5}

    table = write_table(tmp_path)
    assert runner(tmp_path, table, stub, baseline).run() == 0
    assert runner(tmp_path, table, stub, baseline).run() == 0
    assert calls == [0, 1, 2]  # measured once a seed
    page = (tmp_path / "out" / "planted.md").read_text()
    assert "zoo reproduce planted" in page
    assert "planted-protocol: everything, in mm." in page
    assert "60 training images a run" in page
    assert "| Plain | 81.17 ± 1.26 (n = 3) | 77.25 |" in page
    assert "| Fancy | 75.92 ± 1.18 (n = 3) | 70.00 |" in page
    assert "| mean training pose | 200.50 | - |" in page
    assert "paper, Other People: MPJPE, mm" in page
    # Differences 5, 5.5, 5.25: mean 5.25, sd 0.25, half width 0.62.
    assert "| +5.25 [+4.63, +5.87] | +5.00, +5.50, +5.25 | +7.25 | **holds** |" in page
    assert "- Fancier is better: **holds**." in page
    assert "Incomplete" not in page
    for row, values in planted.items():
        for seed, value in enumerate(values):
            assert f"| {row.title()} | {seed} | {value:.2f} | 60 |" in page


def test_page_by_action(tmp_path: Path) -> None:
    rows = [
        {**TABLE["rows"][0], "paper": {"actions": {"Walking": 61.5, "Flying": 99.25}}},
        TABLE["rows"][1],
    ]
    stub = Stub(lambda row, seed: {"plain": 90.0, "fancy": 50.0}[row] + seed)
    runner(tmp_path, write_table(tmp_path, rows=rows), stub, seeds=(0, 2)).run()
    page = (tmp_path / "out" / "planted.md").read_text()
    by_action = page.split("## By action")[1].split("## Every run")[0].strip().splitlines()
    assert by_action[0] == "| MPJPE, mm | Plain | Fancy | paper: Plain |"
    assert by_action[2:5] == [
        "| Walking | 81.00 ± 1.41 (n = 2) | 41.00 ± 1.41 (n = 2) | 61.50 |",
        "| Flying | - | - | 99.25 |",
        "| mean over actions | 81.00 ± 1.41 (n = 2) | 41.00 ± 1.41 (n = 2) | - |",
    ]


def test_page_of_one_seed_decides_nothing(tmp_path: Path) -> None:
    stub = Stub(lambda row, seed: {"plain": 90.0, "fancy": 50.0}[row])
    runner(tmp_path, write_table(tmp_path), stub, seeds=(0,)).run()
    page = (tmp_path / "out" / "planted.md").read_text()
    assert "| Fancy | 50.00 (n = 1) |" in page
    assert "**undecided (one seed)**" in page
    assert "**holds**" not in page


def test_page_is_written_after_every_run(tmp_path: Path) -> None:
    table, stub = write_table(tmp_path), Stub()
    pages = []

    def look(words: Sequence[str], log: Path, stop: Stop, lock: int) -> int:
        pages.append((tmp_path / "out" / "planted.md").read_text())
        return stub(words, log, stop, lock)

    watched = runner(tmp_path, table, stub, seeds=(0, 1))
    watched.launcher = look
    watched.run()
    missing = [re.search(r"(\d) of 4 runs are missing", page) for page in pages]
    assert [int(m[1]) for m in missing if m] == [4, 4, 3, 3, 2, 2, 1, 1]


def test_results_hold_no_path(tmp_path: Path) -> None:
    motion = tmp_path / "motion.npz"
    motion.write_bytes(b"motion")
    table = write_table(tmp_path, **SHARED, claims=[])
    runner(tmp_path, table, Stub(), seeds=(0,), mocap=motion).run()
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(texts) == 4
    for text in texts:
        assert str(tmp_path) not in text
        assert str(Path.cwd()) not in text
    content = json.loads((tmp_path / "out" / "planted" / "fancy-seed0.json").read_text())
    assert content["data"].startswith("synthetic, motion of motion.npz (sha256 ")
    assert content["torch"] == torch.__version__
    assert content["images_seen"] == 60
    assert content["interruptions"] == 0


# ---- killed and stopped -------------------------------------------------------------------------

# A stand-in for `python -m zoo`: three epochs, a checkpoint after each, resumable. While there is a
# file called `hold` it begins no epoch but the first.
CHILD = """
import os, pathlib, shutil, signal, sys, time
words = sys.argv[1:]
flag = lambda name: words[words.index(name) + 1]
here = pathlib.Path(__file__).parent.parent
assert os.environ["OMP_NUM_THREADS"] == "1"
with open(here / "calls.txt", "a") as file:
    file.write(f"{words[0]} {'resumed' if '--ckpt_path' in words else 'new'}\\n")
if words[0] == "test":
    shutil.copy(here / "report.json", flag("--json"))
    raise SystemExit
folder = pathlib.Path(flag("--run")) / "checkpoints"
folder.mkdir(parents=True, exist_ok=True)
done = 0
if "--ckpt_path" in words:
    data = (folder / "last.ckpt").read_bytes()
    done = 1 + [(here / f"{i}.ckpt").read_bytes() for i in range(3)].index(data)
for epoch in range(done, 3):
    while epoch and (here / "hold").exists():
        time.sleep(0.01)
    shutil.copy(here / f"{epoch}.ckpt", folder / "new.ckpt")
    os.replace(folder / "new.ckpt", folder / "last.ckpt")
    with open(here / "epochs.txt", "a") as file:
        file.write(f"{epoch}\\n")
shutil.copy(folder / "last.ckpt", folder / "best.ckpt")
"""

PARENT = """
import sys
from pathlib import Path
from zoo.reproduce.jobs import Options
from zoo.reproduce.runner import Runner
from zoo.reproduce.table import read_table
options = Options(seeds=(0,), rows=("plain",), out=Path("out"), work=Path("work"))
raise SystemExit(Runner(read_table(sys.argv[1]), options, "zoo reproduce planted").run())
"""


class Playground:
    """A folder in which ``python -m zoo`` is the stand-in, and a command that runs one row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_table(folder, claims=[])
        (folder / "zoo").mkdir()
        (folder / "zoo" / "__init__.py").touch()  # without it the real package would win
        (folder / "zoo" / "__main__.py").write_text(CHILD)
        (folder / "driver").mkdir()
        (folder / "driver" / "parent.py").write_text(PARENT)
        (folder / "report.json").write_text(json.dumps(planted_report(50)))
        for epoch in range(3):
            torch.save({"epoch": epoch}, folder / f"{epoch}.ckpt")
        self.hold = folder / "hold"
        self.hold.touch()

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "driver/parent.py", "planted.yaml"]
        return subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def content(self) -> dict[str, float]:
        """The JSON of the finished run."""
        return json.loads((self.folder / "out" / "planted" / "plain-seed0.json").read_text())

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def wait_for(self, name: str, count: int) -> None:
        end = time.monotonic() + 60
        while len(self.lines(name)) < count:
            assert time.monotonic() < end, f"{name}: {self.lines(name)}"
            time.sleep(0.02)


@pytest.fixture
def playground(tmp_path: Path) -> Playground:
    return Playground(tmp_path)


def test_killed_command_goes_on_with_the_child_it_left(playground: Playground) -> None:
    first = playground.start()
    playground.wait_for("epochs.txt", 1)
    since = time.monotonic()
    first.kill()  # SIGKILL: nothing can be noted, and the child lives on
    first.communicate()
    second = playground.start()
    assert second.stdout is not None
    assert "in use by another process; waiting for it" in second.stdout.readline()
    held = time.monotonic() - since
    playground.hold.unlink()
    _, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    # No epoch was trained twice: the second command waited, resumed a finished training, tested.
    assert playground.lines("epochs.txt") == ["0", "1", "2"]
    assert playground.lines("calls.txt") == ["fit new", "fit resumed", "test resumed"]
    content = playground.content()
    assert content["interruptions"] == 1
    assert content["fit_seconds"] >= held - 0.1  # read off the checkpoint that the child wrote


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_command_ends_its_child_and_goes_on(
    playground: Playground, number: signal.Signals
) -> None:
    first = playground.start()
    playground.wait_for("epochs.txt", 1)
    first.send_signal(number)
    out, error = first.communicate(timeout=30)
    assert first.returncode == 130, error
    assert "stopped; the same command goes on where it stopped: zoo reproduce planted" in out
    playground.hold.unlink()
    second = playground.start()
    out, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    assert "in use" not in out  # the child had ended before its parent did
    assert playground.lines("epochs.txt") == ["0", "1", "2"]
    assert playground.lines("calls.txt") == ["fit new", "fit resumed", "test resumed"]
    assert playground.content()["interruptions"] == 1


def test_checkpoints_that_resuming_relies_on(tmp_path: Path) -> None:
    class Worse(pl.LightningModule):
        """Validation gets worse each epoch; the third epoch breaks down."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if self.current_epoch == 2 and index == 1:
                raise RuntimeError("planted")
            return self.weight.sum()

        def validation_step(self, batch: torch.Tensor, index: int) -> None:
            self.log("val/mpjpe_mm", 100.0 + self.current_epoch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    def epochs() -> dict[str, tuple[int, float]]:
        found = {}
        for name in ("best", "last"):
            content = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
            found[name] = (content["epoch"], float(content["state_dict"]["weight"]))
        return found

    seen: list[dict[str, tuple[int, float]]] = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch:
                seen.append(epochs())

    from zoo.fit import _checkpoints

    loader = torch.utils.data.DataLoader(torch.zeros(2, 1))
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Look(), *_checkpoints(tmp_path, 15.0)],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(Worse(), loader, loader)
    assert seen == [
        {"best": (0, -2.0), "last": (0, -2.0)},
        {"best": (0, -2.0), "last": (1, -4.0)},
    ]
    # Amid a step there is nothing whole to save.
    assert epochs() == {"best": (0, -2.0), "last": (1, -4.0)}


# ---- the mean training pose ---------------------------------------------------------------------


def test_mean_pose_baseline_is_the_plain_computation() -> None:
    from datamodules.synthetic import SyntheticDataModule
    from zoo.base import InputSpec

    settings = {"train_samples": 64, "test_samples": 30, "batch_size": 8, "bodies_per_subject": 1}
    measured = mean_pose_baseline(SyntheticDataModule(**settings))
    plain = SyntheticDataModule(**settings, input_spec=InputSpec(kind="keypoints"))
    poses = plain.training_poses()["joints_3d"].numpy().astype(np.float64)
    mean = sum(poses[:, 0]) / len(poses)
    errors = []
    for raw in plain.test_dataloader():
        for pose in plain.on_after_batch_transfer(raw, 0)["joints_3d"][:, 0].numpy():
            errors.append(np.mean([np.linalg.norm(a - b) for a, b in zip(pose, mean, strict=True)]))
    assert len(errors) == 30
    assert measured["mpjpe_mm"] == pytest.approx(np.mean(errors), abs=0.01)
    assert measured["pa_mpjpe_mm"] < measured["mpjpe_mm"]


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["park-tabel2"], "no table 'park-tabel2'; did you mean park-table2"),
        ([], "zoo reproduce needs a table: "),
        (["park-table2", "--rows", "basline"], "did you mean baseline"),
        (["park-table2", "--seeds", "0,x"], "--seeds takes numbers such as 0,1,2, not '0,x'"),
        (["park-table2", "--seeds", "1,1"], "each seed once"),
        (["park-table2", "--jobs", "0"], "--jobs must be at least 1"),
        (["park-table2", "--images", "-5"], "--images must be at least 1"),
        (["park-table2", "--gpus", "-1"], "--gpus takes a number of GPUs"),
        (["park-table2", "--mocap", "absent.npz"], "--mocap absent.npz: no such file"),
        (["park-table2", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["absent.yaml"], "table absent.yaml: No such file"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_list_and_dry_run_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--list"]) == 0
    assert "park-table2: Park et al. 2016" in capsys.readouterr().out
    assert main(["reproduce", "park-table2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("zoo fit --method park ")]) == 12
    assert lines[0] == "# baseline seed 0: 92160 images in 12 epochs"
    assert list(tmp_path.iterdir()) == []


def test_damaged_result_is_named(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    path = tmp_path / "out" / "planted" / "plain-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"table": ')
    with pytest.raises(DataError, match=r"plain-seed0\.json is not readable JSON"):
        runner(tmp_path, table, Stub()).run()


# ---- everything together ------------------------------------------------------------------------


@pytest.mark.slow
def test_real_trainings_end_to_end(tmp_path: Path) -> None:
    model = {
        "epochs": 2, "lr_halve_every": 1, "lambda_switch": 1, "image_size": 54, "crop_size": 49,
        "channels": [4, 8, 8, 8, 8], "strides": [2, 1], "fc": 16, "grid": 4,
    }  # fmt: skip
    data = {
        "seed": "{seed}", "batch_size": 4, "val_samples": 8, "test_samples": 16,
        "bodies_per_subject": 1,
    }  # fmt: skip
    base = {"method": "park", "epochs": 2, "model": model, "data": data}
    pre = {"name": "pre", "model": {"link_2d": False}}
    rows = [
        {"name": "plain", "model": {"link_2d": False, "roots": ["pelvis"]}},
        {"name": "fancy", "model": {"link_2d": False}, "weights": "pre"},
    ]
    write_table(tmp_path, base=base, rows=rows, shared=[pre])
    command = [
        sys.executable, "-m", "zoo", "reproduce", "planted.yaml", "--seeds", "0", "--images", "16",
        "--gpus", "0",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "docs" / "results"
    page = (folder / "planted.md").read_text()
    assert "zoo reproduce planted.yaml --seeds 0 --images 16 --gpus 0" in page
    assert "mean training pose" in page
    assert "synthetic-test" in page
    assert "Incomplete" not in page
    errors = {}
    for row in ("plain", "fancy"):
        content = json.loads((folder / "planted" / f"{row}-seed0.json").read_text())
        assert content["images_seen"] == 16
        assert "samples" in content["actions"]["Walking"]
        errors[row] = content["metrics"]["mpjpe_mm"]
        assert f"{errors[row]:.2f} (n = 1)" in page
        log = (tmp_path / "runs" / "reproduce" / "planted" / f"{row}-seed0" / "log.txt").read_text()
        assert ("--weights" in log) == (row == "fancy")
    assert errors["plain"] != errors["fancy"]
    started = time.monotonic()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 finished runs are reused" in again.stdout
    assert time.monotonic() - started < 60
