"""`overtone score` and `overtone latents` on a tiny model's text: numbers of the Python functions, kept as they come."""

import base64
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone
import tiny_store
from overtone.cli import score as verb
from overtone.data.text_rows import store_rows
from overtone.interpret.examples import collect_examples
from overtone.metrics.latents import latent_stats
from overtone.metrics.lens import logit_lens
from tiny_models import D
from tiny_store import LATENTS

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model, its store of two sites, and three dictionaries that nobody has trained."""
    return tiny_store.make(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def words(made: Path) -> tuple:
    return ("--store", made / "store", "--site", "resid.1", "--split", "train")


def test_rows_come_in_the_order_of_the_text(made: Path):
    store = overtone.Store(made / "store")
    whole = store.activations("resid.1", "train")
    parts = list(store_rows(store, "resid.1", "train", batch=100))
    assert (
        len(store.shards()) > 1
        and [p.first for p in parts[1:]] == torch.tensor([len(p.x) for p in parts]).cumsum(0)[:-1].tolist()
    )
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.token_ids for p in parts]), whole.token_ids)
    assert all(len(p.x) <= 100 for p in parts)
    both = next(store_rows(store, ["resid.1", "mlp_out.1"], "train", batch=100))
    assert torch.equal(both.x[:, :D], parts[0].x) and both.x.shape[1] == 2 * D
    few = sum(len(p.x) for p in store_rows(store, "resid.1", "train", limit=whole.rows // 2))
    assert whole.rows / 2 <= few <= whole.rows / 2 + len(store.shards())


def test_scores_of_several_dictionaries_beside_random_atoms(made: Path, words: tuple, call, tmp_path: Path):
    runs = (made / "d0", made / "d1")
    status, out, err = call("score", *runs, *words, "--latents", 5, "--json", "s.json")
    assert status == 0 and "random atoms, L0 3" in out and "fuzzing" in out, err
    found = json.loads((tmp_path / "s.json").read_text())
    assert [r["run"] for r in found["runs"]] == list(map(str, runs))
    for result, k in zip(found["runs"], (3, 4), strict=True):
        for part in (result, result["random"]):
            assert part["l0"] == pytest.approx(k, abs=0.3) and part["summary"]["latents"] == 5
            assert part["explanations"].keys() == part["scores"].keys() == part["frequencies"].keys()
            mean = sum(s["detection"] for s in part["scores"].values()) / 5
            assert part["summary"]["detection"] == pytest.approx(mean) and 0 <= mean <= 1
    alone = call("score", runs[0], *words, "--latents", 5, "--no-shuffled", "--no-baseline", "--json", "alone.json")
    (one,) = json.loads((tmp_path / "alone.json").read_text())["runs"]
    assert alone[0] == 0 and "random" not in one and "shuffled_detection" not in one["summary"]
    assert one["explanations"] == found["runs"][0]["explanations"]


def test_stopped_scoring_goes_on(made: Path, words: tuple, call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ask = ("score", made / "d0", *words, "--latents", 4)
    assert call(*ask, "--json", "whole.json")[0] == 0
    judged: list[str] = []

    class Tired(verb.TokenScorer):
        def explain(self, examples):
            judged.append("e")
            if len(judged) == 3:
                raise KeyboardInterrupt
            return super().explain(examples)

    monkeypatch.setattr(verb, "TokenScorer", Tired)
    status, _, err = call(*ask, "--json", "s.json")
    assert status == 130 and "--resume" in err
    assert len(json.loads((tmp_path / "s.json").read_text())["runs"][0]["explanations"]) == 2
    assert call(*ask, "--json", "s.json", "--resume")[0] == 0
    assert len(judged) == 3 + 2 + 4, "two were explained before; four are of the random atoms"
    parts, whole = (json.loads((tmp_path / name).read_text()) for name in ("s.json", "whole.json"))
    assert parts == whole
    assert call(*ask, "--json", "s.json", "--resume")[0] == 0 and len(judged) == 9
    status, _, err = call(*ask, "--json", "s.json", "--resume", "--seed", 1)
    assert status == 2 and "was measured with seed=0, and not with seed=1" in err


@pytest.mark.skipif(not STORIES.exists(), reason="../shared/data is absent")
def test_a_local_model_scores(made: Path, words: tuple, call, tmp_path: Path):
    own = ("--scorer", f"hf:{STORIES}", "--latents", 1, "--no-shuffled", "--no-baseline", "--json", "s.json")
    status, out, err = call("score", made / "d0", *words, *own)
    assert status == 0 and "scorer hf:" in " ".join(out.split()), err
    (result,) = json.loads((tmp_path / "s.json").read_text())["runs"]
    (explanation,) = result["explanations"].values()
    assert explanation and 0 <= result["summary"]["detection"] <= 1


def test_latents_are_shown_with_what_python_says_of_them(made: Path, words: tuple, call, tmp_path: Path):
    ask = ("latents", made / "d0", *words, "--which", 7, 3, "--lens", "--effects", "--contexts", 6, "--json", "l.json")
    status, out, err = call(*ask)
    assert status == 0 and "promotes" in out and "CE, mnat" in out, err
    found = json.loads((tmp_path / "l.json").read_text())
    dictionary = overtone.load(made / "d0")
    store = overtone.Store(made / "store")
    whole = store.activations("resid.1", "train")
    stats = latent_stats(dictionary, whole.x)
    examples = collect_examples(dictionary, store_rows(store, "resid.1", "train"))
    lm = overtone.load_model(made / "model")
    lens = logit_lens(lm, dictionary.effective_atoms[[7, 3]], k=6)
    assert [latent["latent"] for latent in found["latents"]] == [7, 3]
    for i, latent in enumerate(found["latents"]):
        m = latent["latent"]
        assert latent["frequency"] == pytest.approx(float(stats.frequency[m]))
        assert latent["peak"] == pytest.approx(float(stats.peak[m]), rel=1e-5)
        assert latent["z_score"] == pytest.approx(float(stats.z_score[m]), rel=1e-4)
        assert latent["promoted"], latent["suppressed"] == lens.words(lm.tokenizer, i)
        assert math.isfinite(latent["kl"]) and latent["kl"] >= 0
        best = examples.strongest(m)[0]
        shown = latent["examples"][0]
        assert shown["code"] == pytest.approx(float(best.codes.max()), rel=1e-5)
        assert shown["token"].strip() == lm.tokenizer.decode([int(whole.token_ids[best.row])])
    for order in ("frequency", "peak", "rarest", "random"):
        status, _, err = call("latents", made / "d0", *words, "--top", 4, "--sort", order, "--json", "o.json")
        assert status == 0, err
        shown = json.loads((tmp_path / "o.json").read_text())["latents"]
        assert len(shown) == 4
        if order in ("frequency", "peak"):
            assert [latent[order] for latent in shown] == sorted((latent[order] for latent in shown), reverse=True)


def test_a_page_of_two_dictionaries(made: Path, words: tuple, call, tmp_path: Path):
    runs = (made / "d0", made / "d1")
    scored = call("score", runs[0], *words, "--latents", 4, "--no-shuffled", "--no-baseline", "--json", "s.json")
    status, out, err = call("report", *runs, *words, "--scores", "s.json", "--title", "A <b>title</b>", "-o", "r.html")
    assert scored[0] == status == 0 and "r.html" in out, err
    html = (tmp_path / "r.html").read_text()
    assert "A &lt;b&gt;title" in html and "<b>" not in html
    parts = dict(re.findall(r'id="(data|part-0-0)"[^>]*>(.*?)</script>', html))
    data, part = json.loads(parts["data"]), json.loads(parts["part-0-0"])
    assert [run["name"] for run in data["runs"]] == ["d0", "d1"] and len(data["texts"]) == 1
    lm, dictionary = overtone.load_model(made / "model"), overtone.load(made / "d0")
    lens = logit_lens(lm, dictionary.effective_atoms, k=8)
    for m, (promoted, suppressed) in enumerate(part["lens"]):
        assert (promoted, suppressed) == lens.words(lm.tokenizer, m)
    (result,) = json.loads((tmp_path / "s.json").read_text())["runs"]
    assert data["runs"][0]["labels"] == result["explanations"] and data["runs"][0]["detection"]
    assert not data["runs"][1]["labels"] and data["runs"][1]["detection"] is None
    store = overtone.Store(made / "store")
    stats = latent_stats(dictionary, store.activations("resid.1", "train").x)
    for name in ("frequency", "z_score"):
        kept = np.frombuffer(base64.b64decode(data["runs"][0][name]["base64"]), dtype="<f4")
        assert kept == pytest.approx(getattr(stats, name).numpy(), rel=1e-4)
    status, out, err = call("report", *runs, *words, "--folder", "page")
    assert status == 0 and "page/index.html" in out and "2 files beside it" in out, err
    assert {f.name for f in (tmp_path / "page/latents").iterdir()} == {"0-0.js", "1-0.js"}


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (("score", "d0"), "does not say which text its rows come from; give --store"),
        (("score", "d0", "--store", "store"), "holds 2 sites; choose one of resid.1, mlp_out.1"),
        (("score", "d0", "--store", "store", "--site", "resid.1", "mlp_out.1"), "the dictionary"),
        (("score", "d0", "--scorer", "gpt"), "--scorer gpt is none of tokens, hf:PATH and openai:URL"),
        (("score", "d0", "--scorer", "openai:http://x/v1"), "Give its name: --scorer-model NAME"),
        (("score", "d0", "--scorer-model", "m"), "--scorer-model m is for --scorer openai:URL"),
        (("score", "d0", "--latents", -1), "latents=-1 must be at least 0"),
        (("latents", "d0", "--which", LATENTS), f"--which {LATENTS}: "),
        (("latents", "d0", "--top", 0), "top=0 must be at least 1"),
        (("report", "d0", "-o", "r.html", "--folder", "r"), "-o r.html asks for one file, --folder r for a folder"),
    ],
)
def test_errors_are_one_clear_line(ask: tuple, message: str, made: Path, call):
    verb, run, *more = ask
    status, _, err = call(verb, made / run, *(made / word if word == "store" else word for word in more))
    assert status == 2 and err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
