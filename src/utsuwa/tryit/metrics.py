"""What Prometheus reads: numbers of sessions, waits and failures, nothing about a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_WAITS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets in seconds."""
_TURN_WAITS = (1.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass
class Seconds:
    """A histogram of durations."""

    bounds: tuple[float, ...] = _WAITS
    buckets: list[int] = field(init=False)
    total: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        self.buckets = [0] * len(self.bounds)

    def add(self, seconds: float) -> None:
        self.total += seconds
        self.count += 1
        for number, most in enumerate(self.bounds):
            self.buckets[number] += seconds <= most


@dataclass
class Metrics:
    """Counted since the start of the process."""

    started: int = 0
    failures: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By the code of the error."""
    ended: Counter[str] = field(default_factory=Counter)
    """By the reason."""
    steps: Counter[str] = field(default_factory=Counter)
    """Steps of the tour that were done, by id."""
    stars: Counter[str] = field(default_factory=Counter)
    waits: Seconds = field(default_factory=Seconds)
    making: Seconds = field(default_factory=Seconds)
    turns_ended: Counter[str] = field(default_factory=Counter)
    """Turns to run Docker, by the reason of their end."""
    turn_waits: Seconds = field(default_factory=lambda: Seconds(_TURN_WAITS))

    def text(self, *, sessions: int, most: int, ready: int, turns: int, waiting: int) -> str:
        """Return all metrics in Prometheus' text format."""
        lines = [
            *_family("sessions", "gauge", "Sessions at the moment.", {"": sessions}),
            *_family("sessions_most", "gauge", "Sessions at a time that are allowed.", {"": most}),
            *_family("containers_ready", "gauge", "Containers that stand ready.", {"": ready}),
            *_family("sessions_started_total", "counter", "Sessions that were begun.", {"": self.started}),
            *_labelled("sessions_ended_total", "Sessions that have ended.", "reason", self.ended),
            *_labelled("sessions_refused_total", "Sessions that were refused.", "code", self.refused),
            *_labelled("steps_done_total", "Steps of the tour that were done.", "step", self.steps),
            *_labelled("feedback_total", "Feedback by its stars.", "stars", self.stars),
            *_family(
                "container_failures_total",
                "counter",
                "Containers that could not be made.",
                {"": self.failures},
            ),
            *_histogram("wait_seconds", "Time until a visitor had a container.", self.waits),
            *_histogram("making_seconds", "Time in which a container was made.", self.making),
            *_family("docker_turns", "gauge", "Visitors whose turn it is to run Docker.", {"": turns}),
            *_family("docker_waiting", "gauge", "Visitors that wait for their turn.", {"": waiting}),
            *_labelled("docker_turns_ended_total", "Turns that have ended.", "reason", self.turns_ended),
            *_histogram("docker_wait_seconds", "Time until it was a visitor's turn.", self.turn_waits),
        ]
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help: str, samples: dict[str, float]) -> Iterator[str]:
    yield f"# HELP utsuwa_try_{name} {help}"
    yield f"# TYPE utsuwa_try_{name} {kind}"
    for labels, value in samples.items():
        yield f"utsuwa_try_{name}{labels} {value}"


def _labelled(name: str, help: str, label: str, counts: Counter[str]) -> Iterator[str]:
    return _family(
        name,
        "counter",
        help,
        {f'{{{label}="{value}"}}': count for value, count in sorted(counts.items())},
    )


def _histogram(name: str, help: str, seconds: Seconds) -> Iterator[str]:
    full = f"utsuwa_try_{name}"
    yield f"# HELP {full} {help}"
    yield f"# TYPE {full} histogram"
    for most, count in zip(seconds.bounds, seconds.buckets, strict=True):
        yield f'{full}_bucket{{le="{most}"}} {count}'
    yield f'{full}_bucket{{le="+Inf"}} {seconds.count}'
    yield f"{full}_sum {seconds.total:.6f}"
    yield f"{full}_count {seconds.count}"
