"""What every test runs under: no network, few threads, fixed examples in CI."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]

# Read when torch and huggingface_hub are first imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

# No deadline: the first example of a test often pays for an import or a warm-up.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "local")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of small trained models that lies beside some checkouts; skips without it."""
    path = ROOT.parent / "shared" / "zoo"
    if not path.is_dir():
        pytest.skip("no trained models beside this checkout (../shared/zoo)")
    return path
