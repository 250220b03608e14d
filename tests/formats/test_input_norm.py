"""Rows scaled outside of another tool's files; and descriptions that are too large to be any."""

from pathlib import Path

import pytest
import torch

import overtone
from overtone import Dictionary, FormatError, Parametrisation, TopK
from overtone.checkpoint import LARGEST_DESCRIPTION, CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Dictionary(12, 20, TopK(3), Parametrisation(tied=False, input_norm="none", bias="trained", scale=False))
    overtone.export(made, tmp_path / "theirs", "sparsify")
    (tmp_path / "theirs" / "overtone.safetensors").unlink(missing_ok=True)
    return tmp_path / "theirs"


@pytest.mark.parametrize(("norm", "size"), [("row", 1.0), ("rms", 12**0.5)])
def test_rows_are_scaled_as_one_says(norm, size: float, folder: Path, rows: torch.Tensor):
    plain, scaled = overtone.load(folder), overtone.load(folder, input_norm=norm)
    unit = rows / rows.norm(dim=1, keepdim=True) * size
    torch.testing.assert_close(scaled.encode(rows).z, plain.encode(unit).z)
    torch.testing.assert_close(scaled(rows), plain(unit) * rows.norm(dim=1, keepdim=True) / size)
    torch.testing.assert_close(scaled(3 * rows), 3 * scaled(rows))


def test_what_files_know_themselves_is_not_overruled(folder: Path, tmp_path: Path):
    overtone.save(overtone.load(folder), tmp_path / "own")
    with pytest.raises(FormatError, match="overtone's own and knows how it scales rows"):
        overtone.load(tmp_path / "own", input_norm="row")
    normed = Dictionary(12, 20, TopK(3), Parametrisation(tied=False, input_norm="rms", bias="trained", scale=False))
    overtone.export(normed, tmp_path / "rms", "saelens")
    assert overtone.load(tmp_path / "rms", input_norm="rms").parametrisation.input_norm == "rms"
    with pytest.raises(FormatError, match="says itself that rows are scaled by 'rms'"):
        overtone.load(tmp_path / "rms", input_norm="row")


def test_a_description_of_any_size_is_refused_before_it_is_read(folder: Path, tmp_path: Path):
    overtone.save(overtone.load(folder), tmp_path / "own")
    with (tmp_path / "own" / "dictionary.json").open("r+b") as file:
        file.truncate(LARGEST_DESCRIPTION + 1)
    with pytest.raises(CheckpointError, match=r"dictionary.json has 16,777,217 bytes, and may have 16,777,216"):
        overtone.load(tmp_path / "own")
    (tmp_path / "own" / "dictionary.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        overtone.load(tmp_path / "own")
