import math
from dataclasses import replace

import pytest
import torch

from overtone import CentreAtMean, gba
from overtone.dictionary import Dictionary
from overtone.recipes import L1_ON_SYNTH, SUITES, Suite, synth_l1, uncentred, with_gba_centre

# The larger scales of synth have its methods, and features that take a while to be pushed apart.
QUICK = [suite for suite in SUITES.values() if suite.name not in ("synth-4k", "synth-16k")]


@pytest.mark.parametrize("suite", QUICK, ids=lambda suite: suite.name)
def test_every_method_of_a_suite_can_be_trained_as_it_is(suite: Suite):
    """Sizes that fit, defaults that exist, all comparators prepared alike, and none otherwise than `gba()`."""
    assert set(suite.default_methods) <= set(suite.contestants) and "gba" in suite.default_methods
    latents = suite.latents(suite.truth(seed=0))
    for contestant in suite.contestants.values():
        run = suite.run(contestant.make(), latents=latents, steps=1, seed=0)
        assert run.batch == suite.batch
    if suite.name != "imbalanced":
        methods = {name: contestant.make() for name, contestant in suite.contestants.items()}
        own = {"root", "row"} if suite.name != "hierarchy" else {"none"}
        assert {methods.pop(f"gba-universal{which}").parametrisation.input_norm for which in ("", "-rows")} == own
        assert len({(m.parametrisation.centre, m.parametrisation.input_norm, m.lr) for m in methods.values()}) == 1


def test_gba_centred_as_gba_is_gba(generator: torch.Generator):
    """The quantile start takes the centre that is there: it has to come first whatever the order it is added in."""

    sample = torch.nn.functional.normalize(torch.randn(500, 12, generator=generator) + 1, dim=1)
    biases = []
    own = gba(groups=4)
    bare = replace(own, rules=tuple(rule for rule in own.rules if not isinstance(rule, CentreAtMean)))
    assert with_gba_centre(own) == own and len(bare.rules) < len(own.rules)
    for method in (own, with_gba_centre(bare)):
        dictionary = Dictionary(12, 20, method.select, method.parametrisation)
        for rule in method.rules:
            rule.begin(dictionary, sample)
        biases.append((dictionary.b_dec, dictionary.b_enc))
    for one, two in zip(*biases, strict=True):
        assert torch.equal(one, two) and one.any()
    assert not any(type(rule).__name__ == "CentreAtMean" for rule in uncentred(gba()).rules)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_what_is_published_is_of_methods_that_a_suite_has(suite: Suite):
    if suite.published is not None:
        assert set(suite.published.scores) <= set(suite.contestants)
        shares = [value for own in suite.published.scores.values() for value in own.values()]
        assert all(0 <= value <= 1 for value in shares) and suite.published.source.startswith("arXiv ")


def test_all_methods_of_synth_follow_k():
    """L1's coefficient passes through those that were tried, and falls with k."""
    for coefficient, l0 in L1_ON_SYNTH.items():
        assert math.isclose(synth_l1(l0), coefficient)
    tried = [synth_l1(k) for k in range(5, 121)]
    assert tried == sorted(tried, reverse=True) and len(set(tried)) == len(tried)
    five, six = SUITES["synth"].at(5).contestants, SUITES["synth"].contestants
    same = {name for name in six if five[name].make() == six[name].make()}
    assert same == {"gba", "gba-universal", "gba-universal-rows"}, "these are told no k"
