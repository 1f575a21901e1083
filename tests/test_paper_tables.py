"""The stored tables: what is printed, what is declared wrong, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from zoo.actions import canonical
from zoo.errors import DataError, UsageError
from zoo.metrics import METRIC_DEFINITIONS
from zoo.paper_tables import (
    Misprint,
    PaperTable,
    all_tables,
    compare,
    cross_problems,
    get_table,
    problems,
    read_tables,
    tables_for,
)
from zoo.protocols import PROTOCOLS
from zoo.registry import method_names

TABLES = all_tables()


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_consistent_but_for_what_it_declares(name: str) -> None:
    table = TABLES[name]
    assert problems(table) == []
    if table.protocol:
        assert PROTOCOLS[table.protocol].dataset == table.data
    assert table.metric in METRIC_DEFINITIONS or table.metric == "time_ms"
    assert any(row.ours for row in table.rows)
    assert {r.method for r in table.rows} <= {"", *method_names()}


def test_the_tables_agree_with_each_other_but_for_what_they_declare() -> None:
    assert cross_problems(list(TABLES.values())) == []


def test_every_competitor_is_there() -> None:
    rows = {name: len(table.rows) for name, table in TABLES.items()}
    assert rows["tome2017-table1"] == 9
    assert rows["katircioglu2017-table1"] == 14
    assert rows["park2016-table1"] == 7
    assert rows["rpsm2017-table2"] == 8
    assert [rows[f"ssc2019-table2-protocol{i}"] for i in (1, 2, 3)] == [18, 7, 6]
    assert rows["ssc2019-table3"] == 14
    assert sum(rows.values()) == 185


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        # Typed again from the papers, not taken from the files.
        ("tome2017-table1", "Ours - Mixture PPCA Model", "Average", 88.39),
        ("tome2017-table1", "Ours - Single PPCA Model", "Sitting Down", 185.72),
        ("tome2017-table2-protocol2", "Rogez et al. [30]", "Average", 88.1),
        ("tome2017-table2-2d", "Ours using 3D refinement", "Average", 9.47),
        ("katircioglu2017-table1", "OURS (ResNet-Autoencoder)", "Avg. (All)", 67.27),
        ("katircioglu2017-table3b", "CNN-PCA[51]", "Taking Photo", 182.64),
        ("katircioglu2017-table5", "OURS-Autoencoder", "S3", 59.51),
        ("katircioglu2017-table6", "OURS-Autoencoder", "Lower arms", 16.5),
        ("katircioglu2017-table7", "OURS-BLSTM-Pose", "Average", 65.37),
        ("katircioglu2017-table10", "[500-1000]", "Greeting", 126.52),
        ("park2016-table1", "Our method", "Sitting Down", 190.82),
        ("park2016-table2", "Multi-reg+2D-cls", "Walking", 62.64),
        ("rpsm2017-table2", "Ours", "Avg.", 73.10),
        ("rpsm2017-table3", "Ours", "Boxing S3", 61.2),
        ("rpsm2017-table4", "RPSM-3-stage_sharing", "Avg.", 71.44),
        ("ssc2019-table2-protocol3", "Ours", "SitDown", 94.30),
        ("ssc2019-table5", "Ours w/ HG features", "Avg.", 62.85),
        ("ssc2019-table4", "Ours", "Time", 51),
    ],
)
def test_numbers_as_printed(table: str, row: str, column: str, value: float) -> None:
    stored = TABLES[table]
    (line,) = [r for r in stored.rows if r.name == row]
    assert stored.value(line, column) == value


def test_known_misprints_are_declared_and_put_right() -> None:
    table = get_table("ssc2019-table2-protocol1")
    (tome,) = [r for r in table.rows if r.name.startswith("Tome")]
    assert (table.value(tome, "Walk"), table.value(tome, "WalkDog")) == (86.26, 71.36)
    assert (table.value(tome, "Walk", True), table.value(tome, "WalkDog", True)) == (71.36, 86.26)
    resnet = [m for m in get_table("katircioglu2017-table1").misprints if m.printed == 61.20]
    assert [m.mean for m in resnet] == [64.98]


# ---- the check can fail --------------------------------------------------------------------------


def changed(table: PaperTable, row: int, column: int, by: float) -> PaperTable:
    rows = list(table.rows)
    values = list(rows[row].values)
    assert values[column] is not None
    values[column] += by  # type: ignore[operator]
    rows[row] = dataclasses.replace(rows[row], values=tuple(values))
    return dataclasses.replace(table, rows=tuple(rows))


@pytest.mark.parametrize("column", [0, 7, 14, 15])
def test_a_wrong_digit_is_found(column: int) -> None:
    table = get_table("rpsm2017-table2")
    assert problems(changed(table, -1, column, 0.9))
    assert cross_problems([changed(table, -1, column, 0.9), get_table("rpsm2017-table4")])


def test_what_is_declared_must_be_wrong_and_fit() -> None:
    table = get_table("rpsm2017-table2")
    for misprint, says in (
        (Misprint("Ours", "Avg.", 73.10, "", mean=74.0), "is the mean after all"),
        (Misprint("Ours", "Avg.", 73.11, "", mean=74.0), "is not the declared"),
        (Misprint("Ours", "Avg.", 73.10, "", correct=73.10), "declared wrong and is not"),
        (Misprint("Ours", "Average", 73.10, "", mean=74.0), "no cell"),
        (Misprint("Ours", "Avg.", 73.10, ""), "says nothing"),
    ):
        assert any(says in p for p in problems(dataclasses.replace(table, misprints=(misprint,))))
    declared = get_table("katircioglu2017-table4")
    assert problems(dataclasses.replace(declared, misprints=()))
    (known,) = declared.misprints
    off = dataclasses.replace(declared, misprints=(dataclasses.replace(known, mean=67.9),))
    assert any("declared to give" in p for p in problems(off))


def test_a_file_that_is_no_table_is_one_line(tmp_path: Path) -> None:
    for text in ("tables: [", "tables: []", "paper: {}\ntables: [{id: a}]", "- 1"):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(DataError) as error:
            read_tables(path)
        assert "x.yaml" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="No such file"):
        read_tables(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="did you mean tome2017-table1"):
        get_table("tome-table1")


# ---- beside ours ---------------------------------------------------------------------------------


def test_names_of_actions() -> None:
    tome, rpsm = get_table("tome2017-table1").columns, get_table("rpsm2017-table2").columns
    park, latent = get_table("park2016-table1").columns, get_table("katircioglu2017-table4").columns
    ssc = get_table("ssc2019-table2-protocol1").columns
    sets = [{canonical(c) for c in columns} for columns in (tome, rpsm, park, latent, ssc)]
    assert all(len(s) == 16 for s in sets)
    assert all(s == sets[0] for s in sets)
    # Every column of a paper has one place in the protocol's order, and they are in that order.
    for protocol, columns in (("p1-10fps", tome), ("p1-2fps", rpsm), ("p2-wang", ssc)):
        order = [canonical(a) for a in PROTOCOLS[protocol].action_order]
        assert order == [canonical(c) for c in columns[:-1]]
    assert canonical("Walk S1") == canonical("Walking s1") == "walking s1"
    assert canonical("Juggling") == "juggling"


def test_ours_land_under_the_right_columns() -> None:
    table = get_table("rpsm2017-table2")
    order = PROTOCOLS["p1-2fps"].action_order
    report = {a: {"mpjpe_mm": float(i)} for i, a in enumerate(reversed(order))}
    report["mean over actions"] = {"mpjpe_mm": 7.0}
    report["all frames"] = {"mpjpe_mm": 6.5}
    result = compare(table, report, report["mean over actions"], "p1-2fps", "definition")
    assert result.measured == (*[float(14 - i) for i in range(15)], 7.0)
    assert result.same_protocol
    assert result.warning == ""
    assert result.unmatched == ()
    # Other data, fewer actions: what is missing stays empty, and the table says so.
    few = {"Walking": {"mpjpe_mm": 1.0}, "Juggling": {"mpjpe_mm": 9.0}}
    result = compare(table, few, {"mpjpe_mm": 5.0}, "synthetic-test", "definition")
    assert sum(v is not None for v in result.measured) == 2
    assert result.measured[table.columns.index("Walk")] == 1.0
    assert result.unmatched == ("Juggling",)
    assert "not comparable" in result.warning
    plain = result.as_dict()
    assert len(plain["rows"]) == 8
    assert plain["measured"][-1] == 5.0


def test_subjects_and_parts_as_columns() -> None:
    table = get_table("rpsm2017-table3")
    report = {
        f"{action} S{s}": {"mpjpe_mm": 10.0 * i + s}
        for i, action in enumerate(("Walking", "Jogging", "Boxing"))
        for s in (1, 2, 3)
    }
    result = compare(table, report, {"mpjpe_mm": 12.0}, "humaneva-rpsm", "definition")
    assert result.measured == (1, 2, 3, 2, 11, 12, 13, 12, 21, 22, 23, 22)
    del report["Jogging S2"]
    result = compare(table, report, {"mpjpe_mm": 12.0}, "humaneva-rpsm", "definition")
    assert result.measured[4:8] == (11, None, 13, None)
    parts = ("pelvis", "torso", "upper_arms", "lower_arms", "upper_legs", "lower_legs")
    overall = {"pcp_50": 60.0} | {f"pcp_50_{p}": float(i) for i, p in enumerate(parts)}
    result = compare(get_table("katircioglu2017-table6"), {}, overall, "kth-pcp", "definition")
    assert result.measured == (0, 1, 2, 3, 4, 5, 60)


def test_a_table_of_one_action_has_subjects_as_columns() -> None:
    report = {f"Walking S{s}": {"mpjpe_mm": 10.0 * s} for s in (1, 2, 3)}
    table = get_table("katircioglu2017-table5")
    result = compare(table, report, {"mpjpe_mm": 20.0}, "humaneva-katircioglu", "definition")
    assert result.measured == (10, 20, 30, 20)
    assert result.unmatched == ()


def test_synthetic_copies_and_parts_of_a_data_set_do_not_compare() -> None:
    table, name = get_table("rpsm2017-table2"), "p1-2fps"
    assert compare(table, {}, {}, name, "text", "Human3.6M").same_protocol
    assert not compare(table, {}, {}, name, "text", "SYNTHETIC COPY of Human3.6M").same_protocol
    lacking = "THE FOLDER HAS NO S9: not the protocol's number."
    assert not compare(table, {}, {}, name, lacking, "Human3.6M").same_protocol


def test_which_tables_are_shown() -> None:
    ids = [t.id for t in tables_for("park", "p1-10fps")]
    assert ids == ["park2016-table1", "park2016-table2"]
    assert [t.id for t in tables_for("park", "synthetic-test")] == ids
    assert [t.id for t in tables_for("tome-mixture", "p2-tome")] == ["tome2017-table2-protocol2"]
    other = [t.id for t in tables_for("park", "p1-2fps")]
    assert "rpsm2017-table2" in other
    assert "ssc2019-table2-protocol1" in other
    assert tables_for("nobody", "synthetic-test") == ()
