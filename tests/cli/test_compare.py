"""`overtone compare` and `overtone methods` as a user meets them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import overtone
from overtone import resumption
from overtone.catalogue import named
from tiny_models import WORDS, tiny

OWN = str(Path(__file__).parents[2] / "examples" / "own_method.py")
SHORT = ("--steps", 20, "--batch", 64, "--latents", 24, "--checkpoint-every", 10)
METHODS = ("--method", "gba(groups=4)", "topk", "l1(coefficient=[0.01, 0.1])", "--l0", 3, 5)


@pytest.fixture
def activations(rows: torch.Tensor, tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", rows.numpy())
    return tmp_path / "rows.npy"


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.parent.name: overtone.load(p.parent).state_dict() for p in sorted(folder.glob("*/config.json"))}


def write_model_and_text(folder: Path) -> None:
    """A model of its own kind and 40 documents, in model/ and docs.jsonl."""
    pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')
    lm = tiny("llama", "[CLS] $A", 0.2)
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    rng = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (50,), generator=rng)) for _ in range(40)]
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def assert_same_weights(a: Path, b: Path) -> None:
    mine, others = weights(a), weights(b)
    assert mine.keys() == others.keys() and mine
    assert all(torch.equal(mine[run][k], others[run][k]) for run in mine for k in mine[run])


def test_methods_l0_and_seeds_in_one_table(call, activations: Path, rows: torch.Tensor, tmp_path: Path):
    pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
    words = ("compare", "--activations", activations, *METHODS, *SHORT, "--seeds", 2, "--out", "c", "--json", "c.json")
    status, out, err = call(*words)
    assert status == 0, err
    assert "12 dictionaries side by side" in out and "topk(k=5)" in out and "explained" in out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found == json.loads((tmp_path / "c" / "results.json").read_text())
    assert [p["label"] for p in found["points"]] == [
        *("gba(groups=4, l0=3)", "gba(groups=4, l0=5)", "topk(k=3)", "topk(k=5)"),
        *("l1(coefficient=0.01)", "l1(coefficient=0.1)"),
    ]
    assert [p["line"] for p in found["points"]] == ["gba(groups=4)"] * 2 + ["topk"] * 2 + ["l1"] * 2
    for point in found["points"]:
        assert point["seeds"] == [0, 1] and all(len(values) == 2 for values in point["metrics"].values())
        assert all(value > 0 for value in point["metrics"]["rows_per_s"])
    mine = overtone.evaluate(overtone.load(tmp_path / "c" / "topk-k=5-24-seed-1"), rows[-60:])
    topk = found["points"][3]["metrics"]
    assert topk["explained_variance"][1] == pytest.approx(mine.explained_variance) and topk["l0"][1] == mine.l0
    page = (tmp_path / "c" / "comparison.md").read_text()
    assert "| `topk(k=5)` | 24 |" in page and "frontier.svg" in page
    assert (tmp_path / "c" / "frontier.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "c" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert [(c["label"], c["latents"]) for c in found["consistency"]] == [(p["label"], 24) for p in found["points"]]
    pair = [overtone.load(tmp_path / "c" / f"topk-k=5-24-seed-{seed}") for seed in (0, 1)]
    alike = overtone.consistency([dictionary.W_dec.detach() for dictionary in pair])
    shown = found["consistency"][3]
    assert shown["groups"]["all"] == alike.groups["all"]._asdict() and shown["random"] == alike.random._asdict()
    assert shown["matched"][0]["low"] == alike.matched[0].low
    assert {"peak 1%", "frequency 10%", "z_score 10%"} < shown["groups"].keys()
    assert "## Consistency" in page and "| random atoms × 24 |" in page and "random atoms × 24" in " ".join(out.split())
    assert (tmp_path / "c" / "consistency.svg").exists() and (tmp_path / "c" / "consistency.png").exists()


def test_groups_see_the_rows_of_one_pass(call, activations: Path, tmp_path: Path):
    words = ("compare", "--activations", activations, *METHODS, *SHORT)
    assert call(*words, "--out", "together")[0] == 0
    status, out, _ = call(*words, "--at-once", 4, "--out", "groups")
    assert status == 0 and "Group 2 of 2: 2 dictionaries" in out
    assert_same_weights(tmp_path / "together", tmp_path / "groups")
    assert call("train", "--activations", activations, *SHORT, "--method", "topk(k=5)", "--out", "alone")[0] == 0
    alone, member = (overtone.load(tmp_path / p).state_dict() for p in ("alone", "together/topk-k=5-24-seed-0"))
    assert all(torch.equal(alone[k], member[k]) for k in alone)


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_a_stopped_comparison_goes_on(
    call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
):
    words = ("compare", "--activations", activations, *METHODS, *SHORT, "--seeds", 1, "--seed", 7, "--at-once", 4)
    assert call(*words, "--out", "whole", "--json", "whole.json")[0] == 0
    real, saves = resumption.save_state, 0

    def stop(*args, **kwargs):
        nonlocal saves
        saves += 1
        if saves == stop_at:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(resumption, "save_state", stop)
        status, _, err = call(*words, "--out", "parts")
    assert status == 130 and "go on with: overtone compare --resume parts" in err
    status, _, err = call("compare", "--resume", "parts", "--json", "parts.json")
    assert status == 0, err
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    one, other = (json.loads((tmp_path / name).read_text())["points"] for name in ("whole.json", "parts.json"))
    for point in (*one, *other):
        point["metrics"].pop("rows_per_s")
    assert one == other


def test_crosscoders_and_skip_transcoders(call, tmp_path: Path):
    write_model_and_text(tmp_path)
    sites = ("resid.0", "resid.1")
    read = ("--model", "model", "--sites", *sites, "--text", "docs.jsonl", "--context", 16)
    assert call("harvest", *read, "--out", "acts")[0] == 0
    words = ("compare", "--store", "acts", "--method", "gba(groups=4)", "topk", "--l0", 3, *SHORT)
    status, out, err = call(*words, "--site", *sites, "--crosscoder", "--out", "c")
    assert status == 0 and "resid.0 + resid.1" in " ".join(out.split()), err
    made = overtone.load(tmp_path / "c" / "topk-k=3-24-seed-0")
    assert [block.site for block in made.layout.reads] == [*sites] and made.layout.onto_itself
    assert json.loads((tmp_path / "c" / "results.json").read_text())["d"] == 32
    status, _, err = call(*words, "--site", "resid.0", "--target", "resid.1", "--skip", "--out", "t")
    assert status == 0 and overtone.load(tmp_path / "t" / "topk-k=3-24-seed-0").parametrisation.skip, err
    status, _, err = call(*words, "--site", *sites, "--out", "x")
    assert status == 2 and "several sites are compared as crosscoders alone" in err
    assert not (tmp_path / "x").exists()


def test_a_member_goes_on_alone_with_the_rows_of_all(call, activations: Path, tmp_path: Path):
    words = ("compare", "--activations", activations, "--method", "topk", "--l0", 3, *SHORT, "--seeds", 2, "--out", "c")
    assert call(*words)[0] == 0
    member = tmp_path / "c" / "topk-k=3-24-seed-1"
    before = overtone.load(member).state_dict()
    for file in (member / "dictionary").iterdir():
        file.unlink()
    (member / "dictionary").rmdir()
    assert call("train", "--resume", "c/topk-k=3-24-seed-1")[0] == 0
    after = overtone.load(member).state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert call("evaluate", "c/topk-k=3-24-seed-1")[0] == 0


def test_a_finished_comparison_is_drawn_anew_and_not_trained_or_measured(call, activations: Path, tmp_path: Path):
    assert call("compare", "--activations", activations, "--method", "topk", "--l0", 3, *SHORT, "--out", "c")[0] == 0
    results = (tmp_path / "c" / "results.json").read_text()
    (tmp_path / "c" / "results.json").unlink()
    activations.unlink()
    assert call("compare", "--resume", "c")[0] == 0
    assert (tmp_path / "c" / "results.json").read_text() == results


def test_without_matplotlib_there_is_all_but_the_picture(
    call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        words = ("compare", "--activations", activations, "--method", "topk", "--l0", 3, *SHORT, "--out", "c")
        status, out, _ = call(*words)
    out = " ".join(out.split())
    assert status == 0 and 'plots need matplotlib: pip install "overtone[report]"' in out
    assert "overtone compare --resume c draws it" in out
    assert (tmp_path / "c" / "comparison.md").exists() and not (tmp_path / "c" / "frontier.svg").exists()
    pytest.importorskip("matplotlib", reason='needs pip install "overtone[report]"')
    assert call("compare", "--resume", "c")[0] == 0
    assert (tmp_path / "c" / "frontier.svg").exists()


def test_a_users_method_is_named_again_to_go_on(call, activations: Path, tmp_path: Path, monkeypatch):
    words = ("--activations", activations, "--method", f"{OWN}:near_top(share=[0.5, 0.8])", *SHORT)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    for verb in ("compare", "train"):
        with monkeypatch.context() as patch:
            patch.setattr(resumption, "save_state", stop)
            status, _, err = call(verb, *words, "--out", verb)
        assert status == 130 and f"overtone {verb} --resume {verb} --parts {OWN}" in err
        status, _, err = call(verb, "--resume", verb)
        assert status == 2 and "unknown part 'NearTop'" in err and "--parts FILE.py" in err
        status, _, err = call(verb, "--resume", verb, "--parts", OWN)
        assert status == 0, err
    assert call("evaluate", "compare/near_top-share=0.5-24-seed-0", "--parts", OWN)[0] == 0
    assert "unknown part" in call("evaluate", "compare/near_top-share=0.5-24-seed-0")[2]


ROWS = ("--activations", "rows.npy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to train on: --model, --site, --text missing"),
        ((*ROWS, "--method", "topkk"), "no method 'topkk'; did you mean 'topk'?"),
        ((*ROWS, "--method", "topk(kk=3)"), "topk has no option 'kk'; did you mean 'k'?; it has k"),
        ((*ROWS, "--method", "topk", "--l0", 99), "k=99 exceeds latents=96"),
        ((*ROWS, "--method", "gba", "--l0", 999), "l0=999"),
        ((*ROWS, "--method", "topk", "--l0", 3.5), "topk wants k: int, and not 3.5"),
        ((*ROWS, "--method", "l1"), "l1 cannot be asked for an L0"),
        ((*ROWS, "--method", "topk", "topk(k=32)"), "topk-k=32-96-seed-0 is asked for twice"),
        ((*ROWS, "--seeds", 0), "seeds=0 must be at least 1"),
        ((*ROWS, "--at-once", 0), "at_once=0 must be at least 1"),
        ((*ROWS, "--downstream"), "--downstream needs a model"),
        ((*ROWS, "--parts", OWN), "--parts is for --resume"),
        ((*ROWS, "--model", "minilm"), "drop --model"),
        (("--resume", "nowhere"), "no comparison at nowhere"),
        (("--resume", ".", "--seeds", 3), "--seeds 3 together with --resume"),
    ],
)
def test_errors_leave_nothing_behind(words: tuple, message: str, call, activations: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    status, _, err = call("compare", *words)
    assert status == 2 and err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_machine_too_small_for_all_at_once(call, activations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tied dictionary keeps 4 numbers a weight: 4 × 4 × 24 × 12 bytes; an untied one twice that."""
    with monkeypatch.context() as patch:
        patch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 4 * 9216}[name])
        status, _, err = call(
            "compare", "--activations", activations, "--method", "topk", "--l0", 3, 5, 7, 9, 11, *SHORT
        )
    assert status == 2 and "5 dictionaries at once need" in err and "train in groups with --at-once 2" in err, err
    assert sorted(tmp_path.iterdir()) == [activations]


