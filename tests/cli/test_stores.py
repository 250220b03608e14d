"""Harvest once, train many: the verbs around activation stores, on a tiny model saved to disk."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone
from tiny_models import D
from tiny_store import model_and_text

SITES = ("resid.1", "mlp_in.1", "mlp_out.1")
SHORT = ("--steps", 24, "--batch", 32, "--latents", 32, "--method", "gba(groups=4)", "--checkpoint-every", 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and a text of 40 documents."""
    model_and_text(tmp_path, 40, 50)
    return tmp_path


READ = ("--model", "model", "--sites", *SITES, "--text", "docs.jsonl", "--context", 16, "--shard-mib", 0.05)


def harvest(call, *more) -> None:
    status, _, err = call("harvest", *READ, "--out", "store", *more)
    assert status == 0, err


def test_harvest_look_check_train_and_evaluate(call, folder: Path):
    harvest(call, "--json", "h.json")
    described = json.loads((folder / "h.json").read_text())
    assert described["sites"] == dict.fromkeys(SITES, D) and described["complete"]
    assert described["rows"]["train"] + described["rows"]["held_out"] == 40 * 50
    status, out, _ = call("store", "info", "store")
    assert status == 0 and "resid.1" in out and "1,800" in out
    assert "every file as the manifest lists it" in call("store", "verify", "store")[1]
    status, out, err = call(
        "train", "--store", "store", "--site", "resid.1", *SHORT, "--out", "run", "--json", "t.json"
    )
    assert status == 0, err
    (trained,) = json.loads((folder / "t.json").read_text())["runs"]
    assert call("evaluate", "run", "--json", "a.json")[0] == 0
    assert call("evaluate", "run/dictionary", "--store", "store", "--site", "resid.1", "--json", "b.json")[0] == 0
    own, other = (json.loads((folder / n).read_text())["runs"][0]["metrics"] for n in ("a.json", "b.json"))
    assert own == other == trained["metrics"]
    held_out = overtone.Store(folder / "store").activations("resid.1", "held_out").x
    mine = overtone.evaluate(overtone.load(folder / "run"), held_out)
    assert own["explained_variance"] == pytest.approx(mine.explained_variance, rel=1e-6)


def test_a_transcoder_is_measured_on_its_target(call, folder: Path):
    harvest(call)
    words = ("--store", "store", "--site", "mlp_in.1", "--target", "mlp_out.1", *SHORT)
    assert call("train", *words, "--out", "run", "--json", "t.json")[0] == 0
    (trained,) = json.loads((folder / "t.json").read_text())["runs"]
    store, dictionary = overtone.Store(folder / "store"), overtone.load(folder / "run")
    read, target = (store.activations(site, "held_out").x for site in ("mlp_in.1", "mlp_out.1"))
    error = (dictionary.reconstruct(read) - target).square().sum() / target.square().sum()
    assert trained["metrics"]["normalised_mse"] == pytest.approx(float(error), rel=1e-4)
    assert call("evaluate", "run", "--store", "store", "--json", "e.json")[0] == 0
    assert json.loads((folder / "e.json").read_text())["runs"][0]["metrics"] == trained["metrics"], (
        "its own site and target"
    )
    assert "mlp_in.1 (d = 16) → mlp_out.1 (d = 16); drop --downstream" in call("evaluate", "run", "--downstream")[2]


def test_a_skip_transcoder_to_a_site_of_another_width(call, folder: Path):
    hidden = "model.layers.1.mlp.gate_proj"
    status, _, err = call("harvest", *READ[:2], "--sites", "mlp_in.1", hidden, *READ[6:], "--out", "store")
    assert status == 0, err
    widths = overtone.Store(folder / "store").sites
    assert widths[hidden] != widths["mlp_in.1"]
    words = ("--store", "store", "--site", "mlp_in.1", "--target", hidden, "--skip", *SHORT)
    status, _, err = call("train", *words, "--out", "run", "--json", "t.json")
    assert status == 0, err
    dictionary = overtone.load(folder / "run")
    assert str(dictionary.layout) == f"mlp_in.1 (d = 16) → {hidden} (d = {widths[hidden]})" and dictionary.W_skip.any()
    (trained,) = json.loads((folder / "t.json").read_text())["runs"]
    assert call("evaluate", "run", "--json", "e.json")[0] == 0
    assert json.loads((folder / "e.json").read_text())["runs"][0]["metrics"] == trained["metrics"]
    np.save(folder / "rows.npy", np.ones((40, 16), np.float32))
    _, _, err = call("evaluate", "run", "--activations", "rows.npy")
    assert "give the rows that it reconstructs: --store with --site and --target" in err


