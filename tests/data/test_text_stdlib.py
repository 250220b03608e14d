import sys

import pytest

from overtone.data import text_readers, text_stdlib
from overtone.data.text import iter_documents, load_documents


@pytest.fixture(scope="module")
def docs():
    return load_documents("stdlib-docs")


def test_stdlib_docs_are_prose_in_a_fixed_order(docs):
    assert docs == load_documents("stdlib-docs")
    assert docs[500:] == list(iter_documents("stdlib-docs", skip=500))
    assert sum(len(d.text) for d in docs) > 1_000_000
    assert len({d.name for d in docs}) == len(docs)
    names = {d.name for d in docs}
    assert {"argparse", "argparse.ArgumentParser", "topics.assert"} <= names
    assert not any(n.startswith(("test.", "lib2to3", "site-packages")) for n in names)
    assert min(len(d.text) for d in docs) >= text_stdlib.MIN_DOCSTRING


def test_stdlib_docs_hold_no_docstring_twice(docs):
    blocks = [d.text for d in docs]
    assert len(set(blocks)) == len(blocks)


def test_stdlib_docs_are_a_fair_sample_at_any_prefix(docs):
    topics = [d.name.startswith("topics.") for d in docs]
    half = len(docs) // 2
    assert 0.25 < sum(topics[:half]) / sum(topics) < 0.75
    assert [d.name for d in docs] != sorted(d.name for d in docs)


def test_stdlib_is_read_without_importing_it():
    assert "turtledemo.chaos" not in sys.modules and "antigravity" not in sys.modules


def test_stdlib_source_is_code_in_parts():
    docs = load_documents("stdlib-source", limit_chars=500_000)
    assert docs == load_documents("stdlib-source", limit_chars=500_000)
    assert sum(len(d.text) for d in docs) == 500_000
    assert any("def " in d.text for d in docs) and max(len(d.text) for d in docs) <= text_readers.PART


def test_docstrings_go_to_their_module_or_class():
    lines = [
        '"""Module."""',
        "def f():",
        '    """F',
        '       is."""',
        "if 1:",
        "    class C:",
        '        """C."""',
    ]
    source = "\n".join([*lines, '        def m(self): "M."'])
    assert text_stdlib._docstrings(source, "mod") == {"mod": ["Module.", "F\nis."], "mod.C": ["C.", "M."]}
    assert text_stdlib._docstrings("def broken(", "mod") == {}
