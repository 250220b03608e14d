"""The end-to-end loss: what the model loses when it goes on from the reconstructions. A frozen value."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from overtone.data.passages import Passage
from overtone.data.stream import Batch
from overtone.dictionary import Codes, Dictionary
from overtone.losses import LossTerm, check_coefficient


@dataclass(frozen=True)
class EndToEnd:
    """coefficient · what the model loses with the reconstructions in place of its activations (maths.md eq. E1–E2).

    "kl": the divergence KL(clean ‖ spliced) of its next-token predictions, 0 where nothing is lost (Braun et al.,
    arXiv 2405.12241); "ce": the cross entropy of the text itself. Nats per token, mean over the batch. Every reconstructed site
    is replaced: a transcoder's target, all sites of a crosscoder. The gradient runs through the rest of the model, whose weights
    stay as they are. Batches have to know their text: those of a `ContextStream` do.
    """

    coefficient: float = 1.0
    measure: Literal["kl", "ce"] = "kl"

    def __post_init__(self):
        check_coefficient(self.coefficient)
        if self.measure not in ("kl", "ce"):
            raise ValueError(f"measure={self.measure!r} is neither 'kl' nor 'ce'")

    def of_batch(self, batch: Batch) -> LossTerm:
        """The term on a batch that knows its text."""
        if batch.passage is None:
            raise ValueError(
                "EndToEnd asks the model, and these rows do not know their text; train on a ContextStream, which reads the model "
                "context by context"
            )
        return _OnPassage(self, batch.passage)

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Never a loss by itself."""
        raise ValueError("EndToEnd needs the text that the rows are of; call EndToEnd(…).of_batch(batch) first")


@dataclass(frozen=True)
class _OnPassage:
    """The term where the text is known."""

    term: EndToEnd
    passage: Passage

    def __call__(self, dictionary: Dictionary, codes: Codes, target: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """Scalar loss."""
        rows = dictionary.layout.split(dictionary.decode(codes))
        lost = self.passage.divergence if self.term.measure == "kl" else self.passage.cross_entropy
        return self.term.coefficient * lost(rows).to(target)
