"""The command line run in this process, and a small pair of checkpoints for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitdelta_hub.cli import main
from bitdelta_hub.compress import compress
from tests.models import checkpoints


@dataclass(frozen=True, slots=True)
class Done:
    """How a run ended, and what it printed."""

    status: int
    out: str
    err: str


Bdhub = Callable[..., Done]


@pytest.fixture
def bdhub(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bdhub:
    monkeypatch.delenv("BDHUB_DEBUG", raising=False)

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, tuned): two tiny checkpoints, not to be written to."""
    return checkpoints("llama", tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def delta(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The delta of `pair`, not to be written to."""
    base, tuned = pair
    return compress(tuned, base, tmp_path_factory.mktemp("cli") / "delta").out
