"""Small transformers as ground truths: they learn, reproduce, are kept, and their rows belong to what is known of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from overtone.data.markov import MarkovMixture
from overtone.data.regression import RegressionMixture
from overtone.data.stream import ArrayStream
from overtone.metrics.known import Halves, score_probes
from overtone.organism_suites import ORGANISMS, OrganismSuite
from overtone.organisms.learning import Lessons, taught, taught_once, untrained
from overtone.organisms.organism import Organism, joined
from overtone.organisms.transformer import Shape
from overtone.seeds import generator

SHAPE = Shape(width=16, layers=2, heads=2)
MARKOV = MarkovMixture(chains=2, tokens=3, order=1, length=12)
REGRESSION = RegressionMixture(tasks=2, d_x=1, pairs=6)
FEW = Lessons(steps=3, batch=4)


@pytest.fixture
def organism() -> Organism:
    return Organism(MARKOV, untrained(MARKOV, SHAPE), layer=0, per_sequence=4)


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("law", [MARKOV, REGRESSION], ids=["markov", "regression"])
def test_its_seed_decides_it_and_nothing_else(law: MarkovMixture | RegressionMixture):
    before = torch.get_rng_state()
    one = taught(law, SHAPE, FEW)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    torch.rand(3)
    assert same(one, taught(law, SHAPE, FEW))
    assert not same(one, taught(law, SHAPE, replace(FEW, seed=1)))


def test_it_is_trained_once(tmp_path: Path):
    one = taught_once(MARKOV, SHAPE, FEW, tmp_path / "models")
    (file,) = (tmp_path / "models").iterdir()
    written = file.stat().st_mtime_ns
    two = taught_once(MARKOV, SHAPE, FEW, tmp_path / "models")
    assert same(one, two) and file.stat().st_mtime_ns == written
    assert not any(p.requires_grad for model in (one, two) for p in model.parameters())
    taught_once(MARKOV, SHAPE, replace(FEW, steps=2), tmp_path / "models")
    assert len(list((tmp_path / "models").iterdir())) == 2, "other settings are another model"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'\\"lr\\": 0.003', b'\\"lr\\": 0.004'))
    with pytest.raises(ValueError, match="holds another model than its name says; remove it"):
        taught_once(MARKOV, SHAPE, FEW, tmp_path / "models")
    file.write_bytes(whole[:-9])
    with pytest.raises(OSError, match=r"is damaged .* remove it, and it is trained again"):
        taught_once(MARKOV, SHAPE, FEW, tmp_path / "models")


def test_it_learns_the_chain():
    """Better than everyone who knows less than it can: close to one who infers the chain by Bayes' rule."""
    law = MarkovMixture(chains=1, tokens=4, order=1, length=12, sharpness=2.0)
    evidence = Organism(law, taught(law, SHAPE, Lessons(steps=150, batch=16, lr=1e-2))).evidence(256)
    assert evidence["the transformer"]["KL"] < 0.1 * evidence["unigram"]["KL"]
    assert evidence["the transformer"]["KL"] > evidence["2-gram: 1 tokens"]["KL"] == pytest.approx(0, abs=1e-9)


def test_it_learns_the_mean_task():
    law = RegressionMixture(tasks=1, d_x=1, pairs=8, spread=0.1)
    evidence = Organism(law, taught(law, SHAPE, Lessons(steps=150, batch=16, lr=1e-2)), per_sequence=7).evidence(256)
    assert evidence["the transformer"]["mean"] < 0.4 * evidence["predicts 0"]["mean"]
    assert evidence["the transformer"]["mean"] > evidence["Bayes: infers task and weights"]["mean"]


def test_nothing_is_read_from_the_future():
    model = untrained(REGRESSION, SHAPE)
    read = REGRESSION.inputs(REGRESSION.draw(5, generator(0, "test")))
    changed = read.clone()
    changed[:, 7:] += 1
    assert torch.equal(model(read)[:, :7], model(changed)[:, :7])
    assert not torch.isclose(model(read)[:, 7:], model(changed)[:, 7:]).any()
    shares = sum(model.read_from(read, lag) * (12 - lag) / 12 for lag in range(12))
    assert torch.allclose(shares, torch.ones(2, 2)), "attention sums to one over all lags"


def test_rows_belong_to_what_is_known_of_them(organism: Organism):
    """The token is in the residual stream of any decoder, as its embedding; so a probe reads it, if the rows are its rows."""
    halves = [joined(list(organism.held_out(600, seed=seed))) for seed in (0, 1)]
    known = (halves[0].known, halves[1].known)
    found = score_probes(Halves(halves[0].x, halves[1].x), known).summary()
    assert found["token"]["auroc"] > 0.999 and found["token"]["f1"] > 0.99
    assert found["chain"]["auroc"] < 0.9


def test_rows_stream_as_those_of_any_ground_truth():
    organism = Organism(REGRESSION, untrained(REGRESSION, SHAPE), layer=1, per_sequence=4)
    some = organism.drawn(33, generator(0, "test"))
    assert some.x.shape == (33, 16) and len(some.known.occurs["task"]) == len(some.known.values["w"]) == 33
    stream = organism.stream(10, seed=4)
    first, state, second = next(stream).x, stream.state_dict(), next(stream).x
    again = organism.stream(10, seed=4)
    again.load_state_dict(state)
    assert torch.equal(next(again).x, second) and not torch.equal(first, second)
    fixed = organism.stream(10, rows=50, seed=4)
    assert isinstance(fixed, ArrayStream) and fixed.x.shape == (50, 16) and fixed.layout.d == organism.width
    held_out = torch.cat([part.x for part in organism.held_out(50, seed=4, batch=20)])
    assert len(held_out) == 50 and not torch.isin(held_out[:, 0], torch.cat([fixed.x, first])[:, 0]).any()


@pytest.mark.parametrize("suite", ORGANISMS.values(), ids=lambda suite: suite.name)
def test_every_method_of_a_suite_can_be_trained_as_it_is(suite: OrganismSuite):
    assert set(suite.default_methods) <= set(suite.contestants)
    for contestant in suite.contestants.values():
        run = suite.run(contestant.make(), latents=suite.length.latents, steps=1, seed=3)
        assert (run.batch, run.seed, run.steps) == (suite.length.batch, 3, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shape(width=10, heads=4), "width=10 is not a multiple of heads=4"),
        (lambda: Lessons(steps=0), "steps=0 must be at least 1"),
        (lambda: Lessons(lr=0.0), "lr=0.0 must be above 0"),
        (lambda: Organism(MARKOV, untrained(MARKOV, SHAPE), layer=2), r"layer=2 is not in 0 … 1"),
        (lambda: Organism(MARKOV, untrained(MARKOV, SHAPE), per_sequence=99), r"per_sequence=99 is not in 1 … 12"),
    ],
)
def test_settings_are_checked(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
