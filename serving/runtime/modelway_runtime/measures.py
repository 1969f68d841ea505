"""What one worker counts of itself, and its Prometheus text.

Hand-written, because an archive brings no library along; the format is
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Counts observations in buckets."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bucket holds what is at or below its bound."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The samples."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum}"
        yield f"{name}_count{{{labels}}} {total}"


class Measures:
    """All counters of one worker. Written on its event loop only."""

    def __init__(self) -> None:
        self.batch_size = Histogram(_SIZES)
        self.queue_s = Histogram(_SECONDS)
        self.run_s = Histogram(_SECONDS)
        self.answers: dict[int, int] = {}

    def answered(self, status: int) -> None:
        """Count one answer."""
        self.answers[status] = self.answers.get(status, 0) + 1

    def text(self, labels: Mapping[str, str], num_waiting: int) -> str:
        """Prometheus text. The labels' values must not need escaping."""
        label = ",".join(f'{name}="{value}"' for name, value in labels.items())
        answers = [f'modelway_worker_answers_total{{{label},status="{status}"}} {count}' for status, count in sorted(self.answers.items())]
        families = (
            ("modelway_worker_answers_total", "counter", "Requests answered, by status.", answers),
            (
                "modelway_worker_waiting_requests",
                "gauge",
                "Requests that wait.",
                [f"modelway_worker_waiting_requests{{{label}}} {num_waiting}"],
            ),
            (
                "modelway_worker_batch_size",
                "histogram",
                "Requests that ran together.",
                self.batch_size.lines("modelway_worker_batch_size", label),
            ),
            (
                "modelway_worker_queue_seconds",
                "histogram",
                "Waiting for the model.",
                self.queue_s.lines("modelway_worker_queue_seconds", label),
            ),
            ("modelway_worker_run_seconds", "histogram", "Running a batch.", self.run_s.lines("modelway_worker_run_seconds", label)),
        )
        lines = [line for name, kind, text, rows in families for line in (f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows)]
        return "\n".join(lines) + "\n"
