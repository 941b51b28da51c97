"""A run as Markdown: the table of medians and ratios, and what it was measured on."""

from __future__ import annotations

from collections.abc import Sequence

from bench.samples import Result
from bench.table import ROWS, Row

BARE = "liblxc"


def title(row: Row, counts: dict[str, int]) -> str:
    return row.title.format(**counts)


def measured(result: Result) -> list[Row]:
    """The rows that the run has; a kept run may be older than a row."""
    return [row for row in ROWS if row.key in result.samples]


def amount(value: float, unit: str) -> str:
    """With three digits: `1.23 s`, `45.6 ms`, `13 MiB`."""
    if unit == "s" and value < 1:
        value, unit = value * 1000, "ms"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def factor(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


class Report:
    """One result with those before it, oldest first."""

    def __init__(self, result: Result, earlier: Sequence[Result]) -> None:
        self.result = result
        self.earlier = earlier
        self._notes: list[str] = []

    def text(self) -> str:
        parts = [self._head(), self._table(), self._explained(), self._left_out(), self._surroundings()]
        if self.earlier:
            parts.append(self._course())
        return "\n\n".join(part for part in parts if part) + "\n"

    def _head(self) -> str:
        result = self.result
        return (
            "# Measured beside the peers\n\n"
            f"Written by `{result.command}` on {result.date} UTC, commit {result.commit}, "
            f"in {result.seconds} s. "
            "How it is measured: [docs/benchmark.md](../docs/benchmark.md).\n\n"
            "![How many times more the best peer needs](ratios.svg)"
        )

    # ---- the table

    def _table(self) -> str:
        labels = [subject.label for subject in self.result.subjects]
        bare = any(BARE in by_label for by_label in self.result.samples.values.values())
        columns = [*labels, *(["bare liblxc"] if bare else [])]
        lines = [
            _line(["", *columns, "peer / utsuwa", "aim"]),
            _line(["---", *["---:"] * (len(columns) + 2)]),
        ]
        for row in measured(self.result):
            cells = [self._cell(row, label) for label in (*labels, *([BARE] if bare else []))]
            ratio = self.result.ratio(row.key)
            shown = "" if ratio is None else f"**{factor(ratio)}**"
            lines.append(_line([title(row, self.result.counts), *cells, shown, _aim(row, ratio)]))
        return "\n".join(lines)

    def _cell(self, row: Row, label: str) -> str:
        median = self.result.samples.median(row.key, label)
        shown = "" if median is None else amount(median, row.unit)
        reason = self.result.samples.failures.get(row.key, {}).get(label)
        if reason is None:
            return shown
        self._notes.append(f"{title(row, self.result.counts)}, {label}: {reason}")
        return f"{shown or 'failed'} [{len(self._notes)}]"

    def _explained(self) -> str:
        rounds = "1 round" if self.result.rounds == 1 else f"{self.result.rounds} rounds"
        text = (
            f"Each number is the median over {rounds}; pools that are not the best of their daemon, launches "
            "of many, imports, first launches and memory are measured less often. The ratio is the best "
            "peer's number divided by ours on our best pool, of those measured in at least half of the "
            "rounds: above 1 Utsuwa needs less. Where a row does not name `utsuwa`, the client is `lxc`, "
            "for Incus `incus`."
        )
        notes = [f"{number}. {note}" for number, note in enumerate(self._notes, 1)]
        return "\n".join(
            [
                text,
                *(["", "Not measured, not in every round, or with a remark:", "", *notes] if notes else []),
            ]
        )

    def _left_out(self) -> str:
        lines = [f"- {name} took no part: {reason}" for name, reason in self.result.absent.items()]
        lines += [f"- {problem}" for problem in self.result.problems]
        return "\n".join(lines)

    # ---- around it

    def _surroundings(self) -> str:
        result = self.result
        facts = {**result.machine, **result.versions}
        load = result.load
        facts["load average"] = f"{load.before} before, at most {load.most} while it ran, {load.after} after"
        lines = [_line(["machine and versions", ""]), _line(["---", "---"])]
        return "\n".join([*lines, *(_line([name, value]) for name, value in facts.items())])

    def _course(self) -> str:
        """Ratios of all kept runs."""
        rows = [row for row in measured(self.result) if row.target is not None]
        runs = [*self.earlier, self.result]
        lines = [
            "## Course",
            "",
            "![Ratios of the kept runs](course.svg)",
            "",
            _line(["peer / utsuwa", *(f"{run.date[:10]} {run.commit}" for run in runs)]),
            _line(["---", *["---:"] * len(runs)]),
        ]
        for row in rows:
            ratios = [run.ratio(row.key) for run in runs]
            cells = ["" if ratio is None else factor(ratio) for ratio in ratios]
            lines.append(_line([title(row, self.result.counts), *cells]))
        return "\n".join(lines)


def _aim(row: Row, ratio: float | None) -> str:
    if row.target is None:
        return ""
    if ratio is None:
        return f"{row.target:g}"
    return f"{row.target:g} {'reached' if ratio >= row.target else 'not reached'}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
