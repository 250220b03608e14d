"""`overtone probe` on tiny models: every task, texts of every form, clear errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason='needs pip install "overtone[lm]"')

import overtone
from overtone.cli.probed import pairs
from tiny_models import WORDS, D, tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, dictionaries of two widths, and texts of three classes that differ in their words."""
    tmp_path = tmp_path_factory.mktemp("made")
    for kind in ("llama", "bert"):
        lm = tiny(kind, "[CLS] $A", 0.5)
        lm.model.save_pretrained(tmp_path / kind)
        lm.tokenizer.save_pretrained(tmp_path / kind)
    for width in (20, 40):
        for seed in range(2):
            overtone.save(
                overtone.Dictionary(D, width, overtone.TopK(4), seed=seed), tmp_path / f"topk-{width}-seed-{seed}"
            )
    generator = torch.Generator().manual_seed(0)
    lines = []
    for i in range(120):
        spoken = (i // 3) % 2
        words = torch.randint(3, (8,), generator=generator) + 3 * (i % 3)
        text = " ".join([*(WORDS[w] for w in words), *(["nine", "nine", "nine"] if spoken else ["ten", "ten", "ten"])])
        lines.append({"said": text, "class": "abc"[i % 3], "spoken": bool(spoken)})
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "texts.csv").write_text("said,class\n" + "\n".join(f'"{x["said"]}",{x["class"]}' for x in lines))
    for name in "abc":
        (tmp_path / "by-class" / name).mkdir(parents=True)
        said = [x["said"] for x in lines if x["class"] == name]
        for i, text in enumerate(said):
            (tmp_path / "by-class" / name / f"{i}.txt").write_text(text)
        (tmp_path / "by-line").mkdir(exist_ok=True)
        (tmp_path / "by-line" / f"{name}.txt").write_text("\n".join(said))
    (tmp_path / "running.txt").write_text(" ".join(x["said"] for x in lines))
    return tmp_path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy for each test."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


READ = ("--model", "llama", "--site", "resid.1")
TABLE = ("--labelled", "texts.jsonl", "--text-field", "said", "--label", "class")
ALL = [f"topk-{width}-seed-{seed}" for width in (20, 40) for seed in range(2)]


def test_every_task_at_once(call, folder: Path):
    words = (*ALL, *READ, *TABLE, "--other", "spoken", "--ablate", 1, 3, "--context", 32)
    every = ("sparse", "tpp", "scr", "absorption", "splitting")
    status, out, err = call("probe", *words, "--text", "running.txt", "--task", *every, "--json", "p.json")
    assert status == 0, err
    assert "topk-20 " in out and "seed" not in out, "seeds are shown together"
    found = json.loads((folder / "p.json").read_text())
    tasks = found["tasks"]
    names = {*ALL, "random 20-seed-0", "random 40-seed-0"}
    sparse = tasks["sparse"]["results"]
    assert set(sparse) == names | {"the model, all dimensions", "the model, k best dimensions"}
    assert sparse["the model, all dimensions"]["all"]["accuracy"] > 0.9, "the words are of the class"
    for name in names:
        assert 0.4 < sparse[name]["1"]["accuracy"] <= sparse[name]["1"]["auroc"] + 0.2
        assert sparse[name]["5"]["classes"]["a"]["auroc"] > 0.6
        assert tasks["tpp"]["results"][name].keys() == {"1", "3"} == tasks["scr"]["results"][name].keys()
    assert set(tasks["tpp"]["clean_accuracy"]) == {"a", "b", "c"}
    assert set(tasks["scr"]["probes"]) == {"a / b", "False / True"} and set(tasks["absorption"]["results"]) == names
    expected = {f"topk-20-seed-{s} → topk-40-seed-{1 - s}" for s in range(2)} | {"random 20-seed-0 → random 40-seed-0"}
    assert set(tasks["splitting"]["results"]) == expected
    assert found["settings"]["model"] == "llama" and found["settings"]["seed"] == 0
    status, _, err = call("probe", *words, "--task", "scr", "--random", 0, "--json", "q.json")
    again = json.loads((folder / "q.json").read_text())["tasks"]["scr"]["results"]
    assert again == {name: tasks["scr"]["results"][name] for name in ALL}, "the same seed, the same numbers"


