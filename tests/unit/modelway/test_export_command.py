"""`modelway export`: what is refused before anything is made."""

from __future__ import annotations

import pytest

from modelway.cli.exporting import export
from registry.errors import UsageError


def test_a_report_that_has_no_place_is_refused_at_once(tmp_path):
    with pytest.raises(UsageError, match=r"no such directory for the report .*/missing"):
        export("digits/1", report=tmp_path / "missing" / "report.html")
