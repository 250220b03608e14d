"""Sparse probing, perturbation and removal on data with a known answer."""

import math

import pytest
import torch

from overtone import Dictionary, Document, Parametrisation, TopK, harvest
from overtone.metrics.probing.columns import Columns, contributions
from overtone.metrics.probing.perturbation import probe_perturbation, spurious_removal
from overtone.metrics.probing.reading import directions, encode_rows, random_dictionary, read_texts
from overtone.metrics.probing.sparse import dense_probe, sparse_probe
from overtone.metrics.probing.tasks import held_out, one_against_rest, question

TEXTS, CLASSES, LATENTS, D = 600, 3, 40, 30


@pytest.fixture
def labels(generator: torch.Generator) -> list[str]:
    return ["abc"[i] for i in torch.randint(CLASSES, (TEXTS,), generator=generator)]


@pytest.fixture
def noise(generator: torch.Generator) -> torch.Tensor:
    """Latents that have nothing to do with anything."""
    return torch.rand(TEXTS, LATENTS, generator=generator) * (torch.rand(TEXTS, LATENTS, generator=generator) < 0.2)


def is_(labels: list[str], name: str) -> torch.Tensor:
    return torch.tensor([label == name for label in labels])


def test_a_latent_that_is_the_label_answers_alone(labels: list[str], noise: torch.Tensor):
    u = noise.clone()
    for place, name in enumerate("abc"):
        u[:, 7 * place] = is_(labels, name).float()
    asked = one_against_rest(labels, held_out(labels, 0.3, 0))
    found = sparse_probe(Columns.of(u), asked, (1, 2, 5))
    assert [score.accuracy for score in found[1]] == [1, 1, 1] and [score.auroc for score in found[1]] == [1, 1, 1]
    assert [score.accuracy for score in found[5]] == [1, 1, 1]
    assert [score.accuracy for score in dense_probe(u, asked)] == [1, 1, 1]


def test_labels_of_nothing_are_answered_by_chance(labels: list[str], noise: torch.Tensor):
    asked = one_against_rest(labels, held_out(labels, 0.3, 0))
    for scores in [*sparse_probe(Columns.of(noise), asked).values(), dense_probe(noise, asked)]:
        for question_, score in zip(asked, scores, strict=True):
            error = 0.5 / math.sqrt(len(question_.test))
            assert abs(score.accuracy - 0.5) < 4 * error and abs(score.auroc - 0.5) < 4 * error


def test_latents_may_be_permuted_and_one_alone_rescaled(
    labels: list[str], noise: torch.Tensor, generator: torch.Generator
):
    u = noise + torch.outer(is_(labels, "b").float(), torch.rand(LATENTS, generator=generator))
    asked = one_against_rest(labels, held_out(labels, 0.3, 0))
    order = torch.randperm(LATENTS, generator=generator)
    assert sparse_probe(Columns.of(u), asked) == sparse_probe(Columns.of(u[:, order]), asked)
    alone = Columns.of(u[:, :1]), Columns.of(1000 * u[:, :1])
    assert sparse_probe(alone[0], asked, (1,)) == sparse_probe(alone[1], asked, (1,))


def test_contributions_do_not_know_where_the_scale_is(rows: torch.Tensor):
    dictionary = Dictionary(12, 24, TopK(4), Parametrisation(tied=False, bias="trained"))
    before = encode_rows(rows, {"": dictionary}, rows_at_a_time=100)[""]
    # Encoder rows twice as long, so codes are twice as large, and decoders half as long: the same parts of every row.
    with torch.no_grad():
        dictionary.W_enc.mul_(2)
        dictionary.b_enc.mul_(2)
        dictionary.W_dec.mul_(0.5)
    after = encode_rows(rows, {"": dictionary})[""]
    torch.testing.assert_close(before.take(torch.arange(24)), after.take(torch.arange(24)))
    # They add up to the reconstruction.
    unit, lengths = directions(dictionary)
    row, latent, u = contributions(dictionary, rows, lengths)
    whole = torch.zeros_like(rows).index_add_(0, row, u[:, None] * unit[latent])
    centre = dictionary.b_dec * rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(whole + centre, dictionary.reconstruct(rows))


