"""Measurements of the whole platform beside its alternatives, in one run: `make bench`. See `benchmarks.__main__`."""
