"""Measurements and what they mean: metrics, verdicts, Prometheus settings."""
