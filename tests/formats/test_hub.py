"""What would go to the Hub, and what is fetched from it, without a network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from overtone import Dictionary, FormatError, load, push
from overtone.formats import hub
from overtone.formats.hub import place
from sample_dictionaries import KINDS, SMALL

yaml = pytest.importorskip("yaml", reason="comes with huggingface_hub")


class Recorded:
    """Takes the place of HfApi: keeps what is uploaded in a folder."""

    def __init__(self, root: Path):
        self.root, self.calls = root, []

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, path_in_repo: str | None, **options: Any) -> None:
        to = self.root / (path_in_repo or "")
        to.mkdir(parents=True)
        for file in Path(folder_path).iterdir():
            (to / file.name).write_bytes(file.read_bytes())


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_what_is_pushed_is_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dictionary, api = KINDS["gba"](SMALL), Recorded(tmp_path / "repo")
    told = push(
        dictionary, "me/some-saes/layer_3", info={"model": "org/tiny", "site": "resid.3"}, private=True, api=api
    )
    assert told == "hub:me/some-saes/layer_3" and api.calls == [("me/some-saes", {"private": True, "exist_ok": True})]
    files = {p.name for p in (tmp_path / "repo" / "layer_3").iterdir()}
    assert files == {"README.md", "cfg.json", "overtone.safetensors", "sae_weights.safetensors"}
    card = (tmp_path / "repo" / "layer_3" / "README.md").read_text()
    assert front_matter(card)["base_model"] == "org/tiny" and "saelens" in front_matter(card)["tags"]

    class Snapshots:
        @staticmethod
        def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
            assert (repo, revision) == ("me/some-saes", "v1")
            assert all(pattern.startswith("layer_3/") for pattern in allow_patterns)
            return str(tmp_path / "repo")

    monkeypatch.setattr(hub, "_hub", lambda: Snapshots)
    again = load("hub:me/some-saes/layer_3@v1")
    assert isinstance(again, Dictionary) and torch.equal(again.W_dec, dictionary.W_dec)


NASTY = 'a": [x]\n---\nlicense: evil\n`|<script>\u2028\x85\ud800é"\\'


def test_nothing_in_a_name_breaks_out_of_the_card(tmp_path: Path):
    api = Recorded(tmp_path / "repo")
    push(KINDS["topk"](SMALL), "me/x", "sparsify", {"model": NASTY, "site": NASTY}, api=api)
    card = (tmp_path / "repo" / "README.md").read_text()
    assert set(front_matter(card)) == {"library_name", "tags"}
    (row,) = (line for line in card.splitlines() if line.startswith("| model"))
    assert row.count("`") == 2 and "<script>" in row.split("`")[1]
    assert hub_text(NASTY) == NASTY


def hub_text(text: str) -> str:
    from overtone.formats.card import _yaml

    return yaml.safe_load(_yaml(text))


@pytest.mark.parametrize(
    "text",
    [
        "hub:me",
        "hub:me/../x",
        "hub:me/x/../../etc",
        "hub:/etc/passwd",
        "hub:me/x@",
        "hub:me/x@../y",
        "hub:a/b c",
        "hub:a//b",
    ],
)
def test_places_that_are_none(text: str):
    with pytest.raises(FormatError, match=r"is no place on the Hub|is no revision"):
        place(text)


def test_places():
    assert place("hub:me/x") == ("me/x", "", None)
    assert place("hub:google/gemma-scope-2b-pt-res/layer_3/width_16k@main") == (
        *("google/gemma-scope-2b-pt-res", "layer_3/width_16k"),
        "main",
    )
