"""The check of the installed JAX, and that it says what pyproject.toml says."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from dialect.front import versions


def installed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


@pytest.mark.parametrize("version", ["0.10.2", "0.12.0", "0.12.0.1", "0.12.7"])
def test_supported_versions_pass(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    assert versions.check() is None


@pytest.mark.parametrize("version", ["0.10.1", "0.10.20", "0.11.3", "0.13.0", "0.120.0"])
def test_other_versions_say_what_to_install(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    with pytest.raises(versions.UnsupportedVersion) as caught:
        versions.check()
    assert caught.value.message == (
        f"JAX {version} is installed; Shardwright works with jax>=0.12,<0.13 or jax==0.10.2"
    )
    assert caught.value.hint == f'{sys.executable} -m pip install "jax==0.10.2"'


def test_a_missing_jax_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(versions.UnsupportedVersion, match="JAX is not installed") as caught:
        versions.check()
    assert caught.value.hint.endswith('-m pip install "jax>=0.12,<0.13"')


def test_the_versions_are_those_of_pyproject() -> None:
    path = Path(__file__).parents[1] / "pyproject.toml"
    wanted = tomllib.loads(path.read_text())["project"]["dependencies"]
    specs = {each.partition(";")[0].strip() for each in wanted}
    assert {spec for _, _, spec in versions.SUPPORTED} <= specs


def test_the_jax_of_this_environment_is_supported() -> None:
    assert versions.check() is None
