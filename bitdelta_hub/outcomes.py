"""What can come of a pair of checkpoints: stable codes, their names and their severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Outcome(NamedTuple):
    """Name, severity (`note`, `warning` or `error`) and meaning of one code."""

    name: str
    severity: str
    meaning: str


# A code's meaning never changes. Notes and warnings let the work go on, errors stop it.
OUTCOMES: dict[str, Outcome] = {
    "BDH001": Outcome("tied-head", "note", "tied embeddings, and one side writes the head anyway"),
    "BDH002": Outcome("resized-vocabulary", "note", "vocabulary resized: common rows are paired"),
    "BDH003": Outcome("other-layout", "note", "other prefixes, or experts laid out otherwise"),
    "BDH004": Outcome("extra-in-base", "note", "the base has tensors that the fine-tune lacks"),
    "BDH005": Outcome("other-dtype", "warning", "base and fine-tune differ in dtype"),
    "BDH006": Outcome("quantised-base", "warning", "the base is quantised, the fine-tune is not"),
    "BDH007": Outcome("almost-unchanged", "warning", "almost no weight changed: exact is smaller"),
    "BDH008": Outcome("low-rank", "warning", "the difference is low-rank: a LoRA would be smaller"),
    "BDH009": Outcome("high-error", "warning", "one bit keeps this fine-tune badly"),
    "BDH101": Outcome("no-access", "error", "base or fine-tune is gated, private or absent"),
    "BDH102": Outcome("adapter", "error", "the fine-tune is an adapter, which is small already"),
    "BDH103": Outcome("quantised-tuned", "error", "the fine-tune was saved quantised"),
    "BDH104": Outcome("wrong-base", "error", "the fine-tune does not come from this base"),
    "BDH105": Outcome("other-architecture", "error", "architecture or shapes differ"),
    "BDH106": Outcome("merge", "note", "a merge of several models, taken against one of them"),
    "BDH107": Outcome("pickle", "error", "weights in a pickle only"),
    "BDH108": Outcome("no-room", "error", "not enough disk or memory"),
    "BDH109": Outcome("custom-code", "note", "the model needs code of its own, which is never run"),
    "BDH110": Outcome("unknown-storage", "error", "quantised storage that is not understood"),
    "BDH111": Outcome("pipeline", "error", "a pipeline of several models"),
}


@dataclass(frozen=True, slots=True)
class Note:
    """A note or warning about one pair: `code` of OUTCOMES and what was found, in one line."""

    code: str
    message: str

    @property
    def name(self) -> str:
        return OUTCOMES[self.code].name

    @property
    def severity(self) -> str:
        return OUTCOMES[self.code].severity