def test_a_crosscoder_stopped_goes_on_and_is_measured_site_by_site(call, folder: Path):
    harvest(call)
    sites = ("--store", "store", "--site", "resid.1", "mlp_out.1", "--crosscoder")
    words = (*sites, *SHORT, "--method", "gba(groups=4)", "topk(k=4)")
    assert call("train", *words, "--out", "run", "--json", "t.json")[0] == 0
    before = {p.name: overtone.load(p).state_dict() for p in (folder / "run").iterdir()}
    assert set(before) == {"resid.1+mlp_out.1-gba-groups=4-32", "resid.1+mlp_out.1-topk-k=4-32"}
    trained = json.loads((folder / "t.json").read_text())["runs"][1]
    assert set(trained["metrics"]["site_explained_variance"]) == {"resid.1", "mlp_out.1"}
    status, out, _ = call("evaluate", "run/resid.1+mlp_out.1-topk-k=4-32", "--json", "e.json")
    assert status == 0 and "of 32 latents shared by all" in " ".join(out.split())
    assert json.loads((folder / "e.json").read_text())["runs"][0]["metrics"] == trained["metrics"]
    assert "--downstream puts the reconstruction of one" in call("evaluate", trained["run"], "--downstream")[2]
    for name in before:  # as a kill after the second checkpoint leaves it
        shutil.rmtree(folder / "run" / name / "dictionary")
        shutil.rmtree(folder / "run" / name / "checkpoints" / "000000024")
    status, _, err = call("train", "--resume", "run")
    assert status == 0, err
    after = {name: overtone.load(folder / "run" / name).state_dict() for name in before}
    assert all(torch.equal(before[name][k], after[name][k]) for name in before for k in before[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--site", "resid.1", "--skip"), "--skip is a path from --site to another site; give --target"),
        (("--site", "resid.1", "--crosscoder"), "was given resid.1; give at least two --site"),
        (("--site", "resid.1", "mlp_in.1", "--crosscoder", "--target", "mlp_out.1"), "drop --target mlp_out.1"),
        (("--site", "resid.1", "mlp_in.1", "--target", "mlp_in.1"), "--target mlp_in.1 is among --site"),
    ],
)  # fmt: skip
def test_sites_that_do_not_go_together(words: tuple, message: str, call, folder: Path):
    harvest(call)
    status, _, err = call("train", "--store", "store", *words, "--out", "run")
    assert status == 2 and message in err and not (folder / "run").exists(), err


def test_many_dictionaries_in_one_pass_are_those_trained_alone(call, folder: Path):
    harvest(call)
    # Two sites in flight take twice the memory of one; the order of rows depends on the window, and here all rows fit.
    words = ("--store", "store", *SHORT)
    both = ("--site", "resid.1", "mlp_in.1", "--method", "gba(groups=4)", "topk(k=4)", "--latents", 24, 32)
    status, out, err = call("train", *words, *both, "--out", "group", "--json", "g.json")
    assert status == 0, err
    names = {f"{s}-{m}-{w}" for s in ("resid.1", "mlp_in.1") for m in ("gba-groups=4", "topk-k=4") for w in (24, 32)}
    assert {p.name for p in (folder / "group").iterdir()} == names
    assert len(json.loads((folder / "g.json").read_text())["runs"]) == 8 and "resid.1-gba-groups=4-24" in out
    assert call("train", "--store", "store", "--site", "mlp_in.1", *SHORT, "--method", "topk(k=4)",
                "--latents", 24, "--out", "alone")[0] == 0  # fmt: skip
    alone, member = (overtone.load(folder / p).state_dict() for p in ("alone", "group/mlp_in.1-topk-k=4-24"))
    assert all(torch.equal(alone[k], member[k]) for k in alone)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
