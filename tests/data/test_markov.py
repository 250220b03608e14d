"""Mixtures of Markov chains: stationarity, entropy, Bayes' rule, and what is known of every position."""

import math

import pytest
import torch

from overtone.data.markov import MarkovMixture, TokenSequences
from overtone.seeds import generator

LAW = MarkovMixture(chains=2, tokens=3, order=2, length=10, seed=1)
SEQUENCES = 6000


@pytest.fixture(scope="module")
def drawn() -> TokenSequences:
    return LAW.draw(SEQUENCES, generator(5, "test"))


def test_stationary_laws_stay(drawn: TokenSequences):
    pi = LAW.stationary
    assert torch.allclose(pi.sum(1), torch.ones(2, dtype=torch.float64)) and (pi > 0).all()
    after = torch.zeros_like(pi)
    for context in range(LAW.contexts):
        for token in range(LAW.tokens):
            after[:, (context * 3 + token) % 9] += pi[:, context] * LAW.kernel[:, context, token]
    assert torch.allclose(after, pi, atol=1e-12)
    # Contexts of different sequences are independent, so their shares have binomial errors – at the end as at the start.
    contexts = LAW.context(drawn.tokens)
    for place in (0, -1):
        for chain in range(2):
            found = contexts[drawn.chain == chain, place]
            share = torch.bincount(found, minlength=9) / len(found)
            assert ((share - pi[chain]).abs() < 4.5 * (pi[chain] / len(found)).sqrt()).all()


def test_entropy_is_the_mean_surprise_of_one_who_knows(drawn: TokenSequences):
    contexts = LAW.context(drawn.tokens)
    for chain in range(2):
        mine = drawn.chain == chain
        surprise = -LAW.kernel[chain][contexts[mine, 3], drawn.tokens[mine, 5]].log()
        assert abs(surprise.mean() - LAW.entropy[chain]) < 4.5 * surprise.std() / len(surprise) ** 0.5
    blind = MarkovMixture(chains=1, tokens=5, order=1, sharpness=0, length=8)
    assert float(blind.entropy[0]) == pytest.approx(math.log(5))


def test_belief_is_bayes_rule(drawn: TokenSequences):
    tokens = drawn.tokens[:4]
    belief = LAW.belief(tokens)
    for row, sequence in enumerate(tokens.tolist()):
        for place in range(len(LAW.places)):
            likelihood = []
            for chain in range(2):
                context = sequence[0] * 3 + sequence[1]
                p = float(LAW.stationary[chain, context])
                for token in sequence[2 : place + 2]:
                    p *= float(LAW.kernel[chain, context, token])
                    context = (context * 3 + token) % 9
                likelihood.append(p)
            assert float(belief[row, place, 0]) == pytest.approx(likelihood[0] / sum(likelihood))


def test_n_grams_are_conditional_shares(drawn: TokenSequences):
    tokens = drawn.tokens
    for order in range(3):
        # One place per sequence, so that counts are binomial.
        context = sum((tokens[:, 6 - lag] * 3**lag for lag in range(order)), torch.zeros(SEQUENCES, dtype=torch.int64))
        for which in range(3**order):
            nexts = tokens[context == which, 7]
            expected = LAW.n_gram(order)[which]
            share = torch.bincount(nexts, minlength=3) / len(nexts)
            assert ((share - expected).abs() < 4.5 * (expected / len(nexts)).sqrt()).all()


def test_who_knows_more_predicts_better(drawn: TokenSequences):
    # A model that predicts the unigram law at every position.
    outputs = LAW.n_gram(0)[0].log().float().expand(SEQUENCES, LAW.length, 3)
    evidence = LAW.evidence(outputs, drawn)
    kl = [evidence[name]["KL"] for name in evidence if name != "the transformer"]
    assert kl[0] == 0 and kl == sorted(kl)
    assert evidence["the transformer"]["KL"] == pytest.approx(evidence["unigram"]["KL"], rel=1e-4)
    assert evidence["Bayes: infers the chain"]["KL late"] < evidence["Bayes: infers the chain"]["KL"]


def test_what_is_known_is_of_its_place(drawn: TokenSequences):
    known = LAW.known(drawn)
    for kind, expected in (("token", drawn.tokens[:, 1:]), ("token −1", drawn.tokens[:, :-1])):
        assert torch.equal(known.occurs[kind].long().argmax(-1), expected)
    context = known.occurs["context"].long().argmax(-1)
    assert torch.equal(context, 3 * drawn.tokens[:, :-1] + drawn.tokens[:, 1:])
    assert torch.equal(known.occurs["chain"].long().argmax(-1), drawn.chain[:, None].expand_as(context))
    assert all((occurs.sum(-1) == 1).all() for occurs in known.occurs.values())
    assert all(torch.allclose(v.sum(-1), torch.ones(SEQUENCES, 9)) for v in known.values.values())
    some = known.at(torch.tensor([7, 2]), torch.tensor([0, 5]))
    assert torch.equal(some.values["belief"], known.values["belief"][[7, 2], [0, 5]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 1}, "tokens=1 must be at least 2"),
        ({"order": 8, "length": 20}, "order=8 of tokens=6 has 1679616 contexts, above 4096; lower either"),
        ({"length": 3}, "length=3 must be at least 6"),
        ({"sharpness": -1.0}, "sharpness=-1.0 is a standard deviation"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MarkovMixture(**settings)
