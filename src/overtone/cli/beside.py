"""A report's dictionaries beside each other: which latent of one stands for which of another, and its codes in its windows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from overtone.cli.in_text import Shown, rows_bar
from overtone.dictionary import Dictionary
from overtone.interpret.alongside import Alongside
from overtone.interpret.examples import watch_codes
from overtone.interpret.neighbours import FiredTogether
from overtone.metrics.matching import best_match
from overtone.report.page import Counterparts, LatentsView, Likeness
from overtone.selection import AbsTopK


class Seen(NamedTuple):
    """A dictionary that has been seen in its text.

    Attributes:
        name: how the page calls it.
        dictionary: it.
        text: its text.
        view: of its latents.
        together: which of them fired together.
        metrics: what was measured of it.
    """

    name: str
    dictionary: Dictionary
    text: Shown
    view: LatentsView
    together: FiredTogether
    metrics: Mapping[str, Any]

    @property
    def atoms(self) -> Tensor:
        """What is near by direction."""
        return self.dictionary.W_dec.detach().float()

    @property
    def signed(self) -> bool:
        """Whether codes have one sign, so that directions have to agree."""
        return not isinstance(self.dictionary.select, AbsTopK)

    def shares_text(self, other: "Seen") -> bool:
        """Whether the other was seen on the same rows of a text."""
        return self.text.key == other.text.key


def with_counterparts(seen: Sequence[Seen]) -> list[LatentsView]:
    """The views of all, each with its counterparts in the others and their codes in its windows: one more pass over the text."""
    alike = {(i, j): _likenesses(a, b) for i, a in enumerate(seen) for j, b in enumerate(seen) if i != j}
    for j, other in enumerate(seen):
        watched = {
            (i, kind): Alongside(seen[i].view.windows, _wanted(kind, found))
            for (i, k), found in alike.items()
            if k == j and seen[i].shares_text(other)
            for kind in found
        }
        if watched:
            with rows_bar(f"Reading with {other.name} where the others fire") as progress:
                watch_codes(other.dictionary, other.text.rows(), [w.add for w in watched.values()], progress)
        for (i, kind), watch in watched.items():
            alike[i, j][kind] = alike[i, j][kind]._replace(codes=watch.codes)
    return [
        one.view._replace(
            counterparts=[Counterparts(j, **alike[i, j]) for j in range(len(seen)) if j != i and alike[i, j]]
        )
        for i, one in enumerate(seen)
    ]


def _likenesses(mine: Seen, other: Seen) -> dict[str, Likeness]:
    """What stands for each latent in another dictionary: by_direction where atoms can be compared, by_firing where rows can."""
    atoms, others = mine.atoms, other.atoms
    signed = mine.signed and other.signed
    nothing = torch.full((len(atoms),), torch.nan)
    found: dict[str, Likeness] = {}
    comparable, together = atoms.shape[1] == others.shape[1], mine.shares_text(other)
    partner = torch.zeros(len(atoms), dtype=torch.long)
    if comparable:
        nearest = best_match(atoms, others, signed=signed)
        partner = nearest.nearest
        found["by_direction"] = Likeness(partner, nearest.cosine, nothing)
    if together:
        fired = mine.together.alike(other.together, partner)
        if comparable:
            found["by_direction"] = found["by_direction"]._replace(phi=fired.of_partner)
        cosine = cosine_similarity(atoms, others[fired.latent]) if comparable else nothing
        found["by_firing"] = Likeness(fired.latent, cosine if signed else cosine.abs(), fired.phi)
    return found


def _wanted(kind: str, found: Mapping[str, Likeness]) -> Tensor:
    """Whose codes to look for; −1 where they are looked for already."""
    latent = found[kind].latent
    return (
        latent
        if kind == "by_direction" or "by_direction" not in found
        else torch.where(latent == found["by_direction"].latent, -1, latent)
    )
