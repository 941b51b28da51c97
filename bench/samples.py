"""What was measured: samples and reasons of failure by row and subject, and their JSON form."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Subject:
    """One column: a daemon, with the pool where that matters."""

    daemon: str
    pool: str
    ours: bool

    @property
    def label(self) -> str:
        return f"{self.daemon} {self.pool}".strip()


@dataclass
class Samples:
    """`values[row][label]`, in the row's unit, and `failures[row][label]`: the last reason or remark."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)

    def measure(self, row: str, label: str, action: Callable[[], float]) -> None:
        """Keep what `action` gives; whatever it raises becomes the reason of the failure."""
        try:
            value = action()
        except Exception as error:
            self.failures.setdefault(row, {})[label] = " ".join(f"{error}".split()) or type(error).__name__
            return
        self.values.setdefault(row, {}).setdefault(label, []).append(value)

    def remark(self, row: str, label: str, text: str) -> None:
        """Something that the report tells of a measured value."""
        self.failures.setdefault(row, {})[label] = text

    def __contains__(self, row: str) -> bool:
        return row in self.values or row in self.failures

    def median(self, row: str, label: str) -> float | None:
        found = self.values.get(row, {}).get(label)
        return statistics.median(found) if found else None


@dataclass(frozen=True)
class Load:
    """Load averages of one minute."""

    before: float
    most: float
    after: float


@dataclass(frozen=True)
class Result:
    """A whole run, as it is kept."""

    date: str
    """UTC, as 2026-01-31 12:00"""
    commit: str
    """Abbreviated; with `+` where files of the program differ from it."""
    command: str
    seconds: int
    rounds: int
    counts: dict[str, int]
    """`instances`, `running` and `burst`."""
    machine: dict[str, str]
    versions: dict[str, str]
    absent: dict[str, str]
    """Daemons and pools that could not take part, with the reason."""
    load: Load
    subjects: list[Subject]
    samples: Samples
    problems: list[str]
    """What went wrong outside of rows, such as in cleaning up."""

    def to_json(self) -> dict[str, object]:
        content = asdict(self)
        values = content["samples"]["values"]
        for by_label in values.values():
            for label, found in by_label.items():
                by_label[label] = [float(f"{value:.4g}") for value in found]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Result:
        """Raises KeyError or TypeError for what `to_json` did not write."""
        parts = {
            "load": Load(**content["load"]),
            "subjects": [Subject(**subject) for subject in content["subjects"]],
            "samples": Samples(**content["samples"]),
        }
        return cls(**{**content, **parts})

    def best(self, row: str, *, ours: bool) -> tuple[float, str] | None:
        """The least median among our pools or the peers', and its label.

        A pool measured in less than half of the row's rounds does not count: the least of few samples
        is mostly luck.
        """
        values = self.samples.values.get(row, {})
        enough = max(map(len, values.values()), default=0) / 2
        found = [
            (statistics.median(values[subject.label]), subject.label)
            for subject in self.subjects
            if subject.ours == ours and len(values.get(subject.label, ())) >= max(enough, 1)
        ]
        return min(found) if found else None

    def ratio(self, row: str) -> float | None:
        """How many times more the best peer needs than we do on our best pool."""
        ours, peer = self.best(row, ours=True), self.best(row, ours=False)
        return peer[0] / ours[0] if ours and peer and ours[0] else None
