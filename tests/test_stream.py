import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import ArrayStream, FreshStream, SparseMixture, Stream, imbalanced
from overtone.data.stream import check_rows


def numbered(rows: int) -> torch.Tensor:
    return torch.arange(1, rows + 1).float()[:, None].expand(-1, 3).contiguous()


@given(rows=st.integers(1, 60), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_row_exactly_once_per_epoch(rows: int, batch: int, seed: int):
    stream = ArrayStream(numbered(rows), batch, seed=seed)
    seen = torch.cat([next(stream).x[:, 0] for _ in range(-(-3 * rows // batch))])
    for epoch in range(3):
        part = seen[epoch * rows : (epoch + 1) * rows]
        assert torch.equal(part.sort().values, torch.arange(1, rows + 1).float())


def test_epochs_and_seeds_have_different_orders():
    stream, other = ArrayStream(numbered(50), 50, seed=1), ArrayStream(numbered(50), 50, seed=2)
    first, second = next(stream).x, next(stream).x
    assert not torch.equal(first, second)
    assert not torch.equal(first, next(other).x)


@pytest.mark.parametrize(
    "make",
    [lambda: ArrayStream(numbered(23), 10, seed=4), lambda: FreshStream(imbalanced(), 16, seed=4)],
    ids=["array", "fresh"],
)
@given(before=st.integers(0, 9))
def test_a_stream_resumes_exactly(make, before: int):
    stream, resumed = make(), make()
    assert isinstance(stream, Stream)
    for _ in range(before):
        next(stream)
    resumed.load_state_dict(stream.state_dict())
    for a, b in itertools.islice(zip(stream, resumed, strict=True), 5):
        assert torch.equal(a.x, b.x)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[3].fill_(float("nan")), "my rows: row 3 has NaN"),
        (lambda x: x[2, 1].fill_(float("inf")), "my rows: row 2 has Inf"),
        (lambda x: x[4].zero_(), "my rows: row 4 is all zeros"),
    ],
)
def test_unusable_rows_are_named(spoil, message: str):
    x = numbered(6)
    spoil(x)
    with pytest.raises(ValueError, match=message):
        ArrayStream(x, 2, source="my rows")


def test_other_bad_input():
    with pytest.raises(ValueError, match="no rows"):
        check_rows(torch.zeros(0, 3), "empty")
    with pytest.raises(ValueError, match="batch=0"):
        ArrayStream(numbered(3), 0)
    saved = ArrayStream(numbered(3), 1).state_dict()
    with pytest.raises(ValueError, match="rows=4, the saved position was of rows=3"):
        ArrayStream(numbered(4), 1).load_state_dict(saved)
    with pytest.raises(ValueError, match="seed=1, the saved position was of seed=0"):
        ArrayStream(numbered(3), 1, seed=1).load_state_dict(saved)


def test_values_beyond_float32_are_called_that():
    assert len(check_rows(torch.full((2, 3), 1e18), "large")) == 2
    with pytest.raises(ValueError, match="too large for float32; scale"):
        check_rows(torch.full((2, 3), 1e25), "huge")
    with pytest.raises(ValueError, match="too small for float32; scale"):
        check_rows(torch.full((2, 3), 1e-30), "tiny")
    with pytest.raises(ValueError, match="width 0"):
        check_rows(torch.zeros(2, 0), "flat")


class TestMixture:
    """The generator does what it says, within sampling error."""

    @pytest.mark.parametrize("law", ["uniform", "constant", "half-normal", "exponential"])
    def test_rows_are_the_mixture_they_claim(self, law):
        truth = SparseMixture(law=law)
        x, h = truth.rows(4000)
        active = (h > 0).sum(1)
        assert set(active.tolist()) == {3, 20}
        assert (active == 3).float().mean() == pytest.approx(0.5, abs=0.04)
        torch.testing.assert_close(x, h @ truth.features)
        mean = {"uniform": 0.5, "constant": 1.0, "half-normal": (2 / torch.pi) ** 0.5, "exponential": 1.0}[law]
        assert h[h > 0].mean() == pytest.approx(mean, rel=0.03)

    @pytest.mark.parametrize("frequencies", ["equal", "zipf"])
    def test_features_occur_as_often_as_announced(self, frequencies):
        truth = SparseMixture(n_features=40, d=16, sparsities=(2, 6), frequencies=frequencies, zipf_exponent=0.7)
        h = truth.rows(40_000).h
        expected = truth.occurrence()
        assert expected.sum() == pytest.approx(4.0)
        error = ((h > 0).double().mean(0) - expected) / (expected * (1 - expected) / 40_000).sqrt()
        assert error.abs().max() < 4.5, "standard errors over 40 features"

    def test_the_published_frequency(self):
        assert imbalanced().occurrence()[0] == pytest.approx(0.09, abs=0.001)

    def test_supports_are_nearly_independent(self):
        h = (SparseMixture(n_features=30, d=10, sparsities=(6,)).rows(20_000).h > 0).double()
        together = (h.T @ h / len(h)).fill_diagonal_(0).sum() / (30 * 29)
        assert together == pytest.approx(6 * 5 / (30 * 29), rel=0.01)

    def test_features_are_unit_and_seeded(self):
        a, b, c = SparseMixture(seed=1), SparseMixture(seed=1), SparseMixture(seed=2)
        torch.testing.assert_close(a.features.norm(dim=1), torch.ones(128))
        assert torch.equal(a.features, b.features)
        assert not torch.equal(a.features, c.features)

    def test_given_features_and_noise(self):
        truth = SparseMixture(n_features=4, d=4, sparsities=(1,), law="constant", noise=0.1, features=torch.eye(4))
        x, h = truth.rows(5000)
        assert (x - h).std() == pytest.approx(0.1, rel=0.05)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sparsities": (3, 200)}, "between 1 and n_features=128"),
            ({"sparsities": ()}, "active features per row"),
            ({"n_features": 0}, "n_features=0"),
            ({"features": torch.zeros(3, 3)}, "features have shape"),
            ({"frequencies": "zipf", "zipf_exponent": 2.0}, "would occur"),
        ],
    )
    def test_bad_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            SparseMixture(**options)