def test_widths_are_paired_by_name():
    assert pairs({"a-8-seed-0": 8, "a-16-seed-0": 16, "b-16-seed-0": 16}) == [("a-8-seed-0", "a-16-seed-0")]
    assert pairs({"small": 8, "large": 32, "middle": 16}) == [("small", "middle"), ("middle", "large")]
    seeds = {f"a-{width}-seed-{seed}": width for width in (8, 16) for seed in range(3)}
    assert len(pairs(seeds)) == 6, "those of one seed started from the same atoms"
    drawn = {"random 8-seed-0": 8, "random 16-seed-0": 16}
    assert pairs({"small": 8, "large": 16} | drawn) == [("small", "large"), ("random 8-seed-0", "random 16-seed-0")]


def test_texts_in_every_form_are_the_same(call, folder: Path):
    given = {
        "table": TABLE,
        "csv": ("--labelled", "texts.csv", *TABLE[2:]),
        "folders": ("--labelled", "by-class"),
        "lines": ("--labelled", "by-line"),
    }
    best = []
    for form, words in given.items():
        status, _, err = call("probe", ALL[0], *READ, *words, "--random", 0, "--pool", "max", "--json", f"{form}.json")
        assert status == 0, err
        results = json.loads((folder / f"{form}.json").read_text())["tasks"]["sparse"]["results"]
        assert set(results[ALL[0]]["1"]["classes"]) == {"a", "b", "c"}
        best.append(results["the model, all dimensions"]["all"]["accuracy"])
    assert min(best) > 0.85


def test_an_encoder_with_words_in_a_template(call, folder: Path):
    words = (ALL[0], "--model", "bert", "--site", "resid.1", "--task", "absorption", "--template", "one {word} two")
    status, out, err = call("probe", *words, "--text", "running.txt", "--random", 0, "--json", "p.json")
    assert status == 0 and "11 words in 11 rows" in " ".join(out.split()), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no dictionary to measure"),
        ((ALL[0], ALL[0], *READ), "is given twice"),
        ((ALL[0],), "does not say which model and site its rows came from; give --model and --site"),
        ((ALL[0], *READ, "--labelled", "nowhere"), "no labelled texts at 'nowhere'"),
        ((ALL[0], *READ, *TABLE[:4], "--label", "kind"), "no label under 'kind' (found: ['class', 'said', 'spoken'])"),
        ((ALL[0], *READ, *TABLE, "--classes", "a", "d"), "no text has the class 'd'; there are a, b, c"),
        ((ALL[0], *READ, *TABLE, "--classes", "a"), "needs two at least"),
        ((ALL[0], *READ, *TABLE, "--task", "tpp", "--classes", "a", "b"), "it needs 3 classes, not 2"),
        ((ALL[0], *READ, *TABLE, "--task", "scr"), "name its column with --other"),
        (
            (ALL[0], *READ, *TABLE, "--task", "scr", "--other", "class"),
            "no text is of 'a' and of 'b'; scr needs all four",
        ),
        ((ALL[0], *READ, *TABLE, "--task", "splitting", "--text", "running.txt"), "different widths; give two"),
        ((ALL[0], *READ, *TABLE, "--task", "tpp", "--pool", "max"), "--pool max is for sparse"),
        ((ALL[0], *READ, "--text", "mine.csv"), "--text mine.csv is for absorption and splitting"),
        ((ALL[0], *READ, *TABLE, "--k", 99), "k=99 must be 1 to"),
        ((ALL[0], *READ, *TABLE, "--test", 0.99), "texts"),
        ((ALL[0], *READ, "--labelled", "by-line", "--other", "x", "--task", "scr"), "texts of a folder have one label"),
        ((ALL[0], *READ, "--labelled", "running.txt"), "is no table of records"),
    ],
)
def test_errors_are_one_clear_line(words: tuple, message: str, call, folder: Path):
    status, _, err = call("probe", *words)
    assert status == 2 and err.startswith("overtone: error: ") and err.count("\n") == 1 and message in err, err
