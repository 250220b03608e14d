"""Text that every Python carries: the standard library's docstrings and pydoc's topics (English prose), and its code.

Nothing is imported to read them: modules are parsed.
"""

import ast
import contextlib
import inspect
import itertools
import os
import random
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MIN_DOCSTRING = 40  # characters; shorter ones say little
SMALL_CLASS = 600  # characters; a class with less to say goes into its module's document
# Of the standard library's packages, those with a hundred documented functions or more that every distribution of Python has.
PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def shuffled(texts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sorted, then shuffled, always the same way: any prefix is a fair sample of the whole."""
    ordered = sorted(texts)
    random.Random(0).shuffle(ordered)
    return ordered


def stdlib_sources(packages: Sequence[str] = ("",)) -> Iterator[tuple[str, str]]:
    """(file name within the library, source) of the standard library's modules, or of some packages; tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for folder, subfolders, names in itertools.chain.from_iterable(os.walk(root / package) for package in packages):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS)
        for path in (Path(folder, n) for n in sorted(names) if n.endswith(".py")):
            # A distribution's oddly encoded file is no reason to stop.
            with contextlib.suppress(SyntaxError, UnicodeDecodeError), tokenize.open(path) as file:
                yield path.relative_to(root).as_posix(), file.read()


def stdlib_docs() -> list[tuple[str, str]]:
    """(name, text): one per module (its functions and small classes with it), per larger class, per pydoc topic."""
    seen: set[str] = set()
    docs: list[tuple[str, str]] = []
    for name, source in stdlib_sources():
        if name == "pydoc_data/topics.py":
            unique = {text: key for key, text in reversed(_topics(source).items())}  # some topics share a text
            docs += [(f"topics.{key}", text) for text, key in unique.items()]
            continue
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        texts: dict[str, list[str]] = {module: []}
        for owner, docstrings in _docstrings(source, module).items():
            fresh = [d for d in dict.fromkeys(docstrings) if len(d) >= MIN_DOCSTRING and d not in seen]
            seen.update(fresh)
            texts.setdefault(owner if sum(map(len, fresh)) >= SMALL_CLASS else module, []).extend(fresh)
        docs += [(owner, "\n\n".join(parts)) for owner, parts in texts.items() if parts]
    return docs


def stdlib_functions() -> list[dict[str, str]]:
    """Texts that are known to be of a package and of a kind: every function of `PACKAGES` as prose (its docstring) and as code.

    Records with `name`, `text`, `package` and `kind` ("prose", the docstrings of classes too, or "code", without docstring);
    no text twice.
    """
    found: dict[str, dict[str, str]] = {}
    for name, source in stdlib_sources(PACKAGES):
        package, lines = name.split("/")[0], source.splitlines()
        for node in ast.walk(_parse(source)):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            prose = ast.get_docstring(node) or ""
            texts = {"prose": prose, "code": "" if isinstance(node, ast.ClassDef) else _code(node, lines, bool(prose))}
            for kind, text in texts.items():
                if len(text) >= MIN_DOCSTRING:
                    place = f"{name}:{node.lineno} {node.name}, {kind}"
                    found.setdefault(text, {"name": place, "text": text, "package": package, "kind": kind})
    return list(found.values())


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], documented: bool) -> str:
    """A function's source without its docstring."""
    first = node.lineno - 1
    said = node.body[0]
    # A body on the line of the `def` has no line of its own to leave out.
    cut = documented and said.lineno > node.lineno
    kept = (
        [*lines[first : said.lineno - 1], *lines[said.end_lineno : node.end_lineno]]
        if cut
        else lines[first : node.end_lineno]
    )
    return textwrap.dedent("\n".join(kept)).strip()


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():  # an old escape in someone's docstring is not this caller's business
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except SyntaxError:
            return ast.Module(body=[], type_ignores=[])


def _docstrings(source: str, module: str) -> dict[str, list[str]]:
    """{owner: its docstrings}: a function's go to the module or class it stands in. Parsed, never run."""
    found: dict[str, list[str]] = {}
    todo: list[tuple[ast.AST, str]] = [(_parse(source), module)]
    while todo:
        node, owner = todo.pop()
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            found.setdefault(owner, []).append(text)
        children = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt | ast.excepthandler)]
        for child in reversed(children):
            todo.append((child, f"{owner}.{child.name}" if isinstance(child, ast.ClassDef) else owner))
    return found


def _topics(source: str) -> dict[str, str]:
    """pydoc's help topics, read from the literal `topics = {…}`."""
    for node in _parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(k): inspect.cleandoc(v) for k, v in ast.literal_eval(node.value).items()}
    return {}
