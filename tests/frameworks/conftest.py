"""Tests of a library that is not installed are not collected; the libraries' warnings are off."""

from __future__ import annotations

import pytest
from packages import left_out

collect_ignore_glob = [f"test_{library}_*.py" for library in left_out()]


def pytest_configure(config: pytest.Config) -> None:
    for module in ("flax", "qwix", "tunix"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{module}")
