"""Absorption and splitting on data with a known answer; words as tokenizers have them."""

import pytest
import torch
from scipy.optimize import minimize

from overtone import harvest
from overtone.metrics.probing.columns import Columns
from overtone.metrics.probing.first_letter import Absorption, Truth, absorbed, first_letter_absorption
from overtone.metrics.probing.lasso import lasso_logistic
from overtone.metrics.probing.letters import Vocabulary, words_in_template, words_in_text
from overtone.metrics.probing.splitting import splitting

ROWS, D = 3000, 24


def planted(share: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, u, atoms, occurs): a feature with a latent, of which a second latent takes over `share` of the rows.

    The second latent stands for something of its own besides, and brings the feature along.
    """
    frame = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    occurs = torch.rand(ROWS, generator=generator) < 0.3
    taken = occurs & (torch.rand(ROWS, generator=generator) < share)
    atoms = frame.clone()
    atoms[1] = (frame[0] + frame[1]) / 2**0.5
    u = 0.02 * torch.rand(ROWS, D, generator=generator)
    u[:, 0] = 3.0 * (occurs & ~taken)
    u[:, 1] = 3.0 * 2**0.5 * taken
    return u @ atoms, u, atoms, occurs


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_planted_share_is_found(share: float, generator: torch.Generator):
    x, u, atoms, occurs = planted(share, generator)
    test = torch.rand(ROWS, generator=generator) < 0.4
    truth = Truth.of(x, occurs[:, None], test)
    assert float(truth.f1) == 1
    found = first_letter_absorption(truth, Columns.of(u), atoms)
    taken = float((u[test & occurs, 1] > 0).double().mean())
    assert abs(taken - share) < 0.05
    if share:
        # A second latent that a regression may use would count as splitting, not as absorption: main latents stop at one.
        assert found.main[0][0] == 0
        alone = absorbed(
            Columns.of(u[test & occurs]),
            torch.tensor([0]),
            truth.direction[0] @ atoms.double().T,
            truth.projection[test & occurs, 0],
        )
        assert float(alone[0].double().mean()) == pytest.approx(taken)
        assert float(alone[1].mean()) == pytest.approx(taken)
        assert found.latents == 2 and float(found.full) == 0
    else:
        assert found.latents == 1 and float(found.full) == 0 and float(found.share) == 0 and float(found.f1) == 1
    order = torch.randperm(D, generator=generator)
    moved = first_letter_absorption(truth, Columns.of(u[:, order]), atoms[order])
    assert order[torch.tensor(moved.main[0])].tolist() == found.main[0]
    assert moved.summary() == pytest.approx(found.summary())


def test_many_small_absorbers_are_no_split(generator: torch.Generator):
    """Twenty latents that each take over one row in a hundred raise no F1 by 0.03: all of what they take is absorbed."""
    frame = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    occurs = torch.rand(ROWS, generator=generator) < 0.3
    by = torch.randint(100, (ROWS,), generator=generator)
    u = torch.zeros(ROWS, D)
    u[:, 0] = 3.0 * (occurs & (by >= 20))
    atoms = frame.clone()
    for i in range(1, 21):
        atoms[i] = (frame[0] + frame[i]) / 2**0.5
        u[:, i] = 3.0 * 2**0.5 * (occurs & (by == i - 1))
    test = torch.rand(ROWS, generator=generator) < 0.4
    found = first_letter_absorption(Truth.of(u @ atoms, occurs[:, None], test), Columns.of(u), atoms)
    taken = float((by[test & occurs] < 20).double().mean())
    assert found.latents == 1 and found.main == [[0]]
    assert float(found.full) == pytest.approx(taken) and float(found.share) == pytest.approx(taken)


def test_the_share_of_a_row_is_saebenchs():
    """Main latents bring 1 of a projection of 4, three of four others 0.8 each: 2.4 of 3.4 are absorbed."""
    u = torch.tensor([[1.0, 0.8, 0.8, 0.8, 0.5]])
    full, share = absorbed(Columns.of(u), torch.tensor([0]), torch.ones(5).double(), torch.tensor([4.0]).double())
    assert not full[0] and float(share[0]) == pytest.approx(2.4 / 3.4)
    for projection, expected in ((0.9, 0.0), (7.0, 0.0), (2.0, 0.5), (-1.0, 0.0)):
        _, share = absorbed(
            Columns.of(u), torch.tensor([0]), torch.ones(5).double(), torch.tensor([projection]).double()
        )
        assert float(share[0]) == pytest.approx(expected), projection
    u[0, 0] = 0
    full, share = absorbed(Columns.of(u), torch.tensor([0]), torch.ones(5).double(), torch.tensor([2.0]).double())
    assert full[0] and share[0] == 1
    # A latent that is not aligned with the probe absorbs nothing, however large its share.
    full, share = absorbed(
        Columns.of(u), torch.tensor([0]), torch.full((5,), 0.02).double(), torch.tensor([0.01]).double()
    )
    assert not full[0] and share[0] == 0


def test_rare_features_have_no_score(generator: torch.Generator):
    x, u, atoms, occurs = planted(0.0, generator)
    rare = torch.stack([occurs, torch.arange(ROWS) < 9], dim=1)
    found = first_letter_absorption(Truth.of(x, rare, torch.arange(ROWS) % 2 == 0), Columns.of(u), atoms)
    assert found.full.isnan().tolist() == [False, True] and found.summary()["features"] == 1 and found.main[1] == []
    assert isinstance(found, Absorption)


def test_the_lasso_is_at_its_minimum(generator: torch.Generator):
    """Its objective is as low as an optimiser of positive and negative parts gets it; columns may be rescaled."""
    u = torch.rand(200, 6, generator=generator).double() * (torch.rand(200, 6, generator=generator) < 0.4)
    occurs = (u[:, 0] + u[:, 1] > 0.5) ^ (torch.rand(200, generator=generator) < 0.1)
    found = lasso_logistic(Columns.of(u), occurs[:, None], l1=0.02, steps=2000).squeeze(1)
    rescaled = lasso_logistic(Columns.of(u * torch.arange(1, 7)), occurs[:, None], l1=0.02, steps=2000).squeeze(1)
    torch.testing.assert_close(found, rescaled, atol=1e-6, rtol=1e-6)
    z = (u / u.std(0, correction=0)).numpy()

    def objective(parts):
        said = z @ (parts[:6] - parts[6:12]) + parts[12]
        of_each = torch.nn.functional.binary_cross_entropy_with_logits(
            torch.from_numpy(said), occurs.double(), reduction="none"
        )
        return float((of_each[occurs].mean() + of_each[~occurs].mean()) / 2) + 0.02 * parts[:12].sum()

    best = minimize(objective, [0.1] * 12 + [0.0], bounds=[(0, None)] * 12 + [(None, None)])
    torch.testing.assert_close(found, torch.from_numpy(best.x[:6] - best.x[6:12]), atol=2e-3, rtol=0)
    assert (found[[0, 1]] > 0.1).all()


def test_a_dictionary_has_itself_as_its_only_children(rows: torch.Tensor, generator: torch.Generator):
    atoms = torch.randn(9, 12, generator=generator)
    u = torch.rand(600, 9, generator=generator) * (torch.rand(600, 9, generator=generator) < 0.2)
    same = splitting((atoms, Columns.of(u)), (atoms, Columns.of(u)))
    assert same.parent.tolist() == list(range(9)) and (same.within == 1).all() and (same.kept == 1).all()
    # Every latent split in two halves of its rows, in any order, and one that never fires.
    first = torch.rand(600, 1, generator=generator) < 0.5
    order = torch.randperm(19, generator=generator)
    halves = torch.cat([u * first, u * ~first, torch.zeros(600, 1)], dim=1)[:, order]
    wide = torch.cat([atoms + 0.01, atoms - 0.01, atoms[:1]])[order]
    found = splitting((atoms, Columns.of(u)), (wide, Columns.of(halves)))
    assert found.children.tolist() == [2] * 9 == found.kept.tolist() and found.summary()["several"] == 1
    assert float(found.by_chance.mean()) == pytest.approx(float((u > 0).double().mean()))
    # Within: of latents that fire on their own it is chance.
    other = torch.rand(600, 9, generator=generator) * (torch.rand(600, 9, generator=generator) < 0.2)
    apart = splitting((atoms, Columns.of(u)), (atoms, Columns.of(other)))
    assert abs(float(apart.within.mean()) - 0.2) < 0.05 and apart.summary()["none"] == 1
    with pytest.raises(ValueError, match="no latent fires in 10"):
        splitting((atoms, Columns.of(u)), (atoms, Columns.of(u * 0)))
    with pytest.raises(ValueError, match="600 and 599 rows"):
        splitting((atoms, Columns.of(u)), (atoms, Columns.of(u[1:])))


class Tokens:
    """The part of a tokenizer that spells its tokens."""

    def __init__(self, *tokens: str):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[i] for i in ids]


@pytest.mark.parametrize(
    ("tokens", "words", "goes_on"),
    [
        (("Ġthe", "the", "ĠA", "Ġ12", "ing", ".", "ĠÃ©t"), ["the", "", "", "", "", "", ""], [0, 1, 0, 0, 1, 0, 0]),
        (("▁the", "the", "<s>", "▁Is"), ["the", "", "", "Is"], [0, 1, 0, 0]),
        (("the", "##ing", "[CLS]", "12", "is"), ["the", "", "", "", "is"], [0, 1, 0, 0, 0]),
    ],
)
def test_words_are_told_by_their_marks(tokens: tuple, words: list[str], goes_on: list[int]):
    known = Vocabulary.of(Tokens(*tokens))
    assert known.word == words and known.goes_on.tolist() == [bool(x) for x in goes_on]
    assert [bool(word) for word in words] == (known.letter >= 0).tolist()
    assert known.letter[0] == 19


def test_words_are_read_a_few_times_each():
    pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
    from tiny_models import WORDS, documents, tiny

    lm = tiny("llama")
    found = words_in_text(harvest(lm, "resid.1", documents()), lm.tokenizer, occurrences=2)
    assert found.token.bincount().max() == 2 and found.x.shape == (len(found.token), 16)
    spelt = [lm.tokenizer.convert_ids_to_tokens(int(token)) for token in found.token]
    assert [WORDS[0][0], *[word[0] for word in spelt]] == [
        "z",
        *["abcdefghijklmnopqrstuvwxyz"[i] for i in found.letter],
    ]
    assert not set(found.token[found.test].tolist()) & set(found.token[~found.test].tolist())
    assert (found.occurs.sum(1) == 1).all()
    single = words_in_template(lm, "resid.1", "one two {word} three")
    assert sorted(single.token.tolist()) == [4 + i for i in range(11)]
    plain = words_in_template(lm, "resid.0", "{word}")
    assert plain.x.shape == (11, 16) and not torch.equal(plain.x, words_in_template(lm, "resid.1", "{word}").x)
    with pytest.raises(ValueError, match=r"must hold \{word\} once"):
        words_in_template(lm, "resid.1", "word")
