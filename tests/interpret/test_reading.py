"""A text of anyone's is read as the rows were that dictionaries are trained on."""

import pytest
import torch

import overtone
from overtone import Document
from overtone.data.filling import HarvestPlan
from overtone.interpret.reading import Reader
from overtone.layout import Block
from tiny_models import D, tiny

transformers = pytest.importorskip("transformers")
TEXT = "one two three four five six seven eight nine ten " * 7


@pytest.fixture(scope="module")
def lm() -> overtone.LanguageModel:
    return tiny("bert", "[CLS] $A [SEP]", initializer_range=0.3)


def dictionary(lm: overtone.LanguageModel, site: str, seed: int) -> overtone.Dictionary:
    x = overtone.harvest(lm, site, [Document("d", TEXT)], context=24).x
    return overtone.fit(x, overtone.topk(3), latents=32, steps=20, batch=16, seed=seed)


def test_codes_are_those_of_the_models_own_rows(lm: overtone.LanguageModel):
    """Of every site, over more than one context, without the special tokens."""
    sites = ("resid.1", "mlp_out.0")
    ones = [dictionary(lm, site, seed) for seed, site in enumerate(sites)]
    plan = HarvestPlan("tiny", sites, ("-",), context=24, batch=2)
    reader = Reader(lm, plan, [(one, [Block(site, D)]) for one, site in zip(ones, sites, strict=True)])
    reading = reader.read(TEXT)
    assert "".join(reading.words).split() == TEXT.split()
    for one, site, codes in zip(ones, sites, reading.codes, strict=True):
        rows = overtone.harvest(lm, site, [Document("d", TEXT)], context=24).x
        torch.testing.assert_close(codes.dense(), one.encode(rows).z, atol=1e-5, rtol=1e-4)
        assert codes.rows_total == len(reading.words) == 70


def test_texts_that_cannot_be_read(lm: overtone.LanguageModel):
    reader = Reader(lm, HarvestPlan("tiny", ("resid.1",), ("-",), context=24), [], most=20)
    with pytest.raises(ValueError, match="21 characters, the limit is 20"):
        reader.read("x" * 21)
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="no token"):
            reader.read(empty)
