"""The libraries that these tests need; those that are not installed are left out, and named."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# The module of the cases -> the packages that it needs, and the beginning of their versions.
NEEDS = {
    "hf_flax": {"flax": "0.", "transformers": "4."},
    "tunix": {"flax": "0.", "google-tunix": "0.", "qwix": "0."},
    "qwix": {"qwix": "0."},
}


def installed(package: str, series: str) -> bool:
    try:
        return version(package).startswith(series)
    except PackageNotFoundError:
        return False


def left_out() -> dict[str, str]:
    """Cases -> one line that says why they are not tested here."""
    missing = {
        library: [name for name, series in needs.items() if not installed(name, series)]
        for library, needs in NEEDS.items()
    }
    return {
        library: f"left out: tests/frameworks/test_{library}_*.py: needs {', '.join(names)}; "
        'try: pip install "shardwright[frameworks]"'
        for library, names in missing.items()
        if names
    }