def test_what_the_model_loses(call, tmp_path: Path):
    write_model_and_text(tmp_path)
    read = ("--model", "model", "--site", "resid.1", "--text", "docs.jsonl", "--context", 16)
    words = ("--method", "topk", "batch-topk", "--l0", 4, *SHORT, "--downstream", "--contexts", 8)
    status, _, err = call("compare", *read, *words, "--at-once", 1, "--out", "c", "--json", "c.json")
    assert status == 0, err
    points = json.loads((tmp_path / "c.json").read_text())["points"]
    assert call("evaluate", "c/topk-k=4-24-seed-0", "--downstream", "--contexts", 8, "--json", "e.json")[0] == 0
    alone = json.loads((tmp_path / "e.json").read_text())["runs"][0]["metrics"]
    assert {k: v[0] for k, v in points[0]["metrics"].items() if k in alone} == alone
    assert "ce_recovered_mean" in alone


def test_the_methods_are_listed_and_explained(call, tmp_path: Path):
    status, out, _ = call("methods", "--json", "m.json")
    listed = json.loads((tmp_path / "m.json").read_text())["methods"]
    assert status == 0 and [m["name"] for m in listed] == list(named())
    assert "batch-topk" in out and "2412.06410" in out
    assert "overtone.with_frequency_control(method, spectrum, interval):" in " ".join(out.split())
    topk = next(m for m in listed if m["name"] == "topk")
    assert topk["sources"] == ["arXiv 2406.04093"] and topk["dial"] == "k"
    option = topk["options"][0]
    assert option | {"about": ""} == {"name": "k", "type": "int", "required": False, "default": 32, "about": ""}
    status, out, _ = call("methods", "gba", f"{OWN}:near_top")
    assert status == 0 and "activation='jumprelu'" in out and "highest target frequency" in " ".join(out.split())
    status, _, err = call("methods", "gbaa")
    assert status == 2 and "did you mean 'gba'?" in err
