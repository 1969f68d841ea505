"""How a variant runs best on this machine: a measured search over workers, threads and batch limit."""

from serving.tuning.search import Goal, Measured
from serving.tuning.tune import Tuned, TuneOptions, tune

__all__ = ["Goal", "Measured", "TuneOptions", "Tuned", "tune"]