def test_columns_are_the_matrix(noise: torch.Tensor, generator: torch.Generator):
    columns, weights = Columns.of(noise), torch.randn(TEXTS, 2, generator=generator).double()
    some = torch.tensor([3, 1, 599])
    assert torch.equal(columns.take(some % LATENTS), noise[:, some % LATENTS])
    assert torch.equal(columns.rows(some).take(torch.arange(LATENTS)), noise[some])
    torch.testing.assert_close(columns.sums(weights), noise.double().T @ weights)
    assert torch.equal(columns.fires().take(torch.arange(LATENTS)), (noise != 0).float())


def test_questions_are_even_and_sides_apart(labels: list[str]):
    test = held_out(labels, 0.3, 0)
    for name in "abc":
        assert abs(float(test[is_(labels, name)].double().mean()) - 0.3) < 0.01
    for asked in one_against_rest(labels, test):
        assert asked.fit_yes.double().mean() == 0.5 == asked.test_yes.double().mean()
        assert not test[asked.fit].any() and test[asked.test].all()
        assert torch.equal(is_(labels, asked.name)[asked.test], asked.test_yes)
        contrast = asked.contrast(TEXTS)
        assert float(contrast.sum()) == pytest.approx(0, abs=1e-12) and float(contrast.abs().sum()) == pytest.approx(2)
    again = one_against_rest(labels, test, seed=1)[0]
    assert not torch.equal(again.fit, one_against_rest(labels, test)[0].fit)
    assert len(one_against_rest(["x", "y"] * 50, held_out(["x", "y"] * 50, 0.5, 0))) == 1


def test_taking_a_class_out_hurts_its_own_probe_alone(generator: torch.Generator):
    """Three things that are true of a text or not, each with a latent; the others of these orthogonal atoms are noise."""
    true_of = torch.rand(TEXTS, CLASSES, generator=generator) < 0.5
    test = torch.rand(TEXTS, generator=generator) < 0.3
    asked = [question(str(i), true_of[:, i], test) for i in range(CLASSES)]
    atoms = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    u = 0.05 * torch.rand(TEXTS, D, generator=generator)
    u[:, :CLASSES] = 4.0 * true_of
    found = probe_perturbation(u @ atoms, Columns.of(u), atoms, asked, (1, 500))
    assert found.clean.tolist() == [1, 1, 1]
    # Without its latent nothing tells a class from the others: the probe has one answer for all.
    assert found.ablated[1].tolist() == [[0.5 if i == j else 1.0 for j in range(3)] for i in range(3)]
    assert found.score(1) == 0.5 == found.intended(1) and found.unintended(1) == 0
    order = torch.randperm(D, generator=generator)
    moved = probe_perturbation(u @ atoms, Columns.of(u[:, order]), atoms[order], asked, (1, 500))
    assert all(torch.equal(moved.ablated[n], found.ablated[n]) for n in (1, 500))
    # One latent for all three is no latent of one of them.
    shared = torch.zeros(TEXTS, 1).index_fill_(0, true_of.any(1).nonzero().flatten(), 4.0)
    broad = probe_perturbation(u @ atoms, Columns.of(shared), atoms[:CLASSES].sum(0, keepdim=True), asked, (1,))
    assert broad.score(1) < 0.1
    none = probe_perturbation(u @ atoms, Columns.of(torch.zeros_like(u)), atoms, asked, (1, 5))
    assert none.score(1) == 0 == none.score(5), "latents that never fire have nothing to take out"


def test_ablation_is_what_decoding_without_the_latent_gives(rows: torch.Tensor):
    """A probe on ablated rows, with the error of the reconstruction left in, says what the contributions tell."""
    dictionary = Dictionary(12, 24, TopK(4), Parametrisation(tied=False, bias="trained"))
    unit, _ = directions(dictionary)
    u = encode_rows(rows, {"": dictionary})[""].take(torch.arange(24))
    codes = dictionary.encode(rows)
    z = codes.z.clone()
    z[:, [3, 5]] = 0
    ablated = rows - dictionary.decode(codes) + dictionary.decode(codes.with_z(z))
    torch.testing.assert_close(rows - u[:, [3, 5]] @ unit[[3, 5]], ablated.detach(), atol=1e-5, rtol=1e-4)