@pytest.mark.parametrize("source", ["store", "file"])
def test_a_group_stopped_between_two_checkpoints_goes_on(
    call, folder: Path, rows: torch.Tensor, monkeypatch: pytest.MonkeyPatch, source: str, stop_at: int
):
    np.save(folder / "rows.npy", rows.numpy())
    assert call("store", "import", "rows.npy", "--out", "store")[0] == 0
    words = (
        *(("--store", "store") if source == "store" else ("--activations", "rows.npy")),
        *SHORT,
        "--method",
        "gba(groups=4)",
        "topk(k=4)",
    )
    assert call("train", *words, "--out", "whole")[0] == 0
    from overtone import resumption

    real, saves = resumption.save_state, 0

    def stop(*args, **kwargs):
        nonlocal saves
        saves += 1
        if saves == stop_at:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(resumption, "save_state", stop)
        assert call("train", *words, "--out", "parts")[0] == 130
    steps = sorted(p.name for p in (folder / "parts").glob("*/checkpoints/0*"))
    assert steps == {1: [], 2: ["000000008"], 4: ["000000008", "000000016"]}[stop_at]
    status, _, err = call("train", "--resume", "parts")
    assert status == 0, err
    for whole in (folder / "whole").iterdir():
        a, b = (overtone.load(p).state_dict() for p in (whole, folder / "parts" / whole.name))
        assert all(torch.equal(a[k], b[k]) for k in a), whole.name


def test_training_while_the_model_is_read(call, folder: Path):
    words = (
        "--model",
        "model",
        "--site",
        "resid.1",
        "--text",
        "docs.jsonl",
        "--context",
        16,
        "--buffer-rows",
        400,
        *SHORT,
    )
    status, out, err = call("train", *words, "--out", "run", "--json", "t.json")
    assert status == 0, err
    assert "Shuffle buffer of 39" in " ".join(out.split()) or "Shuffle buffer of 40" in " ".join(out.split())
    store = overtone.Store(folder / "run" / "activations")
    assert store.rows("train") == 0 and store.rows("held_out") == 200, "rows to train on are not kept"
    assert call("evaluate", "run", "--downstream", "--contexts", 4)[0] == 0
    shutil.rmtree(folder / "run" / "dictionary")
    kept = sorted((folder / "run" / "checkpoints").iterdir())
    before = overtone.load(folder / "run").state_dict()
    assert kept and call("train", "--resume", "run")[0] == 0
    after = overtone.load(folder / "run").state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_an_interrupted_harvest_within_train_goes_on(call, folder: Path, monkeypatch: pytest.MonkeyPatch):
    words = ("--model", "model", "--site", "resid.1", "--text", "docs.jsonl", "--context", 16, *SHORT)
    from overtone.data import shards

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_rows", stop)
        assert call("train", *words, "--out", "run")[0] == 130
    assert call("train", "--resume", "run")[0] == 0
    assert overtone.Store(folder / "run" / "activations").manifest.complete


def test_store_verbs(call, folder: Path, rows: torch.Tensor):
    np.save(folder / "rows.npy", rows.numpy())
    assert call("store", "import", "rows.npy", "--out", "a", "--dtype", "float32")[0] == 0
    assert call("store", "import", "rows.npy", "--out", "b", "--dtype", "float32", "--seed", 1)[0] == 0
    assert call("store", "merge", "a", "b", "--out", "ab")[0] == 0
    assert call("store", "export", "ab", "--out", "ab.npy")[0] == 0
    assert len(np.load(folder / "ab.npy")) == overtone.Store(folder / "ab").rows()
    file = next((folder / "ab" / "shards").glob("*.x.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 255
    file.unlink()  # it shares its bytes with the store it came from
    file.write_bytes(data)
    status, _, err = call("store", "verify", "ab")
    assert status == 2 and "is damaged: its SHA-256" in err
    assert call("store", "verify", "a")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("harvest",), "--model, --sites, --text, --out missing"),
        (("harvest", "--model", "model", "--sites", "resid.9", "--text", "docs.jsonl", "--out", "s"), "resid.9"),
        (("harvest", "--model", "model", "--sites", "resid.1", "--text", "dox.jsonl", "--out", "s"), "docs.jsonl"),
        (("harvest", "--resume", "nowhere"), "no activation store at nowhere"),
        (("harvest", "--resume", "s", "--model", "model"), "drop --model"),
        (("store", "info", "nowhere"), "no activation store at nowhere"),
        (("store", "verify", "."), "no activation store at"),
        (("store", "import", "rows.pt", "--out", "s"), "no file of activations at rows.pt"),
        (("train", "--store", "nowhere"), "no activation store at nowhere"),
        (("train", "--store", "x", "--model", "model"), "drop --model and --text, or drop --store"),
        (("train", "--model", "model", "--site", "resid.1", "--text", "docs.jsonl", "--buffer-rows", "9"),
         "--buffer-rows 9 must hold at least a batch (512) and a context (128)"),
        (("train", "--store", "x", "--buffer-rows", "9"), "--buffer-rows is for --model"),
    ],
)  # fmt: skip
def test_errors_are_one_clear_line(words: tuple, message: str, call, folder: Path):
    before = sorted(folder.rglob("*"))
    status, _, err = call(*words)
    assert status == 2 and err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
    assert sorted(folder.rglob("*")) == before, "an error in the settings leaves nothing behind"


