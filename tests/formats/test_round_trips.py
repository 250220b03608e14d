"""Out and back: overtone → format → overtone and format → overtone → format, bit for bit."""

from pathlib import Path

import pytest
import torch

from overtone import FormatError, export, load
from overtone.formats import read
from overtone.formats.exact import FILE
from overtone.formats.table import FORMATS
from sample_dictionaries import FITS, KINDS, SMALL, scale

PAIRS = [(kind, name) for kind, fits in FITS.items() for name in fits]


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(64, SMALL.d, generator=generator) * torch.rand(64, 1, generator=generator) * 10


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_out_and_back(kind: str, name: str, tmp_path: Path, x: torch.Tensor):
    dictionary = KINDS[kind](SMALL)
    folder = export(dictionary, tmp_path / "out", name, {"model": "tiny", "site": "resid.3"})
    again = load(folder)
    assert again.select == dictionary.select and again.parametrisation == dictionary.parametrisation
    assert same_bits(again.state_dict(), dictionary.state_dict())
    # The tool's own files alone say the same; whatever they say goes out again as it came in.
    (folder / FILE).unlink(missing_ok=True)
    alone = read(folder)
    s = scale(dictionary)
    y = x.to(dictionary.W_dec.dtype)
    torch.testing.assert_close(alone.dictionary.encode(y).z, dictionary.encode(y).z * s, rtol=1e-4, atol=1e-5 * s)
    torch.testing.assert_close(alone.dictionary(y), dictionary(y), rtol=1e-4, atol=1e-5 * float(y.abs().max()))
    export(alone.dictionary, tmp_path / "again", name, alone.info)
    assert not (tmp_path / "again" / FILE).exists()
    entry = FORMATS[name]
    first, second = (entry.read(tmp_path / place / entry.weights) for place in ("out", "again"))
    assert same_bits(first, second)
    if entry.config:
        assert (tmp_path / "out" / entry.config).read_text() == (tmp_path / "again" / entry.config).read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_with_a_remedy(kind: str, tmp_path: Path):
    dictionary = KINDS[kind](SMALL)
    for name in set(FORMATS) - set(FITS[kind]):
        with pytest.raises(FormatError, match=r"[Ee]xport|convert"):
            export(dictionary, tmp_path / "out", name)
        assert list(tmp_path.iterdir()) == [], "an error leaves nothing behind"
