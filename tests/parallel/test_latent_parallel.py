"""Ranks that share the latents, and ranks that share rows and latents, train what one process does."""

from pathlib import Path

import pytest
import torch

import overtone as ot
from overtone.parallel import Axis, World
from overtone.ranks import check_ranks
from parallel.compared import same_codes, same_training
from parallel.ranks import Ranks
from parallel.work import METHODS, batch_topk, coded, drawn, resumed, trained


def splits(name: str) -> bool:
    try:
        check_ranks(METHODS[name], 20, 48, World(latents=Axis(0, 2)))
    except ValueError:
        return False
    return True


NAMES = [name for name in METHODS if splits(name)]
WHOLE = {"group-max", "matching-pursuit", "ortsae", "topk-aux", "topk-resampled", "gba-universal", "gba-universal-soon"}
MESHES = {"latents": (3, 3), "rows and latents": (4, 2)}


def test_what_needs_all_latents_is_named():
    assert set(METHODS) - set(NAMES) == WHOLE
    world = World(latents=Axis(0, 2))
    with pytest.raises(
        ValueError, match="'ortsae-3' has Orthogonality, which needs all latents in one place; let its ranks share"
    ):
        check_ranks(METHODS["ortsae"], 20, 48, world)
    with pytest.raises(ValueError, match="latents=3 cannot be split over 4 ranks; widen the dictionary"):
        check_ranks(ot.topk(3), 3, 48, World(latents=Axis(0, 4)))


@pytest.mark.parametrize("mesh", MESHES)
def test_ranks_train_what_one_process_does(mesh: str, ranks: Ranks):
    size, latents = MESHES[mesh]
    alone, found = trained(World(), NAMES, {}), ranks(size, trained, NAMES, {}, latents=latents)
    for name, one in alone.items():
        for rank in found:
            same_training(rank[name], one, name)


@pytest.mark.parametrize("mesh", MESHES)
def test_selections_and_frequencies_are_identical(mesh: str, ranks: Ranks):
    size, latents = MESHES[mesh]
    alone, found = coded(World(), NAMES, {}), ranks(size, coded, NAMES, {}, latents=latents)
    for name, one in alone.items():
        for first in range(latents):  # ranks that share the latents have the same rows
            same_codes([found[rank][name] for rank in range(first, size, latents)], one, name)


@pytest.mark.parametrize("latents", [7, 4096, 4097, 8192 + 5, 20000])
def test_ranks_draw_the_atoms_of_one_process(latents: int, ranks: Ranks):
    for d in (1, 3, 16):
        whole = ot.Dictionary(d, latents, seed=2).W_dec.detach()
        assert torch.equal(torch.cat([drawn(part, latents, d) for part in (Axis(0, 3), Axis(1, 3), Axis(2, 3))]), whole)


@pytest.mark.parametrize("name", ["gba-l0", "batch-topk"])
def test_a_run_goes_on_on_any_mesh(name: str, ranks: Ranks, tmp_path: Path):
    """Rows over two ranks, then latents over three, then both, then one process: the same files and the same result."""
    for path in (tmp_path / "one", tmp_path / "many"):
        path.mkdir()
    whole = resumed(World(), str(tmp_path / "one"), name, None)
    for size, latents in ((2, 1), (3, 3), (4, 2)):
        assert ranks(size, resumed, str(tmp_path / "many"), name, 2, latents=latents)[0] is None
    again = resumed(World(), str(tmp_path / "many"), name, None)
    assert whole is not None and again is not None
    for key in whole:
        torch.testing.assert_close(again[key], whole[key], rtol=1e-3, atol=1e-4)


def test_a_dictionary_in_parts_is_written_whole(ranks: Ranks, tmp_path: Path):
    for path in (tmp_path / "one", tmp_path / "two"):
        path.mkdir()
    whole = resumed(World(), str(tmp_path / "one"), "topk", None)
    assert ranks(2, resumed, str(tmp_path / "two"), "topk", None, latents=2)[1] is None
    found = ot.load(tmp_path / "two").state_dict()
    assert whole is not None and found.keys() == whole.keys()
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_the_largest_of_a_batch_are_those_of_all_latents(implementation: str, ranks: Ranks):
    pre = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    pre[:, 8:] -= 2
    for k in (1, 3, 16):
        alone = batch_topk(World(), pre, k, implementation)
        for size, latents in ((2, 2), (4, 2)):
            parts = ranks(size, batch_topk, pre, k, implementation, latents=latents)
            found = sorted(tuple(entry) for part in parts for entry in zip(*(t.tolist() for t in part), strict=True))
            assert found == list(zip(*(t.tolist() for t in alone), strict=True))