def test_what_a_spurious_cue_cost_is_regained(generator: torch.Generator):
    """The probe can go by either label; the spurious one, which two latents know, is louder. Without them it is the oracle."""
    wanted, spurious = (torch.rand(2, 1000, generator=generator) < 0.5).unbind()
    # Each dimension is standardised for itself: in any other frame the two opposite latents would not weigh the same.
    atoms = torch.eye(D)
    u = torch.zeros(1000, D)
    u[:, 0] = wanted + 0.3 * torch.randn(1000, generator=generator)
    u[:, 1], u[:, 2] = 5.0 * spurious, 5.0 * ~spurious
    groups = [f"{a} {b}" for a, b in zip(wanted.tolist(), spurious.tolist(), strict=True)]
    test = held_out(groups, 0.4, 0)
    found = spurious_removal(u @ atoms, Columns.of(u), atoms, wanted, spurious, test, counts=(2, 3))
    assert found.biased < 0.8 < 0.9 < found.oracle
    assert found.score(2) > 0.95
    assert found.without[3] == 0.5, "the third latent is the wanted one"
    order = torch.randperm(D, generator=generator)
    moved = spurious_removal(u @ atoms, Columns.of(u[:, order]), atoms[order], wanted, spurious, test, counts=(2, 3))
    assert moved == found
    blind = spurious_removal(u @ atoms, Columns.of(torch.zeros_like(u)), atoms, wanted, spurious, test, counts=(1,))
    assert blind.score(1) == 0
    clear = spurious_removal(u @ atoms, Columns.of(u), atoms, spurious, wanted, test, counts=(1,))
    assert math.isnan(clear.score(1)), "there is no gap to close where the wanted label is the louder one"


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_texts_are_pooled_over_their_first_tokens(pool):
    pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
    from tiny_models import documents, tiny

    lm, docs = tiny("bert", "[CLS] $A [SEP]", 0.5), documents()
    dictionaries = {str(k): Dictionary(16, 20 + k, TopK(k), seed=k) for k in (2, 5)}
    read = read_texts(lm, "resid.1", docs, dictionaries, context=12, batch=2, pool=pool)
    slow = (lambda x: x.mean(0)) if pool == "mean" else (lambda x: x.amax(0))
    for number, doc in enumerate(docs):
        alone = harvest(lm, "resid.1", [doc], context=12)
        x = alone.x[alone.context == 0]
        assert len(x) <= 10
        torch.testing.assert_close(read.x[number], slow(x), atol=1e-5, rtol=1e-5)
        for name, dictionary in dictionaries.items():
            u = encode_rows(x, {name: dictionary})[name].take(torch.arange(dictionary.latents))
            mine = read.u[name].take(torch.arange(dictionary.latents))[number]
            torch.testing.assert_close(mine, slow(u), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="the text 'empty' holds no token"):
        read_texts(lm, "resid.1", [*docs, Document("empty", " ")], dictionaries)


def test_random_atoms_are_as_many_as_asked(rows: torch.Tensor):
    found = random_dictionary(rows, 50, 7, seed=3)
    codes = found.encode(rows)
    assert (codes.entries.sparse().nonzero().l0() <= 7).all() and found.latents == 50
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(50))
    assert not torch.equal(found.W_dec, random_dictionary(rows, 50, 7, seed=4).W_dec)
    assert random_dictionary(rows, 5, 70).select == TopK(5)
    wide = random_dictionary(rows, 100, 7, seed=3).W_dec
    assert (found.W_dec @ wide.T).max() < 0.999, "a wider one has none of the same atoms"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda u, asked: sparse_probe(u, asked, (0,)), "k=0 must be 1 to 40"),
        (lambda u, asked: sparse_probe(u, asked, (41,)), "k=41 must be 1 to 40"),
        (
            lambda u, asked: probe_perturbation(u.take(torch.arange(40)), u, torch.eye(40), asked[:2]),
            "it needs 3 classes, not 2",
        ),
        (lambda u, asked: held_out(["a"] * 6, 0.5, 0), "'a' has 6 texts, 3 of them to test on"),
        (lambda u, asked: held_out(["a"] * 6, 1.5, 0), "test=1.5 must be a share"),
        (lambda u, asked: question("q", torch.ones(9) > 0, torch.arange(9) > 4), "has no text; give more"),
    ],
)
def test_errors_name_the_limit(make, message: str, labels: list[str], noise: torch.Tensor):
    asked = one_against_rest(labels, held_out(labels, 0.3, 0))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make(Columns.of(noise), asked)
