"""`bdhub env`: versions and hardware, also of what is not there."""

from __future__ import annotations

import json

import numpy
import pytest

import bitdelta_hub
from bitdelta_hub.cli import env
from tests.cli.conftest import Bdhub


def test_json(bdhub: Bdhub) -> None:
    found = json.loads(bdhub("env", "--json").out)
    assert found["bitdelta-hub"] == bitdelta_hub.__version__
    assert found["numpy"] == numpy.__version__
    assert {"python", "torch", "transformers", "safetensors", "cuda"} <= set(found)
    assert found["cpus"] >= 1
    assert found["memory"] is None or found["memory"] > 100_000_000


def test_human(bdhub: Bdhub) -> None:
    done = bdhub("env")
    assert done.out.startswith(f"bitdelta-hub {bitdelta_hub.__version__}\n  python: 3.")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, bdhub: Bdhub) -> None:
    monkeypatch.setattr(env, "PACKAGES", ("no-such-package",))
    assert "  no-such-package: not installed\n" in bdhub("env").out
