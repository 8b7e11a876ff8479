"""What every test needs: eight CPU devices, set up before JAX is imported, and golden files."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from quick_xla import QUICK

DEVICES = f"--xla_force_host_platform_device_count=8 {QUICK}"
HERE = Path(__file__).parent
GOLDEN = HERE / "golden"

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ.setdefault("SHARDWRIGHT_CACHE", "off")  # what a test compiles, it compiles
os.environ.setdefault("SHARDWRIGHT_PROGRESS", "off")  # how fast a machine is shows nowhere
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
# The same examples everywhere, whatever the clock says of them.
hypothesis.settings.register_profile(
    "same everywhere",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same everywhere")
# Programs are many small objects that live: to look for garbage among them took an eighth of the
# time.
gc.set_threshold(20_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


def pytest_collection_finish() -> None:
    """What is imported by now stays: nobody looks for garbage among it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """JAX keeps every program that it lowered, and every further one takes longer for it."""
    yield
    import jax

    if next(_files) % 8 == 0:
        jax.clear_caches()


_files = itertools.count(1)


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers from its file's RANDOM whichever tests ran before it."""
    if random := getattr(request.module, "RANDOM", None):
        bits = random.bit_generator
        bits.state = type(bits)(bits.seed_seq).state


@pytest.fixture
def rng() -> Any:
    """A generator of the same numbers for every test."""
    import numpy as np

    return np.random.default_rng(3)


@pytest.fixture
def probe_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the passes of tests/probe_passes/ known by name."""
    import passes  # after the flags above

    monkeypatch.setattr(passes, "__path__", [*passes.__path__, str(HERE / "probe_passes")])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(text, "name.ir")`: `text` equals tests/golden/name.ir."""

    def check(text: str, name: str) -> None:
        path, text = GOLDEN / name, text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if not path.exists():
            pytest.fail(f"there is no {path}; write it with: pytest --update-golden")
        assert text == path.read_text(encoding="utf-8")

    return check
