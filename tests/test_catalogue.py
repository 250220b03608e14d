"""The named methods describe themselves; methods written as text; a user's own methods."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import overtone as ot
from overtone import literals
from overtone.catalogue import Entry, named, parse, places
from overtone.config import from_json, to_json
from overtone.runs import claim_folder
from overtone.users_code import parts_named

OWN = str(Path(__file__).parents[1] / "examples" / "own_method.py")


@pytest.fixture(params=named().values(), ids=named())
def entry(request: pytest.FixtureRequest) -> Entry:
    return request.param


def test_every_method_says_what_it_is(entry: Entry):
    assert entry.summary.endswith((".", ":")) and len(entry.summary) > 20
    assert "arXiv" not in entry.summary and "()" not in entry.summary and "( " not in entry.summary
    for option in entry.options.values():
        assert not option.required, "a method by its name alone has the paper's settings"
        assert option.about, f"{entry.name} does not say what {option.name} is (Args: in its docstring)"
        assert literals.fit(option.default, option.annotation) == option.default


def test_every_method_is_reached_by_its_name_and_round_trips(entry: Entry):
    (spec,) = parse(entry.name).specs
    method = spec.method()
    assert method == entry.make() and spec.label == spec.slug == entry.name
    assert from_json(json.loads(json.dumps(to_json(method)))) == method


def test_every_method_keeps_its_options_when_they_are_written_out(entry: Entry):
    written = ", ".join(f"{option.name}={option.default!r}" for option in entry.options.values())
    (spec,) = parse(f"{entry.name}({written})").specs
    assert spec.method() == entry.make()


def test_a_method_as_text():
    (spec,) = parse("topk(k=32)").specs
    assert spec.method() == ot.topk(32)
    assert (spec.label, spec.slug) == ("topk(k=32)", "topk-k=32")
    assert parse(" gba ( l0 = 8, activation='relu') ").specs[0].method() == ot.gba(8.0, activation="relu")
    assert parse("matryoshka(prefixes=(0.5, 1))").specs[0].method() == ot.matryoshka(prefixes=(0.5, 1.0))
    assert type(parse("gba(l0=8)").specs[0].options["l0"]) is float, (
        "as the annotation has it, so that equal runs are equal"
    )


def test_lists_sweep():
    sweep = parse("gba(groups=[5, 10], l0=[16, 32])")
    assert [s.label for s in sweep.specs] == [f"gba(groups={g}, l0={l0})" for g in (5, 10) for l0 in (16, 32)]
    assert [sweep.line(s) for s in sweep.specs] == ["gba(groups=5)"] * 2 + ["gba(groups=10)"] * 2
    penalty = parse("l1(coefficient=[0.01, 0.1])")
    assert {penalty.line(s) for s in penalty.specs} == {"l1"}, "without a dial, the first sweep is the line"
    undialled = parse("gba(l0=None, htf=[0.3, 0.5])").at([32])
    assert {undialled.line(s) for s in undialled.specs} == {"gba(l0=None)"}, "nor with one that is set to nothing"


def test_l0_turns_each_methods_own_dial():
    for text, name in (("gba", "l0"), ("topk", "k"), ("matryoshka", "k")):
        sweep = parse(text).at([16, 32])
        assert [s.options for s in sweep.specs] == [{name: 16}, {name: 32}]
        assert {sweep.line(s) for s in sweep.specs} == {text}
    assert parse("topk").at([8]).specs[0].label == "topk(k=8)"
    assert parse("topk(k=4)").at([16, 32]) == parse("topk(k=4)"), "what is written wins"
    assert parse("l1(coefficient=0.1)").at([16]) == parse("l1(coefficient=0.1)")
    assert parse("gba").at([]) == parse("gba")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topkk", "no method 'topkk'; did you mean 'topk'?; there are gba, "),
        ("topk(kk=3)", "topk has no option 'kk'; did you mean 'k'?; it has k"),
        ("topk(k='3')", "topk wants k: int, and not '3'"),
        ("topk(k=3.5)", "topk wants k: int, and not 3.5"),
        ("topk(k=True)", "topk wants k: int, and not True"),
        ("topk(k=1e999)", "topk wants k: int, and not inf"),
        ("topk(k=[3, 'x'])", "and not 'x'"),
        ("topk(k=[])", "lists no value"),
        ("gba(activation='relux')", "activation: 'jumprelu' or 'relu', and not 'relux'"),
        ("gba(activation=relu)", "no plain value"),
        ("gba(l0=None, htf=2)", "htf=2.0 is a frequency"),
        ("matryoshka(prefixes=(0.5, 'a'))", "wants prefixes: tuple of float"),
        ("topk(3)", "give options by name"),
        ("topk(**{'k': 3})", "give options by name"),
        ("topk(k=3", "is no method: write it as"),
        ("topk(k=3)+1", "is no method: write it as"),
        ("topk(k=__import__('os').getpid())", "no plain value"),
        ("topk(k=(lambda: 3)())", "no plain value"),
        ("nowhere.py:mine", "no file nowhere.py"),
        (
            f"{OWN}:near_tap",
            "has no function 'near_tap'; did you mean 'near_top'?; it has keep_near_top, near_top, main",
        ),
        (f"{OWN}:near_top(shares=3)", "near_top has no option 'shares'; did you mean 'share'?"),
        (f"{OWN}:keep_near_top", "keep_near_top needs y, share"),
        (f"{OWN}:main(steps=1)", "returned"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_allowed(text: str, message: str):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        for spec in parse(text).specs:
            spec.method()
    assert message in str(caught.value)


def test_an_l0_that_a_method_cannot_have():
    with pytest.raises(ValueError, match=r'l1 cannot be asked for an L0 .* "l1\(coefficient=\[…, …\]\)"'):
        parse("l1").at([32])
    with pytest.raises(ValueError, match=r"topk wants k: int, and not 32\.5"):
        parse("topk").at([32.5])


@pytest.mark.parametrize(
    ("value", "annotation", "fitted"),
    [
        (3, float, 3.0), (3, int | None, 3), (None, int | None, None), (3, float | int, 3), (3, float | str, 3.0),
        ((1, 2.5), tuple[float, ...], (1.0, 2.5)), ((1, "a"), tuple[int, str], (1, "a")), ("a", Literal["a", "b"], "a"),
        (True, bool, True), (3.0, int, 3), ([1], Any, [1]),
    ],
)  # fmt: skip
def test_literals_fit(value: Any, annotation: Any, fitted: Any):
    found = literals.fit(value, annotation)
    assert found == fitted and type(found) is type(fitted)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int), (True, float | None), (1, bool), ("3", int), (None, float), (float("nan"), int), ((1, 2), int),
        ((1,), tuple[int, int]), ([1], tuple[int, ...]), ("c", Literal["a", "b"]), (1.5, int | str),
    ],
)  # fmt: skip
def test_literals_do_not_fit(value: Any, annotation: Any):
    with pytest.raises(TypeError):
        literals.fit(value, annotation)


def test_a_users_file_and_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sweep = parse(f"{OWN}:near_top(share=[0.3, 0.6])")
    assert [s.label for s in sweep.specs] == ["near_top(share=0.3)", "near_top(share=0.6)"]
    assert [part.__name__ for part in sweep.entry.parts] == ["NearTop"]
    (tmp_path / "my_methods.py").write_text(Path(OWN).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert parse("my_methods:near_top").specs[0].method().name == "near-top-0.5"
    assert places(["topk(k=3)", "my_methods:near_top", "a.py:b(c='x:y')", "a.py:d"]) == ["my_methods", "a.py"]


def test_a_users_run_is_read_back_with_its_parts_alone(rows: torch.Tensor, tmp_path: Path):
    (spec,) = parse(f"{OWN}:near_top(share=0.3)").specs
    claim_folder(tmp_path / "run")
    ot.RunFolder.create(tmp_path / "run", ot.Run(spec.method(), latents=16, steps=8, batch=32, checkpoint_every=4))
    with pytest.raises(ot.CheckpointError, match=r"unknown part 'NearTop'.*--parts FILE\.py"):
        ot.RunFolder.open(tmp_path / "run")
    folder = ot.RunFolder.open(tmp_path / "run", parts_named([OWN]))
    list(ot.execute(folder, ot.ArrayStream(rows, 32)))
    assert folder.dictionary().select == spec.method().select, "the run knows its own parts"
    with pytest.raises(ot.CheckpointError, match="unknown part 'NearTop'"):
        ot.load(tmp_path / "run")
    assert ot.load(tmp_path / "run", parts=parts_named([OWN])).latents == 16


def test_a_part_of_the_users_may_not_hide_one_of_overtones(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport overtone as ot\n\n@dataclass(frozen=True)\nclass TopK:\n    k: int\n\n"
        "def mine() -> ot.Method:\n    return ot.topk(3)\n"
    )
    with pytest.raises(ValueError, match="calls a class TopK, as overtone does"):
        parse(f"{tmp_path / 'mine.py'}:mine")
