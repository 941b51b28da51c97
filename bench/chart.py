"""Pictures of results as SVG: the ratios of one run as bars, and those of all kept runs as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.report import factor, measured, title
from bench.samples import Result

WIDTH, LEFT, RIGHT, TOP, STEP = 900, 380, 90, 60, 24
BETTER, WORSE, AIM, GREY = "#2b7a78", "#c0562f", "#222222", "#999999"
LINES = (
    "#2b7a78",
    "#c0562f",
    "#4c6ca8",
    "#a8884c",
    "#7a4ca8",
    "#4ca85f",
    "#a84c77",
    "#555555",
    "#1f9bb5",
    "#b5a11f",
)


def bars(result: Result) -> str:
    """A bar a row on a logarithmic scale from 1: right of it Utsuwa needs less. A tick shows the aim."""
    found = [(row, ratio) for row in measured(result) if (ratio := result.ratio(row.key))]
    extremes = [ratio for _, ratio in found] + [row.target for row, _ in found if row.target]
    scale = _Scale(extremes)
    height = TOP + STEP * len(found) + 30
    parts = [_text(10, 24, "How many times more the best peer needs than Utsuwa", size=16)]
    parts.append(_text(10, 44, f"{result.date} UTC, commit {result.commit}", colour=GREY))
    parts += _axis(scale, height)
    for number, (row, ratio) in enumerate(found):
        y = TOP + STEP * number
        start, end = sorted((scale.x(1), scale.x(ratio)))
        colour = BETTER if ratio >= 1 else WORSE
        parts.append(_text(LEFT - 10, y + 15, title(row, result.counts), anchor="end"))
        parts.append(
            f'<rect x="{start:.1f}" y="{y + 3}" width="{end - start:.1f}" height="16" fill="{colour}"/>'
        )
        parts.append(_text(max(end, scale.x(row.target or 0)) + 6, y + 15, factor(ratio)))
        if row.target:
            x = scale.x(row.target)
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y + 1}" y2="{y + 21}"'
            parts.append(f'<line {ends} stroke="{AIM}" stroke-width="2"/>')
    return _picture(height, parts)


def course(results: Sequence[Result]) -> str:
    """A line a row with an aim, over the runs, oldest first."""
    rows = [row for row in measured(results[-1]) if row.target is not None]
    found = {row.key: [run.ratio(row.key) for run in results] for row in rows}
    low, high = _bounds([ratio for ratios in found.values() for ratio in ratios if ratio])
    bottom = TOP + STEP * len(rows)
    right = WIDTH - LEFT
    parts = [_text(10, 24, "Peer / Utsuwa over the kept runs", size=16)]

    def place(number: int, ratio: float) -> tuple[float, float]:
        x = 60 + (right - 80) * (number / max(1, len(results) - 1))
        return x, bottom - (bottom - TOP) * (math.log(ratio) - low) / (high - low)

    for tick in _ticks(low, high):
        y = place(0, tick)[1]
        parts.append(f'<line x1="60" x2="{right - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(52, y + 4, f"{tick:g}", anchor="end", colour=GREY))
    for number, row in enumerate(rows):
        colour = LINES[number % len(LINES)]
        points = [place(i, ratio) for i, ratio in enumerate(found[row.key]) if ratio]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(right, TOP + STEP * number + 12, title(row, results[-1].counts), colour=colour))
    for i, run in enumerate(results):
        parts.append(_text(place(i, math.exp(low))[0], bottom + 18, run.commit, anchor="middle", colour=GREY))
    return _picture(bottom + 30, parts)


class _Scale:
    """From ratios to places in the picture."""

    def __init__(self, ratios: Sequence[float]) -> None:
        self.low, self.high = _bounds(ratios)

    def x(self, ratio: float) -> float:
        """0 gives the left end."""
        if ratio <= 0:
            return LEFT
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(ratio) - self.low) / (self.high - self.low)


def _bounds(ratios: Sequence[float]) -> tuple[float, float]:
    """Logarithms of a range with 1 and everything in it."""
    logarithms = [math.log(ratio) for ratio in ratios]
    return min(math.log(0.8), *logarithms, 0.0), max(math.log(2), *logarithms, 0.0)


def _ticks(low: float, high: float) -> list[float]:
    return [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= math.log(tick) <= high]


def _axis(scale: _Scale, height: int) -> list[str]:
    parts = []
    for tick in _ticks(scale.low, scale.high):
        x = scale.x(tick)
        colour = GREY if tick == 1 else "#dddddd"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - 24}" stroke="{colour}"/>')
        parts.append(_text(x, height - 8, f"{tick:g}", anchor="middle", colour=GREY))
    return parts


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, colour: str = "#222222"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(text.replace('`', ''))}</text>"


def _picture(height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    )
    return (
        "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>', *parts, "</svg>"])
        + "\n"
    )
