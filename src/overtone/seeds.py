"""Seeds → generators. One seed serves a whole run; every purpose draws from a stream of its own."""

import hashlib

import torch


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A generator for one purpose (and one step, epoch or batch of it).

    Purposes must differ wherever draws must be independent: atoms and true features drawn with the same seed from the same
    distribution would otherwise *be* the same numbers, and a dictionary would start at the truth.
    """
    digest = hashlib.sha256(f"{purpose}:{seed}:{index}".encode()).digest()
    # torch's CPU generator (mt19937) keeps the lower 32 bits of a seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
