import gc
import itertools
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone import Stream
from overtone.data import shuffle, windows
from overtone.data.exchange import import_rows, merge_stores
from overtone.data.shuffle import Epoch, StoreStream, shares
from overtone.data.store import Store
from overtone.data.stream import Dealt, SharedRows

D = 128  # float32: 512 bytes a row, so 1 MiB for rows in flight makes windows of 1024 rows
ROWS = 5000


def numbered(first: int, last: int) -> torch.Tensor:
    return torch.arange(first, last).float()[:, None].expand(-1, D).contiguous()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Rows 1 … 5000 in seven shards of different sizes."""
    folder = tmp_path_factory.mktemp("stores")
    edges = [1, 901, 902, 2000, 2700, 3500, 4999, ROWS + 1]
    parts = [
        import_rows([numbered(a, b)], folder / str(a), site="x", origin="test", dtype="float32", held_out=0, seed=a)
        for a, b in itertools.pairwise(edges)
    ]
    return merge_stores([part.path for part in parts], folder / "all")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(shuffle, "SMALLEST_BLOCK", 20 * D * 4)


def stream_of(store: Store, batch: int = 100, **options) -> StoreStream:
    return StoreStream(store, batch, memory_mib=1, **{"seed": 1, **options})


def draw(stream: StoreStream, batches: int) -> torch.Tensor:
    return torch.cat([next(stream).x[:, 0] for _ in range(batches)]).long()


def everything() -> torch.Tensor:
    return torch.arange(1, ROWS + 1)


def test_every_row_exactly_once_per_epoch_in_a_new_order(store):
    stream = stream_of(store)
    assert isinstance(stream, Stream) and stream.window == 1024 and (stream.layout.d, stream.rows) == (D, ROWS)
    first, second = draw(stream, 50), draw(stream, 50)
    assert torch.equal(first.sort().values, everything()) and torch.equal(second.sort().values, everything())
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(stream_of(store, seed=2), 50))
    assert torch.equal(first, draw(stream_of(store, batch=37), 136)[:ROWS])  # the order does not depend on the batch


def test_the_order_is_no_more_like_the_text_than_a_random_one(store):
    """Rank correlation of a uniformly random order of n rows has standard deviation 1 / √(n − 1)."""
    stream = stream_of(store)
    for _ in range(3):
        seen = draw(stream, 50).double()
        for part in (seen, seen[:1024], seen[2000:3000]):
            correlation = torch.corrcoef(torch.stack([part, torch.arange(len(part)).double()]))[0, 1]
            assert abs(float(correlation)) < 4 / (len(part) - 1) ** 0.5
        # Every window holds rows of every part of the text in proportion.
        for window in seen[:4096].split(1024):
            assert float(window.mean()) == pytest.approx(ROWS / 2, abs=4 * ROWS / 12**0.5 / 1024**0.5)


@pytest.mark.parametrize("window", [1, 3])
def test_riffled_random_orders_are_uniform(window):
    """Two shards of 2 rows in random orders: each of the 24 orders of the epoch equally often (χ², p > 1e-4)."""
    rng, found, trials = np.random.default_rng(0), Counter(), 2400
    for trial in range(trials):
        disk = [list(rng.permutation(2)), list(2 + rng.permutation(2))]
        epoch, order = Epoch([2, 2], window, 1, seed=trial, number=0), []
        for w in range(len(epoch.counts)):
            rows = [row for shard, first, n in epoch.extents(w) for row in disk[shard][first : first + n]]
            order += [rows[i] for i in epoch.shuffled(w)]
        found[tuple(order)] += 1
    expected = trials / 24
    chi2 = sum((found[p] - expected) ** 2 / expected for p in itertools.permutations(range(4)))
    assert chi2 < 54  # 23 degrees of freedom


def test_more_rows_than_numpy_draws_from(monkeypatch):
    """The binomial limit keeps the sums and has the mean and spread of the exact distribution."""
    sizes = np.array([700, 100, 1, 199])
    exact = np.stack([shuffle._riffle(sizes, 100, np.random.default_rng(s))[0] for s in range(2000)])
    monkeypatch.setattr(shuffle, "HYPERGEOMETRIC_LIMIT", 1)
    all_counts = [shuffle._riffle(sizes, 100, np.random.default_rng(s)) for s in range(2000)]
    for counts in all_counts:
        assert (counts >= 0).all() and (counts.sum(0) == sizes).all() and (counts.sum(1) == 100).all()
    limit = np.stack([counts[0] for counts in all_counts])
    assert np.allclose(limit.mean(0), exact.mean(0), atol=0.5)
    assert np.allclose(limit.std(0), exact.std(0), rtol=0.12)  # the limit leaves out a factor √(1 − 0.1)


@given(before=st.integers(0, 120), batch=st.sampled_from([1, 99, 100, 1024, 5001]))
def test_resumes_exactly(store, before, batch):
    before = min(before, 12_000 // batch)
    stream, resumed = stream_of(store, batch), stream_of(store, batch)
    for _ in range(before):
        next(stream)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.state_dict() == stream.state_dict()
    for _ in range(3):
        assert torch.equal(next(stream).x, next(resumed).x)


def test_going_back_and_forth_reads_the_same(store):
    stream = stream_of(store)
    begin = stream.state_dict()
    first = draw(stream, 30)
    later = stream.state_dict()
    then = draw(stream, 30)
    stream.load_state_dict(begin)
    assert torch.equal(draw(stream, 30), first)
    stream.load_state_dict(later)
    assert torch.equal(draw(stream, 30), then)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_get_disjoint_covering_parts(store, world):
    streams = [stream_of(store, batch=1, rank=rank, world=world) for rank in range(world)]
    sizes = [sum(b - a for a, b in shares([(0, ROWS)], world)[rank]) for rank in range(world)]
    seen = [draw(stream, size) for stream, size in zip(streams, sizes, strict=True)]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat(seen).sort().values, everything())
    again = [draw(stream, size) for stream, size in zip(streams, sizes, strict=True)]
    assert torch.equal(torch.cat(again).sort().values, everything())


@pytest.mark.parametrize(
    ("worlds", "steps"), [((1, 3), (7, 12)), ((4, 2), (11, 9)), ((2, 5, 1), (6, 8, 0)), ((3, 2), (17, 3))]
)
def test_resuming_with_another_number_of_ranks_still_covers_the_epoch(store, worlds, steps):
    """Ranks come and go; together they have seen every row of an epoch once before they see one twice."""
    state, seen, batch = None, [], 100
    for world, count in zip(worlds, steps, strict=True):
        streams = [stream_of(store, batch, rank=rank, world=world) for rank in range(world)]
        for stream in streams:
            if state is not None:
                stream.load_state_dict(state)
        seen += [draw(stream, count) for stream in streams if count]
        states = [stream.state_dict() for stream in streams]
        assert all(s == states[0] for s in states)
        state = states[0]
    counted = torch.cat(seen).bincount(minlength=ROWS + 1)[1:]
    epochs = len(torch.cat(seen)) // ROWS
    assert counted.min() >= epochs and counted.max() <= epochs + 1  # steps are such that no rank is far ahead
    last = stream_of(store, batch=1, rank=0, world=1)
    last.load_state_dict(state)
    missing = (epochs + 1) * ROWS - len(torch.cat(seen))
    rest = draw(last, missing)
    total = torch.cat([*seen, rest]).bincount(minlength=ROWS + 1)[1:]
    assert torch.equal(total, torch.full((ROWS,), epochs + 1))


def parts_of(store: Store, batch: int, ranks: int, **options) -> list[StoreStream]:
    streams = [stream_of(store, batch, **options) for _ in range(ranks)]
    for rank, stream in enumerate(streams):
        stream.deal(rank, ranks)
    return streams


@pytest.mark.parametrize(("batch", "ranks"), [(100, 2), (99, 4), (1024, 3), (3000, 2), (5, 5)])
def test_parts_put_together_are_the_whole_batches(store, batch, ranks):
    """Over the borders of windows and epochs; positions are those of whole batches, too."""
    whole, parts = stream_of(store, batch), parts_of(store, batch, ranks)
    assert all(isinstance(part, Dealt) for part in parts)
    for _ in range(12_000 // batch if batch > 5 else 300):
        wanted, found = next(whole), [next(part) for part in parts]
        assert torch.equal(torch.cat([f.x for f in found]), wanted.x)
        assert all(f.rows == wanted.rows == batch and f.whole == batch for f in found) and wanted.whole is None
    assert all(part.state_dict() == whole.state_dict() for part in parts)


@settings(max_examples=15)
@given(before=st.integers(0, 60), ahead=st.integers(0, 30), batch=st.sampled_from([64, 700]))
def test_parts_resume_exactly(store, before, ahead, batch):
    """Also where the reader had gone on, or has another place in a batch at the window's beginning than the one saved."""
    before, ahead = min(before, 9_000 // batch), min(ahead, 9_000 // batch)
    whole, [_, part] = stream_of(store, batch), parts_of(store, batch, 2)
    draw(whole, before + 1)
    if ahead:
        draw(part, ahead)
    part.load_state_dict(whole.state_dict())
    for _ in range(3):
        assert torch.equal(next(part).x, next(whole).x[batch // 2 :])
    other = stream_of(store, batch - 1)  # a batch that begins where none of this size did
    draw(other, ahead + 1)
    part.load_state_dict(other.state_dict())
    whole.load_state_dict(other.state_dict())
    assert torch.equal(next(part).x, next(whole).x[batch // 2 :])
    part.deal(0, 1)
    assert torch.equal(next(part).x, next(whole).x)


def bytes_read(monkeypatch, stream: StoreStream, batches: int) -> int:
    """Bytes that a stream reads for so many batches and for the window that it then reads in the background."""
    sizes, real = [], windows._fill

    def counted(file, offset, view, path):
        if path.is_relative_to(stream.store.path):  # a stream of a test before may still read
            sizes.append(len(view))
        real(file, offset, view, path)

    with monkeypatch.context() as patch:
        patch.setattr(windows, "_fill", counted)
        draw(stream, batches)
        if stream._coming is not None:
            stream._coming[1].result()
    return sum(sizes)


def test_ranks_read_their_rows_alone(store, monkeypatch, tmp_path):
    """Of wide rows exactly those; of narrow ones what lies within a page between two of them, too."""
    all_rows, batches = (ROWS + 1024) * D * 4, 39  # up to an epoch's last window, and the first one of the next
    stores = iter([merge_stores([store.path], tmp_path / str(number)) for number in range(9)])
    assert bytes_read(monkeypatch, stream_of(next(stores), 128), batches) == all_rows

    def of_parts() -> list[int]:
        streams = [stream_of(next(stores), 128) for _ in range(4)]
        for rank, stream in enumerate(streams):
            stream.deal(rank, 4)
            assert stream._buffers()["x"].shape == (256, D)
        return [bytes_read(monkeypatch, stream, batches) for stream in streams]

    assert all(0.5 * all_rows < size < all_rows for size in of_parts())
    monkeypatch.setattr(windows, "GAP", D * 4)
    wide = of_parts()
    assert sum(wide) == all_rows and max(wide) - min(wide) <= 2 * 32 * D * 4


def test_readers_of_shared_rows_get_their_parts(store):
    whole = SharedRows(StoreStream(store, 100, memory_mib=1))
    parts = SharedRows(StoreStream(store, 100, memory_mib=1))
    wanted, found = ([shared.reader(store.layout("x")) for _ in range(2)] for shared in (whole, parts))
    next(found[0])
    found[1].deal(1, 4)
    assert next(found[1]).whole is None  # a batch that was read before is whole
    found[0].load_state_dict(wanted[0].state_dict())
    for mine, other in zip(found, wanted, strict=True):
        assert torch.equal(next(mine).x, next(other).x[25:50])


def test_memory_holds_two_windows(store):
    stream = stream_of(store)
    draw(stream, 60)
    held = [rows for window in stream._loaded.values() for rows in window.rows.values()]
    held += [rows for buffers in stream._spare for rows in buffers.values()]
    assert sum(x.untyped_storage().nbytes() for x in held) + stream.window * D * 4 <= 2**20


def test_positions_of_another_stream_are_refused(store, tmp_path):
    saved = stream_of(store).state_dict()
    with pytest.raises(ValueError, match=r"seed=2, the saved position was of seed=1; resume with the same store"):
        stream_of(store, seed=2).load_state_dict(saved)
    with pytest.raises(ValueError, match="window=2048"):
        StoreStream(store, 10, seed=1, memory_mib=2).load_state_dict(saved)
    other = import_rows(
        [numbered(1, ROWS + 1).flip(0)], tmp_path / "o", site="x", origin="t", dtype="float32", held_out=0
    )
    with pytest.raises(ValueError, match="checksum"):
        stream_of(other).load_state_dict(saved)


def test_bad_input(store):
    with pytest.raises(ValueError, match=r"batch=3 has no part for rank=0 of 4; start at most as many ranks"):
        stream_of(store, 3).deal(0, 4)
    for options in ({"batch": 0}, {"world": 2, "rank": 2}):
        with pytest.raises(ValueError, match="must be at least 1"):
            stream_of(store, **options)
    with pytest.raises(ValueError, match=r"has no site 'y'; it has x"):
        stream_of(store, site="y")
    with pytest.raises(ValueError, match=r"no rows in the split 'held_out' \(it has train\)"):
        stream_of(store, split="held_out")


@pytest.mark.parametrize("harm", ["missing", "short"])
def test_a_shard_that_goes_away_while_it_is_read(store, tmp_path, harm):
    copy = merge_stores([store.path], tmp_path / "copy")
    stream = stream_of(copy)
    path = copy.path / copy.manifest.shards[5].sites["x"].path
    data = path.read_bytes()
    path.unlink()
    if harm == "short":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is missing" if harm == "missing" else "is cut short"):
        draw(stream, 60)
    with pytest.raises(
        ValueError, match="is missing" if harm == "missing" else "does not hold the 1499 × 128 rows of F32"
    ):
        stream_of(copy)


def test_a_stream_that_is_dropped_frees_its_memory_and_threads(store):
    gc.collect()
    gc.disable()
    try:
        threads = threading.active_count()
        for _ in range(5):
            stream = stream_of(store)
            draw(stream, 12)
            held = weakref.ref(stream)
            del stream
            eventually(lambda held=held: held() is None)  # once the window under way is read; no cycle keeps it alive
        eventually(lambda: threading.active_count() <= threads)
    finally:
        gc.enable()


def eventually(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
