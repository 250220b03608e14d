"""Stores on disk: what is damaged, foreign or newer is named; rows go in and come out as they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from overtone.data.exchange import export_rows, import_rows, merge_stores, read_chunks
from overtone.data.shuffle import StoreStream
from overtone.data.store import HELD_OUT, TRAIN, SiteStats, Store, StoreError, locked

ROWS, D = 300, 8


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(x: torch.Tensor, tmp_path: Path) -> Store:
    """Rows in several shards, a tenth of each held out."""
    return import_rows(x.split(70), tmp_path / "store", site="x", origin="test", dtype="float32", shard_mib=0.003)


def test_every_row_is_there_once_in_either_split(store: Store, x: torch.Tensor):
    assert len(store.manifest.shards) > 4 and store.manifest.complete and store.verify() == []
    found = torch.cat([batch.x for split in (TRAIN, HELD_OUT) for batch in store.batches(split=split, batch=9)])
    assert torch.equal(found.unique(dim=0), x.unique(dim=0)) and len(found) == ROWS
    assert store.rows(HELD_OUT) == pytest.approx(ROWS / 10, abs=4)


def test_shards_are_plain_safetensors(store: Store):
    shard = store.shards()[0]
    rows = load_file(store.path / shard.sites["x"].path)["x"]
    index = load_file(store.path / shard.index.path)
    assert rows.shape == (shard.rows, D) and rows.dtype == torch.float32
    assert torch.equal(index["order"].sort().values, torch.arange(shard.rows).int())


def test_a_sample_takes_rows_of_every_shard(store: Store):
    some = torch.cat([b.x for b in store.batches(limit=60)])
    assert 60 <= len(some) <= 60 + len(store.shards())
    other = torch.cat([b.x for b in store.batches(limit=60, seed=1)])
    assert not torch.equal(some, other) and len(some.unique(dim=0)) == len(some)


def test_statistics_merge_exactly(x: torch.Tensor):
    def stats(rows: torch.Tensor) -> SiteStats:
        return SiteStats.of(rows, torch.arange(len(rows)))

    whole, parts = stats(x), [stats(part) for part in x.split(77)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merged(part)
    assert merged.rows == whole.rows and np.allclose(merged.mean, whole.mean)
    for name in ("covariance_trace", "norm_mean", "norm_min", "norm_max"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_out_and_in_again(store: Store, tmp_path: Path, suffix: str):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason='needs pip install "overtone[lm]"')
    file = tmp_path / f"rows{suffix}"
    assert export_rows(store, file) == store.rows()
    back = torch.cat(list(read_chunks(file, chunk=50)))
    mine = torch.cat([b.x for b in store.batches()])
    assert torch.equal(back.unique(dim=0), mine.unique(dim=0))
    again = import_rows(
        read_chunks(file, chunk=50), tmp_path / "again", site="y", origin="file", dtype="float32", held_out=0
    )
    assert again.sites == {"y": D} and again.rows() == store.rows()
    with pytest.raises(FileExistsError, match="is not overwritten"):
        export_rows(store, file)


def test_rows_come_out_in_the_order_they_went_in(x: torch.Tensor, tmp_path: Path):
    store = import_rows([x], tmp_path / "s", site="x", origin="t", dtype="float32", shard_mib=0.003, held_out=0)
    export_rows(store, tmp_path / "rows.npy")
    assert np.array_equal(np.load(tmp_path / "rows.npy"), x.numpy())


def test_merging_keeps_all_rows_and_statistics(x: torch.Tensor, tmp_path: Path):
    parts = [
        import_rows([rows], tmp_path / str(i), site="x", origin="t", dtype="float32", seed=i)
        for i, rows in enumerate(x.split(110))
    ]
    merged = merge_stores([p.path for p in parts], tmp_path / "all")
    for again in (merged.path, parts[0].path):
        with pytest.raises(StoreError, match="hold the same rows; merge each of them once"):
            merge_stores([merged.path, again], tmp_path / "no")
    for part in parts:
        shutil.rmtree(part.path)
    assert merged.verify() == [] and merged.rows() + merged.rows(HELD_OUT) == ROWS
    rows = torch.cat([b.x for b in merged.batches()]).double()
    assert np.allclose(merged.stats().mean, rows.mean(0)) and merged.stats().rows == len(rows)
    seen = torch.cat([next(StoreStream(merged, 10)).x for _ in range(1)])
    assert seen.shape == (10, D)
    other = import_rows([x[:, :4]], tmp_path / "narrow", site="x", origin="t", dtype="float32")
    with pytest.raises(StoreError, match=r"has sites {'x': 8}, .* has {'x': 4}; only equal ones"):
        merge_stores([merged.path, other.path], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_flipped_byte_is_found(store: Store):
    path = store.path / store.manifest.shards[3].sites["x"].path
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    (problem,) = store.verify()
    assert problem.startswith(f"{store.manifest.shards[3].sites['x'].path} is damaged: its SHA-256 is")


@pytest.mark.parametrize("which", ["x", "index"])
@pytest.mark.parametrize("harm", ["missing", "short", "foreign"])
def test_missing_short_and_foreign_files(store: Store, which: str, harm: str):
    shard = store.manifest.shards[2]
    path = store.path / (shard.index if which == "index" else shard.sites["x"]).path
    if harm == "missing":
        path.unlink()
    elif harm == "short":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        save_file({"something": torch.zeros(3)}, path)
    assert len(store.verify()) == 1
    with pytest.raises(StoreError, match=path.name):
        if which == "x":
            StoreStream(Store(store.path), 10)
        else:
            export_rows(Store(store.path), store.path.parent / "rows.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"version": 2}, "has version 2; this overtone reads version 1: update overtone"),
        (lambda m: m | {"format": "other"}, "is not the manifest of an overtone store"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "is damaged: 'shards'"),
        (lambda m: m | {"dtype": "int8"}, "is damaged"),
        (lambda m: m | {"extra": 1}, "is damaged"),
        (lambda m: m | {"shards": [{**m["shards"][0], "sites": {"x": {"path": "../../etc/passwd", "bytes": 1, "sha256": ""}}}]},
         "lies outside the store"),
        (lambda m: [], "is not the manifest"),
    ],
)  # fmt: skip
def test_foreign_and_newer_manifests(store: Store, change, message: str):
    path = store.path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(StoreError, match=message):
        Store(store.path)


def test_no_store_there(store: Store, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no activation store at .*nothing .*stores beside it: store"):
        Store(tmp_path / "nothing")
    (store.path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        Store(store.path)


def test_bad_rows_are_named(x: torch.Tensor, tmp_path: Path):
    def load(rows, **options):
        import_rows(rows, tmp_path / "s", site="x", origin="mine.npy", **options)

    spoiled = x.clone()
    spoiled[123, 2] = float("nan")
    with pytest.raises(ValueError, match=r"mine\.npy, rows from 100 on: row 23 has NaN"):
        load(spoiled.split(100))
    with pytest.raises(ValueError, match=r"rows have width 4 from row 300 on, and 8 before"):
        load([x, x[:, :4]])
    with pytest.raises(ValueError, match="holds no rows"):
        load([])
    with pytest.raises(ValueError, match="beyond the range of float16"):
        load([x * 1e6], dtype="float16")
    assert not (tmp_path / "s").exists() and not list(tmp_path.iterdir())


def test_sites_that_would_share_a_file_are_refused(x: torch.Tensor, tmp_path: Path):
    with pytest.raises(ValueError, match=r"site 'index' would share the file .* with another"):
        import_rows([x], tmp_path / "s", site="index", origin="t")
    assert not (tmp_path / "s").exists()


def test_stores_of_one_seed_have_orders_of_their_own(x: torch.Tensor, tmp_path: Path):
    a, b = (import_rows([rows], tmp_path / n, site="x", origin="t", held_out=0) for n, rows in (("a", x), ("b", -x)))
    assert not torch.equal(next(a.batches(batch=ROWS)).x, -next(b.batches(batch=ROWS)).x)


def test_parquet_with_holes_is_refused(tmp_path: Path):
    pa = pytest.importorskip("pyarrow", reason='needs pip install "overtone[lm]"')
    import pyarrow.parquet as parquet

    rows = [[1.0, 2.0], None, [3.0, 4.0]]
    for name, kind in (("a", pa.list_(pa.float32(), 2)), ("b", pa.list_(pa.float32()))):
        parquet.write_table(pa.table({"x": pa.array(rows, kind)}), tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=r"column 'x' has empty cells \(nulls\)"):
            list(read_chunks(tmp_path / f"{name}.parquet"))
    parquet.write_table(pa.table({"x": pa.array([[1.0], [2.0, 3.0]])}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"different lengths, \[1, 2\]"):
        list(read_chunks(tmp_path / "c.parquet"))


def test_pickles_are_never_opened(tmp_path: Path, x: torch.Tensor):
    torch.save(x, tmp_path / "rows.pt")
    with pytest.raises(ValueError, match="can run code and are never opened"):
        read_chunks(tmp_path / "rows.pt")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"not a plain \.npy array"):
        list(read_chunks(tmp_path / "objects.npy"))
    with pytest.raises(FileNotFoundError, match="no file of activations"):
        read_chunks(tmp_path / "none.npy")


def test_two_writers_are_refused(store: Store):
    with (
        locked(store.path),
        pytest.raises(BlockingIOError, match="another process is writing"),
        locked(store.path),
    ):
        raise AssertionError
