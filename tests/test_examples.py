"""Every example runs."""

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_own_activations():
    assert module("own_activations").main() >= 0.95


def test_own_method():
    assert module("own_method").main(steps=100) >= 0.3


def test_sites():
    assert min(module("sites").main(steps=300)) > 0.8
