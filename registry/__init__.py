"""What exists and what should serve: domain types, gates, the ledger, the MLflow adapter.

This package imports no sibling. Everything that two siblings must agree on is defined here.
"""
