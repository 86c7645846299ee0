"""The demonstration from training to table."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import transformers

from bitdelta_hub.compress import compress
from bitdelta_hub.demo import train
from bitdelta_hub.demo.words import TASKS, Problem, make_tokenizer, problems
from bitdelta_hub.format.staging import stage_folder
from bitdelta_hub.rebuild import rebuild
from bitdelta_hub.verify import verify

RECIPES = ("bitdelta", "row1", "delta-come")
TUNED_TASK = "flip"
BASE_STEPS, BASE_RATE = 300, 2e-3
TUNED_STEPS, TUNED_RATE = 160, 6e-4
PROBLEMS = 500
RESULTS = "demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model: bytes on disk, how many times smaller than tuned, and how well it does.

    `error` is the median over approximate tensors of the relative error of the diff.
    """

    model: str
    bytes: int
    ratio: float | None = None
    error: float | None = None
    exact_match: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Base, tuned, and tuned as rebuilt from the delta of each recipe."""

    task: str
    problems: int
    rows: tuple[Row, ...]
    seconds: float


def run_demo(
    folder: Path | None,
    *,
    seed: int,
    say: train.Say,
    overwrite: bool = False,
    base_steps: int = BASE_STEPS,
    tuned_steps: int = TUNED_STEPS,
) -> DemoResult:
    """Trains a base and a fine-tune, compresses with RECIPES, verifies, rebuilds and scores.

    The files stay in `folder`; without one they are removed. Raises what the library raises.
    """
    began = time.perf_counter()
    with _place(folder, overwrite) as place, _quiet_transformers():
        held = problems(Random(-1 - seed), [TUNED_TASK], PROBLEMS)  # noqa: S311 - no secret
        _train_pair(place, seed, held, base_steps, tuned_steps, say)
        rows = [_checkpoint_row(place, name, held) for name in ("base", "tuned")]
        rows += [_delta_row(place, recipe, held, say) for recipe in RECIPES]
        result = DemoResult(
            task=TUNED_TASK,
            problems=len(held),
            rows=tuple(rows),
            seconds=time.perf_counter() - began,
        )
        (place / RESULTS).write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


@contextmanager
def _place(folder: Path | None, overwrite: bool) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="bdhub-demo-") as temporary:
            yield Path(temporary)
    else:
        with stage_folder(folder, overwrite=overwrite, marker=(RESULTS,)) as stage:
            yield stage


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    logging: Any = transformers.utils.logging  # untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _train_pair(
    place: Path,
    seed: int,
    held: list[Problem],
    base_steps: int,
    tuned_steps: int,
    say: train.Say,
) -> None:
    tokenizer = make_tokenizer()
    avoid = {problem.word for problem in held}
    model: Any = train.new_model(tokenizer, seed)
    known = [task for task in TASKS if task != TUNED_TASK]
    say(f"Training a base of {model.num_parameters():,} parameters on: {', '.join(known)}")
    train.train(
        model, tokenizer, known,
        steps=base_steps, rate=BASE_RATE, seed=seed, avoid=avoid, say=say,
    )  # fmt: skip
    train.save(model, tokenizer, place / "base")
    example = Problem(TUNED_TASK, "apple")
    say(f"Fine-tuning all of it on: {example.prompt}{example.answer.strip()}")
    model = train.load(place / "base")
    train.train(
        model, tokenizer, [TUNED_TASK],
        steps=tuned_steps, rate=TUNED_RATE, seed=seed + 1, avoid=avoid, say=say,
    )  # fmt: skip
    train.save(model, tokenizer, place / "tuned")


def _checkpoint_row(place: Path, name: str, held: list[Problem]) -> Row:
    folder = place / name
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Row(model=name, bytes=size, exact_match=train.exact_match(folder, held))


def _delta_row(place: Path, recipe: str, held: list[Problem], say: train.Say) -> Row:
    base, tuned = place / "base", place / "tuned"
    delta, rebuilt = place / f"delta-{recipe}", place / f"rebuilt-{recipe}"
    say(f"Compressing with {recipe}, verifying, rebuilding, loading with transformers")
    made = compress(tuned, base, delta, recipe=recipe)
    checked = verify(delta, base=base, against=tuned)
    rebuild(delta, rebuilt, base=base)
    return Row(
        model=recipe,
        bytes=made.delta_bytes,
        ratio=made.ratio,
        error=checked.error["median"] if checked.error else None,
        exact_match=train.exact_match(rebuilt, held),
    )
