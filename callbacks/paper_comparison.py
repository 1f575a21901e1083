"""``zoo test --compare``: the papers' tables with a row of ours beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table

from zoo.base import PoseModule
from zoo.errors import UsageError
from zoo.metrics import PoseMetrics
from zoo.paper_tables import Comparison, PaperTable, compare, get_table, tables_for
from zoo.pose import write_atomically

__all__ = ["PaperComparison", "compare_with_papers"]

_OVERALL = {
    "frames": "all frames", "actions": "mean over actions",
    "subjects": "mean over subjects and actions",
}  # fmt: skip


def compare_with_papers(metrics: PoseMetrics, method: str, table: str = "") -> list[Comparison]:
    """The comparisons to show after a test.

    Args:
        metrics: of the test.
        method: registry name; its own paper's tables come first.
        table: id of one table; empty takes those of the protocol, or without one the method's own.

    Raises:
        zoo.errors.UsageError: there is no such table, or none that fits.
    """
    protocol = metrics.protocol
    tables: tuple[PaperTable, ...] = (get_table(table),) if table else ()
    tables = tables or tables_for(method, protocol.name)
    if not tables:
        raise UsageError(
            f"no stored table has protocol {protocol.name} or a row of {method}; "
            "name one: --compare tome2017-table1"
        )
    report = metrics.per_action()
    overall = report.get(_OVERALL[protocol.aggregation], {})
    return [
        compare(t, report, overall, protocol.name, metrics.definition, protocol.dataset)
        for t in tables
    ]


class PaperComparison(pl.Callback):
    """At the end of a test: the tables in the terminal, and ``comparison.json`` in the run folder.

    Ours is a row of its own, with its definition; where it was measured on other data or under
    another protocol than the paper's numbers, the table says that they do not compare.

    Args:
        method: registry name.
        table: id of one table; empty takes those that fit.
    """

    def __init__(self, method: str, table: str = "") -> None:
        self.method = method
        self.table = table

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints and writes the comparison.

        Raises:
            zoo.errors.UsageError: no table fits.
            zoo.errors.OutputError: the file cannot be written.
        """
        assert isinstance(pl_module, PoseModule)
        metrics = pl_module.test_metrics
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if metrics is None:
            return
        metrics.per_action()
        if not trainer.is_global_zero:
            return
        comparisons = compare_with_papers(metrics, self.method, self.table)
        console = Console()
        for comparison in comparisons:
            for part in _tables(comparison, self.method, console.width):
                console.print(part)
            for line in _notes(comparison):
                console.print(line, style="dim", markup=False, highlight=False)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = json.dumps([c.as_dict() for c in comparisons], indent=1, allow_nan=False) + "\n"
            write_atomically(folder / "comparison.json", text.encode())


def _tables(comparison: Comparison, method: str, width: int) -> list[Table]:
    """One rich table, or several that share the rows where the columns do not fit."""
    paper = comparison.table
    names = max(len(r.name) for r in paper.rows) + 2
    fit = max(4, (width - names - 4) // 11)
    blocks = [paper.columns[i : i + fit] for i in range(0, len(paper.columns), fit)]
    marks = {(m.row, m.column) for m in paper.misprints}
    parts = []
    for number, block in enumerate(blocks):
        part = Table(title=paper.title if number == 0 else None, title_justify="left")
        part.add_column(f"{paper.metric}, {paper.unit}", no_wrap=True)
        for column in block:
            part.add_column(column, justify="right")
        for row in paper.rows:
            cells = [
                _cell(paper.value(row, c), "*" if (row.name, c) in marks else "") for c in block
            ]
            name = row.name + (f" ({row.alignment})" if row.alignment else "")
            part.add_row(name, *cells)
        part.add_section()
        ours = dict(zip(paper.columns, comparison.measured, strict=True))
        part.add_row(f"zoo: {method}", *(_cell(ours[c]) for c in block), style="bold")
        parts.append(part)
    return parts


def _notes(comparison: Comparison) -> list[str]:
    """What stands below a table."""
    paper = comparison.table
    lines = [comparison.warning.upper()] if comparison.warning else []
    lines.append(f"zoo: {comparison.definition}")
    if comparison.unmatched:
        lines.append(f"Ours without a column here: {', '.join(comparison.unmatched)}.")
    if paper.note:
        lines.append(f"Paper: {paper.note}")
    for m in paper.misprints:
        says = [
            f"{word} {value:g}"
            for word, value in (
                ("should be", m.correct), ("its entries give", m.mean), ("elsewhere", m.elsewhere),
            )
            if value is not None
        ]  # fmt: skip
        lines.append(f"* {m.row}, {m.column}: {'; '.join(says)} ({m.why}).")
    return lines


def _cell(value: float | None, mark: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.2f}{mark}"
