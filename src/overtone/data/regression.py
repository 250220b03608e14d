"""Linear regression in context, the weights from a mixture of tasks: its Bayes estimator, and ridge regression beside it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from overtone.data.sequences import Evidence, Known, SequenceLaw, at_least
from overtone.seeds import generator


class RegressionSequences(NamedTuple):
    """Sequences of pairs (x_t, y_t), and the weights that each was made with."""

    x: Float[Tensor, "sequences pairs d_x"]
    y: Float[Tensor, "sequences pairs"]
    task: Int[Tensor, " sequences"]
    weights: Float[Tensor, "sequences d_x"]


class Estimates(NamedTuple):
    """What the pairs before each one say of the weights.

    Attributes:
        belief: P(task | the pairs before).
        weights: posterior mean of the weights.
    """

    belief: Float[Tensor, "sequences pairs tasks"]
    weights: Float[Tensor, "sequences pairs d_x"]


@dataclass(frozen=True)
class RegressionMixture(SequenceLaw[RegressionSequences]):
    """y = wᵀx + noise, one w per sequence: w = μ_g + spread · N(0, I) with g one of a few tasks, equally likely; x ~ N(0, I).

    A model reads x_1, y_1, x_2, y_2, … and predicts y_t where it reads x_t (arXiv 2208.01066).

    Args:
        tasks: number of tasks G; 1: one Gaussian law of weights, centred at μ_1.
        d_x: width of x.
        pairs: of a sequence.
        spread: τ, standard deviation of the weights around their task's mean μ_g, per coordinate; μ_g are unit vectors.
        noise: σ, standard deviation of the noise of y.
        seed: seed of the tasks.
    """

    tasks: int = 4
    d_x: int = 3
    pairs: int = 12
    spread: float = 0.3
    noise: float = 0.25
    seed: int = 0

    def __post_init__(self):
        at_least(self, tasks=1, d_x=1, pairs=2)
        for name in ("spread", "noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} is a standard deviation and must be above 0")

    @property
    def channels(self) -> int:
        """x and y side by side; where one is read, the other is 0."""
        return self.d_x + 1

    @property
    def outputs(self) -> int:
        """One: y."""
        return 1

    @property
    def positions(self) -> int:
        """Two per pair."""
        return 2 * self.pairs

    @property
    def places(self) -> range:
        """Positions at which an x is read that has a pair before it."""
        return range(2, 2 * self.pairs, 2)

    @cached_property
    def means(self) -> Float[Tensor, "tasks d_x"]:
        """μ_g, unit rows."""
        draws = generator(self.seed, "regression tasks")
        return normalize(torch.randn(self.tasks, self.d_x, generator=draws, dtype=torch.float64), dim=1)

    def draw(self, sequences: int, generator: torch.Generator) -> RegressionSequences:
        """Fresh sequences."""
        task = torch.randint(self.tasks, (sequences,), generator=generator)
        shape = (sequences, self.pairs, self.d_x)
        weights = self.means[task].float() + self.spread * torch.randn(sequences, self.d_x, generator=generator)
        x, noise = torch.randn(shape, generator=generator), torch.randn(shape[:2], generator=generator)
        return RegressionSequences(x, (x @ weights[:, :, None]).squeeze(-1) + self.noise * noise, task, weights)

    def inputs(self, drawn: RegressionSequences) -> Float[Tensor, "sequences positions channels"]:
        """x_t, 0 at even positions and 0, y_t at odd ones."""
        read = drawn.x.new_zeros(*drawn.y.shape, 2, self.channels)
        read[:, :, 0, :-1] = drawn.x
        read[:, :, 1, -1] = drawn.y
        return read.flatten(1, 2)

    def loss(
        self, outputs: Float[Tensor, "sequences positions outputs"], drawn: RegressionSequences
    ) -> Float[Tensor, ""]:
        """Mean squared error of y."""
        return (outputs[:, ::2, 0] - drawn.y).square().mean()

    def bayes(self, drawn: RegressionSequences) -> Estimates:
        """The best estimates of one who knows the law but neither task nor weights (maths.md eq. O5–O7)."""
        return self._posterior(drawn, self.means, self.spread**2)

    def ridge(self, drawn: RegressionSequences) -> Estimates:
        """Ridge regression at its best λ: the posterior mean where all that is known of weights is their mean square."""
        mean_square = float(self.means.square().mean()) + self.spread**2
        return self._posterior(drawn, torch.zeros_like(self.means[:1]), mean_square)

    def told(self, drawn: RegressionSequences) -> Estimates:
        """As `bayes`, of one who is told the task."""
        return self._posterior(drawn, self.means[drawn.task][:, None], self.spread**2)

    def _posterior(
        self, drawn: RegressionSequences, means: Float[Tensor, "*sequences tasks d_x"], variance: float
    ) -> Estimates:
        """Recursive least squares under each task's prior N(mean, variance · I), and Bayes' rule over tasks."""
        x, y = drawn.x.double(), drawn.y.double()
        sequences, _, d = x.shape
        mean = means.expand(sequences, *means.shape[-2:])
        covariance = variance * torch.eye(d, dtype=torch.float64).expand(sequences, d, d)
        log = mean.new_zeros(mean.shape[:2])
        beliefs, weights = [], []
        for t in range(self.pairs):
            beliefs.append(log.softmax(-1))
            weights.append((beliefs[-1][:, :, None] * mean).sum(1))
            known = (covariance @ x[:, t, :, None]).squeeze(-1)
            uncertain = self.noise**2 + (known * x[:, t]).sum(-1)
            surprise = y[:, t, None] - (mean * x[:, t, None]).sum(-1)
            log = log - surprise.square() / (2 * uncertain[:, None])
            mean = mean + surprise[:, :, None] * (known / uncertain[:, None])[:, None]
            covariance = covariance - known[:, :, None] * known[:, None] / uncertain[:, None, None]
        return Estimates(torch.stack(beliefs, dim=1), torch.stack(weights, dim=1))

    def known(self, drawn: RegressionSequences) -> Known:
        """The task; what is read, the true weights and wᵀx, and what the pairs before say of all of them."""
        bayes, ridge = self.bayes(drawn), self.ridge(drawn)
        values = {
            "x": drawn.x,
            "w": drawn.weights[:, None].expand_as(drawn.x),
            "ridge ŵ": ridge.weights,
            "Bayes ŵ": bayes.weights,
            "wᵀx": predictions(drawn, drawn.weights[:, None])[..., None],
            "Bayes ŵᵀx": predictions(drawn, bayes.weights)[..., None],
        }
        occurs = {}
        if self.tasks > 1:
            values["belief"] = bayes.belief
            occurs["task"] = one_hot(drawn.task, self.tasks).bool()[:, None].expand(-1, self.pairs - 1, -1)
        return Known(occurs, {kind: (v if v.shape[1] < self.pairs else v[:, 1:]).float() for kind, v in values.items()})

    def evidence(self, outputs: Float[Tensor, "sequences positions outputs"], drawn: RegressionSequences) -> Evidence:
        """Mean squared error of y after some numbers of pairs, the mean over all, and the mean square off `bayes`."""
        best = predictions(drawn, self.bayes(drawn).weights)
        predictors = {
            "knows the weights": predictions(drawn, drawn.weights[:, None]),
            "Bayes, told the task": predictions(drawn, self.told(drawn).weights),
            "Bayes: infers task and weights": best,
            "the transformer": outputs[:, ::2, 0].double(),
            "ridge regression": predictions(drawn, self.ridge(drawn).weights),
            "predicts 0": torch.zeros_like(best),
        }
        seen = [t for t in (0, 1, 2, 4, 8, 16, 32) if t < self.pairs - 1] + [self.pairs - 1]
        return {name: self._measured(drawn, predicted, best, seen) for name, predicted in predictors.items()}

    def _measured(
        self,
        drawn: RegressionSequences,
        predicted: Float[Tensor, "sequences pairs"],
        best: Float[Tensor, "sequences pairs"],
        seen: list[int],
    ) -> dict[str, float]:
        error = (predicted - drawn.y).square().mean(0)
        measured = {f"{t} pairs": float(error[t]) for t in seen}
        return measured | {"mean": float(error.mean()), "off Bayes": float((predicted - best).square().mean())}


def predictions(
    drawn: RegressionSequences, weights: Float[Tensor, "sequences #pairs d_x"]
) -> Float[Tensor, "sequences pairs"]:
    """wᵀx_t of weights that may differ from pair to pair, float64."""
    return (drawn.x.double() * weights.double()).sum(-1)
