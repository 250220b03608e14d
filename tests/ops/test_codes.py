"""Sparse codes say what the dense ones say."""

import pytest
import torch

from overtone import ops
from overtone.ops import SparseCodes


def test_dense_and_sparse_are_inverse(generator: torch.Generator):
    z = torch.randn(9, 14, generator=generator) * (torch.rand(9, 14, generator=generator) < 0.3)
    codes = SparseCodes.from_dense(z)
    assert torch.equal(codes.dense(), z)
    assert torch.equal(codes.l0(), (z != 0).sum(1)) and codes.rows_total == 9
    assert torch.equal(codes.rows, z.nonzero()[:, 0])
    order = torch.randperm(14, generator=generator)
    assert torch.equal(codes.permuted(order).dense(), z[:, order])
    assert torch.equal(ops.concatenate([codes, codes]).dense(), torch.cat([z, z]))
    assert torch.equal(codes.scaled(torch.full((14,), 2.0)).dense(), 2 * z)


def test_active_entries_may_be_zero():
    z = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    codes = SparseCodes.from_dense(z, torch.tensor([[True, True, False], [False, False, False]]))
    assert codes.values.tolist() == [0.0, 2.0] and codes.offsets.tolist() == [0, 2, 2]
    codes.dense().sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_codes_of_different_dictionaries_are_not_concatenated():
    with pytest.raises(ValueError, match="take at least one"):
        ops.concatenate([])
    with pytest.raises(ValueError, match=r"latents=\[2, 3\]"):
        ops.concatenate([SparseCodes.from_dense(torch.ones(1, n)) for n in (2, 3)])
