import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone import firing


def test_counts_peaks_and_frequencies_by_hand():
    pre = torch.tensor([[1.0, -2.0, 0.5], [3.0, -1.0, -0.5]])
    z = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])  # the third was deselected (as top-k does)
    stats = firing.observe(pre, z)
    assert stats.rows == 2
    assert stats.fired.tolist() == [2, 0, 0]
    assert stats.peak.tolist() == [3.0, 0.0, 0.5]
    assert stats.frequency.tolist() == [1.0, 0.0, 0.0]
    assert stats.alive.tolist() == [True, False, False]


@given(cut=st.integers(1, 39), seed=st.integers(0, 10))
def test_statistics_do_not_depend_on_batching(cut: int, seed: int):
    pre = torch.randn(40, 7, generator=torch.Generator().manual_seed(seed))
    whole = firing.observe(pre, pre.relu())
    parts = firing.merge(firing.observe(pre[:cut], pre[:cut].relu()), firing.observe(pre[cut:], pre[cut:].relu()))
    for a, b in zip(whole, firing.merge(firing.empty(7), parts), strict=True):
        assert torch.equal(a, b)


def test_repeating_rows_keeps_frequencies():
    pre = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    once, twice = firing.observe(pre, pre.relu()), firing.observe(pre.repeat(2, 1), pre.repeat(2, 1).relu())
    assert torch.equal(once.frequency, twice.frequency)
    assert torch.equal(once.peak, twice.peak)
