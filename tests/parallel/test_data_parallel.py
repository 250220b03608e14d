"""Ranks that share the rows of every batch train what one process does: losses, weights, biases, statistics, selections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import overtone as ot
from overtone.ops import Encoded
from overtone.parallel import Axis, World
from overtone.ranks import check_ranks
from parallel.compared import same_codes, same_training
from parallel.ranks import RankError, Ranks
from parallel.work import METHODS, batch_topk, checked, coded, failing, from_store, made_rows, resumed, trained

NAMES = list(METHODS)
# Few latents: gradients are sent as matrices. Many latents and few rows: as entries.
SIZES: dict[str, dict[str, Any]] = {"matrices": {}, "entries": {"latents": 200, "batch": 12}}


@pytest.mark.parametrize("size", SIZES)
def test_two_ranks_train_what_one_process_does(size: str, ranks: Ranks):
    alone, found = trained(World(), NAMES, SIZES[size]), ranks(2, trained, NAMES, SIZES[size])
    for name, one in alone.items():
        mine, other = (rank[name] for rank in found)
        same_training(mine, one, name)
        for ours, theirs in ((mine.weights, other.weights), (mine.moments, other.moments)):
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"{name}: ranks have drifted apart"


def test_ranks_that_work_through_their_rows_in_parts(ranks: Ranks):
    names = ["gba", "batch-topk", "normalised"]
    alone = trained(World(), names, {})
    for size, latents in ((2, 1), (4, 2)):
        for rank in ranks(size, trained, names, {"accumulate": 3}, latents=latents):
            for name, one in alone.items():
                same_training(rank[name], one, name)


@pytest.mark.parametrize("size", SIZES)
def test_selections_and_frequencies_are_identical(size: str, ranks: Ranks):
    alone, parts = coded(World(), NAMES, SIZES[size]), ranks(2, coded, NAMES, SIZES[size])
    for name, one in alone.items():
        same_codes([part[name] for part in parts], one, name)


@pytest.mark.parametrize(("name", "batch"), [("gba-l0", 48), ("batch-topk", 1200)])
def test_ranks_that_read_their_rows_alone_train_as_if_they_read_all(
    name: str, batch: int, ranks: Ranks, tmp_path: Path
):
    """Bit for bit: records, weights, and the stream's position, which is that of one process."""
    ot.import_rows([made_rows(30_000)], tmp_path / "rows", site="x", origin="made", dtype="float32", held_out=0)
    alone = from_store(World(), str(tmp_path / "rows"), name, batch, True)
    for size, latents in ((2, 1), (4, 2)):
        parts, whole = (
            ranks(size, from_store, str(tmp_path / "rows"), name, batch, dealt, latents=latents)
            for dealt in (True, False)
        )
        for mine, other in zip(parts, whole, strict=True):
            assert mine[0] == other[0] == parts[0][0] and mine[2] == other[2] == alone[2]
            assert all(torch.equal(mine[1][key], other[1][key]) for key in other[1])


def pre_activations(kind: str) -> Tensor:
    """24 rows of 16 latents."""
    pre = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    if kind == "ties":
        return (2 * pre).round() / 2
    if kind == "one rank has the largest":
        return torch.cat([pre[:8] - 3, pre[8:16] * 5, pre[16:] - 2])
    if kind == "few are positive":
        return pre - 2.5
    return pre


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["plain", "ties", "one rank has the largest", "few are positive"])
def test_the_largest_of_a_batch_are_those_of_all_ranks(kind: str, implementation: str, ranks: Ranks):
    pre = pre_activations(kind)
    for k in (1, 3, 16):
        alone = batch_topk(World(), pre, k, implementation)
        parts = ranks(3, batch_topk, pre, k, implementation)
        for found, wanted in zip(zip(*parts, strict=True), alone, strict=True):
            assert torch.equal(torch.cat(found), wanted)


@pytest.mark.parametrize("name", ["gba-l0", "topk-aux"])
def test_a_run_goes_on_with_any_number_of_ranks(name: str, ranks: Ranks, tmp_path: Path):
    """Checkpoints hold the whole batch's state and the stream's own position; records are those of one run."""
    for path in (tmp_path / "one", tmp_path / "many"):
        path.mkdir()
    [whole] = [resumed(World(), str(tmp_path / "one"), name, None)]
    for size, stop_after in ((4, 2), (2, 2), (1, 2)):
        assert ranks(size, resumed, str(tmp_path / "many"), name, stop_after)[0] is None
    again = ranks(3, resumed, str(tmp_path / "many"), name, None)
    assert whole is not None and again[0] is not None and again[1:] == [None, None]
    for key in whole:
        torch.testing.assert_close(again[0][key], whole[key], rtol=1e-3, atol=1e-4)
    records = [ot.RunFolder.open(tmp_path / path).records() for path in ("one", "many")]
    assert [r["step"] for r in records[1]] == [4, 8, 12, 16, 20, 24]
    assert [r["loss"] for r in records[1]] == pytest.approx([r["loss"] for r in records[0]], rel=1e-4)


def test_ranks_that_drift_apart_are_found(ranks: Ranks):
    assert ranks(2, checked, [1.0, 1.0]) == [None, None]
    assert all(said.startswith("weights differ between ranks") for said in ranks(2, checked, [1.0, 1.0000001]))


def test_a_failing_rank_stops_the_others(ranks: Ranks):
    with pytest.raises(RankError, match="ConnectionError: another rank has stopped"):
        ranks(2, failing)


@dataclass(frozen=True)
class Together:
    """A user's selection that codes a batch together and says nothing of ranks."""

    def encode(
        self, x: Float[Tensor, "batch d"], W_enc: Tensor, b_enc: Tensor, centre: Tensor, *args: Any, **own: Any
    ) -> Encoded:
        return ot.ReLU().encode(x, W_enc, b_enc, centre)

    encode_batch = encode


def test_what_ranks_cannot_share_is_refused():
    world = World(Axis(0, 5))
    with pytest.raises(
        ValueError, match="batch=48 cannot be dealt out to 5 ranks in equal parts; make it a multiple of 5"
    ):
        check_ranks(ot.topk(3), 20, 48, world)
    with pytest.raises(ValueError, match=r"loss EndToEnd, which asks the model about whole texts, and 5 ranks"):
        check_ranks(ot.end_to_end(ot.topk(3)), 20, 50, world)
    mine = ot.Method("mine", Together(), (ot.Reconstruction(),))
    with pytest.raises(ValueError, match=r"Together\(\) codes a batch together and does not say how 5 ranks do"):
        check_ranks(mine, 20, 50, world)
    check_ranks(ot.end_to_end(ot.topk(3)), 20, 48, World())
