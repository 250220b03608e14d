"""Mixtures of Markov chains of any order: their entropy, and every predictor of the next token from optimal to blind."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from overtone.data.sequences import Evidence, Known, SequenceLaw, at_least
from overtone.seeds import generator

MOST_CONTEXTS = 4096


class TokenSequences(NamedTuple):
    """Sequences of tokens and the chain that each is from."""

    tokens: Int[Tensor, "sequences positions"]
    chain: Int[Tensor, " sequences"]


@dataclass(frozen=True)
class MarkovMixture(SequenceLaw[TokenSequences]):
    """Each sequence is from one of a few chains, equally likely, in which the next token depends on the last `order` ones.

    A chain starts in its stationary law, so that all positions are alike. Which chain it is, a reader has to infer.

    Args:
        chains: number of chains C.
        tokens: number of tokens V.
        order: n, on how many tokens the next depends; V^n contexts.
        sharpness: standard deviation of the logits, which are Gaussian; 0: all tokens equally likely.
        length: tokens of a sequence.
        seed: seed of the chains.
    """

    chains: int = 3
    tokens: int = 6
    order: int = 2
    sharpness: float = 1.0
    length: int = 32
    seed: int = 0

    def __post_init__(self):
        at_least(self, chains=1, tokens=2, order=1, length=self.order + 4)
        if self.sharpness < 0:
            raise ValueError(f"sharpness={self.sharpness} is a standard deviation and must be at least 0")
        if self.contexts > MOST_CONTEXTS:
            raise ValueError(
                f"order={self.order} of tokens={self.tokens} has {self.contexts} contexts, above {MOST_CONTEXTS}; lower either"
            )

    @property
    def contexts(self) -> int:
        """V^n."""
        return self.tokens**self.order

    @property
    def channels(self) -> int:
        """V: tokens are read one-hot."""
        return self.tokens

    @property
    def outputs(self) -> int:
        """V logits."""
        return self.tokens

    @property
    def positions(self) -> int:
        """Tokens of a sequence."""
        return self.length

    @property
    def places(self) -> range:
        """Positions that have a whole context."""
        return range(self.order - 1, self.length)

    @cached_property
    def kernel(self) -> Float[Tensor, "chains contexts tokens"]:
        """P_c(next token | context), positive; a context's number has its last token as the last digit, in base V."""
        shape = (self.chains, self.contexts, self.tokens)
        drawn = torch.randn(shape, generator=generator(self.seed, "Markov chains"), dtype=torch.float64)
        return (self.sharpness * drawn).softmax(-1)

    @cached_property
    def stationary(self) -> Float[Tensor, "chains contexts"]:
        """π_c, the share of positions that have a context: the solution of π = πT, Σ π = 1 (maths.md eq. O1)."""
        step = self.kernel.new_zeros(self.chains, self.contexts, self.contexts)
        now = torch.arange(self.contexts)
        for token in range(self.tokens):
            step[:, now, self._after(now, token)] += self.kernel[:, :, token]
        # (I − Tᵀ + 11ᵀ) π = 1: of full rank, since every context is reached from every other.
        system = torch.eye(self.contexts, dtype=torch.float64) - step.mT + 1
        return torch.linalg.solve(system, step.new_ones(self.chains, self.contexts, 1)).squeeze(-1)

    @property
    def entropy(self) -> Float[Tensor, " chains"]:
        """Entropy rate of every chain in nats (maths.md eq. O2): the least loss of one who knows the chain."""
        return (self.stationary * entropy(self.kernel)).sum(1)

    def _after(self, context: Int[Tensor, "*places"], token: Int[Tensor, "*places"] | int) -> Int[Tensor, "*places"]:
        return (context * self.tokens + token) % self.contexts

    def draw(self, sequences: int, generator: torch.Generator) -> TokenSequences:
        """Fresh sequences."""
        chain = torch.randint(self.chains, (sequences,), generator=generator)
        context = _chosen(self.stationary[chain], generator)
        drawn = [context // self.tokens**lag % self.tokens for lag in reversed(range(self.order))]
        while len(drawn) < self.length:
            drawn.append(_chosen(self.kernel[chain, context], generator))
            context = self._after(context, drawn[-1])
        return TokenSequences(torch.stack(drawn, dim=1), chain)

    def inputs(self, drawn: TokenSequences) -> Float[Tensor, "sequences positions channels"]:
        """Tokens, one-hot."""
        return one_hot(drawn.tokens, self.tokens).float()

    def loss(self, outputs: Float[Tensor, "sequences positions outputs"], drawn: TokenSequences) -> Float[Tensor, ""]:
        """Mean cross entropy of the next token in nats."""
        return cross_entropy(outputs[:, :-1].flatten(0, 1), drawn.tokens[:, 1:].flatten())

    def context(self, tokens: Int[Tensor, "sequences positions"]) -> Int[Tensor, "sequences places"]:
        """The number of the context at each of `places`."""
        windows = tokens.unfold(1, self.order, 1)
        return (windows * self.tokens ** torch.arange(self.order - 1, -1, -1)).sum(-1)

    def belief(self, tokens: Int[Tensor, "sequences positions"]) -> Float[Tensor, "sequences places chains"]:
        """P(chain | the tokens so far) at each of `places`, by Bayes' rule (maths.md eq. O3)."""
        context = self.context(tokens)
        log = self.stationary.log()[:, context[:, :1]]
        steps = self.kernel.log()[:, context[:, :-1], tokens[:, self.order :]]
        return torch.cat([log, steps], dim=2).cumsum(2).movedim(0, -1).softmax(-1)

    def n_gram(self, order: int) -> Float[Tensor, "few_contexts tokens"]:
        """P(next token | the last `order` ones) over all chains together (maths.md eq. O4); order 0: the unigram."""
        together = (self.stationary[:, :, None] * self.kernel).mean(0)
        pooled = together.unflatten(0, (-1, self.tokens**order)).sum(0)
        return pooled / pooled.sum(1, keepdim=True)

    def expected(self, drawn: TokenSequences) -> Float[Tensor, "sequences places tokens"]:
        """What the best predictor without knowledge of the chain expects to come next, at each of `places`."""
        return torch.einsum("spc,cspv->spv", self.belief(drawn.tokens), self.kernel[:, self.context(drawn.tokens)])

    def known(self, drawn: TokenSequences) -> Known:
        """Tokens up to lag n − 1, the context, the chain; belief over chains, and the expectation of the next token."""
        context = self.context(drawn.tokens)
        occurs = {
            "token" if lag == 0 else f"token −{lag}": _hot(context // self.tokens**lag % self.tokens, self.tokens)
            for lag in range(self.order)
        }
        if self.order > 1:
            occurs["context"] = _hot(context, self.contexts)
        values = {"next": self.expected(drawn).float()}
        if self.chains > 1:
            occurs["chain"] = _hot(drawn.chain[:, None].expand_as(context), self.chains)
            values = {"belief": self.belief(drawn.tokens).float()} | values
        return Known(occurs, values)

    def evidence(self, outputs: Float[Tensor, "sequences positions outputs"], drawn: TokenSequences) -> Evidence:
        """Cross entropy with the true law of the next token and KL from it, in nats; the latter in the last quarter, too."""
        context = self.context(drawn.tokens)
        truth = self.kernel[drawn.chain[:, None], context]
        predictors = {
            "knows chain and context": truth,
            "Bayes: infers the chain": self.expected(drawn),
            "the transformer": outputs[:, self.places.start :].double().softmax(-1),
        }
        for order in range(self.order, -1, -1):
            name = f"{order + 1}-gram: {order} tokens" if order else "unigram"
            predictors[name] = self.n_gram(order)[context % self.tokens**order]
        return {name: self._measured(truth, predicted) for name, predicted in predictors.items()}

    def _measured(
        self, truth: Float[Tensor, "sequences places tokens"], predicted: Float[Tensor, "sequences places tokens"]
    ) -> dict[str, float]:
        loss = -(truth * predicted.log()).sum(-1)
        kl = loss - entropy(truth)
        late = 3 * len(self.places) // 4
        return {"loss": float(loss.mean()), "KL": float(kl.mean()), "KL late": float(kl[:, late:].mean())}


def entropy(p: Float[Tensor, "*places tokens"]) -> Float[Tensor, "*places"]:
    """−Σ p log p in nats; 0 log 0 is 0."""
    return torch.special.entr(p).sum(-1)


def _chosen(p: Float[Tensor, "sequences choices"], generator: torch.Generator) -> Int[Tensor, " sequences"]:
    return torch.multinomial(p, 1, generator=generator).squeeze(1)


def _hot(which: Int[Tensor, "*places"], number: int) -> Tensor:
    return one_hot(which, number).bool()