def test_a_store_without_held_out_rows_is_named_before_training(call, folder: Path, rows: torch.Tensor):
    np.save(folder / "rows.npy", rows.numpy())
    assert call("store", "import", "rows.npy", "--out", "store", "--held-out", 0)[0] == 0
    status, _, err = call("train", "--store", "store", *SHORT, "--out", "run")
    assert status == 2 and "no rows in the split 'held_out'" in err and not (folder / "run").exists()


def test_other_sites_and_widths_are_named(call, folder: Path, rows: torch.Tensor):
    harvest(call)
    _, _, err = call("train", "--store", "store", "--site", "resid.2")
    assert "has no site 'resid.2'; it has resid.1, mlp_in.1, mlp_out.1" in err
    assert "holds 3 sites; choose one of" in call("train", "--store", "store")[2]
    assert call("train", "--store", "store", "--site", "resid.1", *SHORT, "--out", "run")[0] == 0
    np.save(folder / "rows.npy", rows.numpy())
    call("store", "import", "rows.npy", "--out", "other")
    status, _, err = call("evaluate", "run", "--store", "other", "--site", "x")
    assert status == 2 and "have width 12, the dictionary was trained on d=16" in err
    shutil.rmtree(folder / "store")
    assert "were moved or removed" in call("evaluate", "run")[2]


def torchrun(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`overtone harvest` on two ranks."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "overtone",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "harvest", *map(str, READ), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_ranks_of_torchrun_write_one_store(call, folder: Path):
    harvest(call)
    done = torchrun(folder, "--out", "ranks")
    assert done.returncode == 0, done.stderr
    one, both = overtone.Store(folder / "store"), overtone.Store(folder / "ranks")
    assert both.verify() == [] and both.rows() == one.rows() and both.names() == one.names()
    torch.testing.assert_close(both.mean("resid.1"), one.mean("resid.1"), atol=1e-6, rtol=1e-5)
    assert not (folder / "ranks.parts").exists()
    status, _, err = call("train", "--store", "ranks", "--site", "resid.1", *SHORT, "--out", "run")
    assert status == 0, err


@pytest.mark.skipif(find_spec("accelerate") is None, reason='needs pip install "overtone[spread]"')
def test_ranks_that_hold_the_model_together_write_what_one_process_does(call, folder: Path):
    harvest(call, "--dtype", "float32")
    done = torchrun(folder, "--dtype", "float32", "--tensor-parallel", "--out", "ranks")
    assert done.returncode == 0, done.stderr
    one, both = overtone.Store(folder / "store"), overtone.Store(folder / "ranks")
    assert both.verify() == [] and both.manifest.source["plan"] == one.manifest.source["plan"]
    assert both.manifest.source["model"] == one.manifest.source["model"]  # one process may go on with it
    for site in SITES:
        mine, wanted = both.activations(site), one.activations(site)
        assert torch.equal(mine.token_ids, wanted.token_ids)
        torch.testing.assert_close(mine.x, wanted.x, atol=1e-5, rtol=1e-5)
    assert call("harvest", "--resume", "ranks")[0] == 0


def test_what_holds_no_model_together_is_named(call, folder: Path):
    status, _, err = call("harvest", *READ, "--out", "store", "--tensor-parallel")
    assert status == 2 and "--tensor-parallel is for several processes" in err
    status, _, err = call("train", "--store", "store", "--device-map", "auto", "--out", "run")
    assert status == 2 and "--device-map auto is for --model" in err


def test_an_unfinished_store_says_how_to_finish_it(call, folder: Path, monkeypatch: pytest.MonkeyPatch):
    from overtone.data import shards

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_rows", stop)
        status, _, err = call("harvest", *READ, "--out", "store")
    assert status == 130 and "stopped; go on with: overtone harvest --resume store" in err
    _, _, err = call("train", "--store", "store", "--site", "resid.1")
    assert "is unfinished; finish it first: overtone harvest --resume store" in err
    assert call("harvest", "--resume", "store")[0] == 0
    assert call("train", "--store", "store", "--site", "resid.1", *SHORT, "--out", "run")[0] == 0
    assert "is already finished" in call("train", "--resume", "run")[1]
