"""One picture: a get over the length of the history, and operations per second of many callers."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .results import Results, joined
from .subjects.catalogue import OURS, REFERENCE
from .workloads import LENGTHS

_NAMES: Final = {REFERENCE: "google-adk DatabaseSessionService", OURS: "tiered-sessions"}
_COLOURS: Final = {REFERENCE: "#8a8f98", OURS: "#1f6feb"}
_BARS: Final = {
    "hot-all-20": "get\n20 events",
    "hot-all-200": "get\n200 events",
    "append": "append",
    "turn": "chat turn",
    "list-100": "list 100",
    "create": "create",
    "delete": "delete",
}


class NoPlotError(Exception):
    """The picture cannot be drawn here."""


def draw(runs: Sequence[Results], path: Path) -> list[Path]:
    """Writes the picture of some runs' medians as PNG and SVG beside `path` and returns where.

    Raises:
        NoPlotError: matplotlib is not installed.
    """
    try:
        # An extra: by name, so that types are checked the same with and without it.
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as missing:
        raise NoPlotError("the plot needs matplotlib: install tiered-sessions[bench]") from missing
    pyplot.switch_backend("Agg")
    # Text stays text in the SVG, and the file is the same for the same figures.
    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25))
    _lengths(left, joined(runs))
    _rates(right, runs)
    figure.tight_layout()
    written = []
    for suffix in (".png", ".svg"):
        target = path.with_suffix(suffix)
        figure.savefig(target, dpi=150, metadata={"Date": None} if suffix == ".svg" else None)
        written.append(target)
    pyplot.close(figure)
    return written


def _lengths(axes: Any, results: Results) -> None:
    for subject in (REFERENCE, OURS):
        for kind, style, label in (("all", "-", "all events"), ("get", "--", "the last 20")):
            points = [
                (length, found.p50)
                for length in LENGTHS
                if (found := results.summary(f"postgresql/growth-{kind}-{length}/c1", subject))
            ]
            if points:
                name = f"{_NAMES[subject]}, {label}"
                axes.plot(
                    *zip(*points, strict=True), style, marker="o", ms=4, color=_COLOURS[subject], label=name
                )
    axes.set(xscale="log", yscale="log", xlabel="events in the session", ylabel="ms (median, one caller)")
    axes.set_title("Reading a session")
    axes.grid(which="major", alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _rates(axes: Any, runs: Sequence[Results]) -> None:
    results = joined(runs)
    found = {
        workload: {
            subject: results.summary(f"postgresql/{workload}/c32", subject) for subject in (REFERENCE, OURS)
        }
        for workload in _BARS
    }
    shown = [workload for workload, both in found.items() if all(both.values())]
    for offset, subject in ((-0.2, REFERENCE), (0.2, OURS)):
        rates = [summary.rate if (summary := found[workload][subject]) else 0.0 for workload in shown]
        places = [number + offset for number in range(len(shown))]
        axes.bar(places, rates, 0.38, color=_COLOURS[subject], label=_NAMES[subject])
    for number, workload in enumerate(shown):
        # As in the table: a run's own ratio carries over, not that of two runs' rates.
        ratios = [ratio for run in runs if (ratio := run.ratio(f"postgresql/{workload}/c32"))]
        ours = found[workload][OURS]
        if ratios and ours:
            ratio = statistics.median(ratios)
            axes.annotate(
                f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x",
                (number + 0.2, ours.rate),
                ha="center",
                va="bottom",
            )
    axes.set(yscale="log", ylabel="operations per second (32 callers)")
    axes.set_xticks(range(len(shown)), [_BARS[workload] for workload in shown])
    axes.set_title("Throughput of one process")
    axes.set_ylim(bottom=1)
    if shown:
        # Room for the legend above the highest bar.
        axes.set_ylim(top=axes.get_ylim()[1] * 8)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
