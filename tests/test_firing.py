import torch
from hypothesis import given
from hypothesis import strategies as st

from observed import seen
from overtone import TopK, firing


def test_counts_peaks_and_frequencies_by_hand():
    # In the first row top-1 deselects the third, which is above 0.
    stats = seen(torch.tensor([[1.0, -2.0, 0.5], [3.0, -1.0, -0.5]]), TopK(1))
    assert stats.rows == 2
    assert stats.fired.tolist() == [2, 0, 0]
    assert stats.peak.tolist() == [3.0, 0.0, 0.0]
    assert stats.frequency.tolist() == [1.0, 0.0, 0.0]
    assert stats.alive.tolist() == [True, False, False]


@given(cut=st.integers(1, 39), seed=st.integers(0, 10))
def test_statistics_do_not_depend_on_batching(cut: int, seed: int):
    pre = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed))
    whole = seen(pre)
    parts = firing.merge(seen(pre[:cut]), seen(pre[cut:]))
    for a, b in zip(whole, firing.merge(firing.empty(7), parts), strict=True):
        assert torch.equal(a, b)


def test_repeating_rows_keeps_frequencies():
    pre = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    once, twice = seen(pre), seen(pre.repeat(2, 1))
    assert torch.equal(once.frequency, twice.frequency)
    assert torch.equal(once.peak, twice.peak)
