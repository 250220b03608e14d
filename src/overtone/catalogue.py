"""The named methods and what their functions say of themselves; and methods by their text, as `topk(k=32)`, a user's own too.

A function of `overtone.methods` that returns a Method is a named method: there is no other list of them.
"""

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple, get_type_hints

from overtone import literals, methods
from overtone.method import Method
from overtone.users_code import load_module, parts_of

DIALS = ("l0", "k")  # what a method calls the number of active latents, where it can be asked for one


class Option(NamedTuple):
    """A hyper-parameter of a named method: its type and what it is, from the function's signature and docstring."""

    name: str
    annotation: Any
    default: Any
    about: str

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty


class Entry(NamedTuple):
    """A function that makes a method, by the name it is called by.

    Attributes:
        name: "batch-topk", or the name of a user's function.
        make: the function.
        parts: classes of the user's own that its methods may be made of.
    """

    name: str
    make: Callable[..., Method]
    parts: tuple[type, ...] = ()

    @property
    def summary(self) -> str:
        """The docstring's first line, without the papers' numbers."""
        line = (inspect.getdoc(self.make) or "").partition("\n")[0]
        return re.sub(r" \(\)", "", re.sub(r"(, )?arXiv \d{4}\.\d{5}", "", line))

    @property
    def sources(self) -> list[str]:
        """The papers that the docstring cites, "arXiv 2506.14002"."""
        return list(dict.fromkeys(re.findall(r"arXiv \d{4}\.\d{5}", inspect.getdoc(self.make) or "")))

    @property
    def options(self) -> dict[str, Option]:
        """Name → hyper-parameter, in the order of the signature."""
        hints, about = get_type_hints(self.make), _arguments(inspect.getdoc(self.make) or "")
        return {
            name: Option(name, hints.get(name, Any), parameter.default, about.get(name, ""))
            for name, parameter in inspect.signature(self.make).parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }

    @property
    def dial(self) -> str | None:
        """The option that sets the number of active latents, by its name: `l0` or `k`."""
        return next((name for name in DIALS if name in self.options), None)


def _arguments(doc: str) -> dict[str, str]:
    """What the `Args:` section of a docstring says, by argument ("htf, ltf: …" is of both)."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", doc, flags=re.MULTILINE)
    found = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section[1], flags=re.MULTILINE) if section else []
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def _functions(changing: bool) -> dict[str, Callable[..., Method]]:
    """Those functions of `overtone.methods` that return a method, in its order, which change one they are given, or do not."""
    found = {}
    for name, function in vars(methods).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            hints = get_type_hints(function)
            if hints.pop("return", None) is Method and (Method in hints.values()) == changing:
                found[name] = function
    return found


def named() -> dict[str, Entry]:
    """Every named method, in the order of `overtone.methods`; what changes another method is none."""
    return {name.replace("_", "-"): Entry(name.replace("_", "-"), f) for name, f in _functions(changing=False).items()}


def additions() -> dict[str, Entry]:
    """What can be added to any method in Python: `overtone.with_aux_k(method, …)`."""
    return {name: Entry(name, f) for name, f in _functions(changing=True).items()}


class Spec(NamedTuple):
    """A method with some of its options set.

    Attributes:
        entry: the function that makes it.
        options: those that were set, checked against the function's annotations.
    """

    entry: Entry
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """As it could be written: "topk(k=32)"; "topk" where nothing is set."""
        return _label(self.entry.name, self.options)

    @property
    def slug(self) -> str:
        """As a file may be called: "topk-k=32"."""
        written = [f"{key}={_shown(value)}" for key, value in self.options.items()]
        return re.sub(r"[^\w.,=-]+", "", "-".join([self.entry.name, *written]))

    def method(self) -> Method:
        """The method; a user's function must return one."""
        made = self.entry.make(**self.options)
        if not isinstance(made, Method):
            raise ValueError(f"{self.entry.name}() returned {made!r}, and not an overtone.Method")
        return made


class Sweep(NamedTuple):
    """A method with lists of values for some of its options: one Spec per combination.

    Attributes:
        entry: the function that makes it.
        fixed: options with one value.
        swept: options with several, in the order written.
    """

    entry: Entry
    fixed: dict[str, Any]
    swept: dict[str, list[Any]]

    @property
    def specs(self) -> list[Spec]:
        """All combinations, the last swept option changing fastest."""
        combinations = itertools.product(*self.swept.values())
        return [Spec(self.entry, self.fixed | dict(zip(self.swept, values, strict=True))) for values in combinations]

    @property
    def axis(self) -> str | None:
        """The option whose values make the points of a frontier's line: the dial if it is set, or else the first swept one."""
        dial = self.entry.dial
        return dial if dial in self.swept or self.fixed.get(dial or "") is not None else next(iter(self.swept), None)

    def line(self, spec: Spec) -> str:
        """What one of the specs is called together with those that differ from it in the axis alone."""
        return _label(self.entry.name, {k: v for k, v in spec.options.items() if k != self.axis})

    def at(self, l0s: Iterable[float]) -> "Sweep":
        """The same at these L0: the method's own dial takes these values, where it is not set already.

        Raises:
            ValueError: the method has no dial and no option of it is set, so that nothing says what to compare at which L0.
        """
        l0s, dial = list(l0s), self.entry.dial
        if not l0s or (dial and dial in self.fixed | self.swept) or (dial is None and self.fixed | self.swept):
            return self
        if dial is None:
            option = next((o.name for o in self.entry.options.values() if _is_number(o)), "option")
            raise ValueError(
                f"{self.entry.name} cannot be asked for an L0 (it has no option {' or '.join(DIALS)}); sweep one of its own "
                f'instead, as "{self.entry.name}({option}=[…, …])", and it is shown at the L0 it reaches'
            )
        values = [_checked(self.entry, dial, value) for value in l0s]
        if len(values) == 1:
            return self._replace(fixed={**self.fixed, dial: values[0]})
        return self._replace(swept={**self.swept, dial: values})


def _label(name: str, options: dict[str, Any]) -> str:
    return name + (f"({', '.join(f'{k}={_shown(v)}' for k, v in options.items())})" if options else "")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _is_number(option: Option) -> bool:
    return isinstance(option.default, float) or option.annotation in (int, float)


def parse(text: str) -> Sweep:
    """A method as written: `topk`, `topk(k=32)`, `topk(k=[16, 32])` for two; `my_module:mine(…)` or `file.py:mine(…)`.

    Values are Python literals (numbers, text in quotes, True, None, tuples), checked against the function's annotations;
    nothing is evaluated. A list means each of its values in turn. A user's module or file is imported: whoever writes its
    name asks for that.

    Raises:
        ValueError: what is wrong, what was written, and what is allowed.
    """
    name, bracket, _ = text.strip().partition("(")
    entry = find(name.strip())
    keywords = _keywords(text, text.strip()[len(name) :]) if bracket else {}
    fixed, swept = {}, {}
    for key, value in keywords.items():
        if key not in entry.options:
            raise ValueError(f"{entry.name} has no option {key!r}{_known(key, entry.options, 'it has')}")
        if isinstance(value, list):
            if not value:
                raise ValueError(f"{key}=[] in {text!r} lists no value; give at least one")
            swept[key] = [_checked(entry, key, item) for item in value]
        else:
            fixed[key] = _checked(entry, key, value)
    missing = [option.name for option in entry.options.values() if option.required and option.name not in keywords]
    if missing:
        raise ValueError(f"{entry.name} needs {', '.join(missing)}: write {entry.name}({missing[0]}=…)")
    return Sweep(entry, fixed, swept)


def _keywords(text: str, call: str) -> dict[str, Any]:
    """The keyword arguments of `(…)` as literal values."""
    try:
        tree = ast.parse(f"_{call}", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f'{text!r} is no method: write it as "topk(k=32)", options by name ({error.msg})') from error
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
        raise ValueError(f'{text!r} is no method: write it as "topk(k=32)"')
    if tree.args or any(keyword.arg is None for keyword in tree.keywords):
        raise ValueError(f'{text!r}: give options by name, as in "topk(k=32)"')
    values: dict[str, Any] = {}
    for keyword in tree.keywords:
        assert keyword.arg is not None
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise ValueError(
                f"{keyword.arg}={ast.unparse(keyword.value)} in {text!r} is no plain value; give a number, True, None, a tuple "
                "or text in quotes"
            ) from error
    return values


def _checked(entry: Entry, key: str, value: Any) -> Any:
    annotation = entry.options[key].annotation
    try:
        return literals.fit(value, annotation)
    except TypeError as error:
        raise ValueError(f"{entry.name} wants {key}: {literals.name(annotation)}, and not {value!r}") from error


def _known(wanted: str, names: Iterable[str], introduction: str) -> str:
    """The end of an error about an unknown name: the closest known one, and all of them."""
    known = list(names)
    close = get_close_matches(wanted, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"{meant}; {introduction} {', '.join(known) or 'none'}"


def find(name: str) -> Entry:
    """A named method, or the function `name` of a user's own `module:name` or `file.py:name`."""
    place, colon, function = name.rpartition(":")
    if not colon:
        known = named()
        if name not in known:
            raise ValueError(
                f"there is no method {name!r}{_known(name, known, 'there are')} (see `overtone methods`). "
                "Your own is given as FILE.py:NAME or MODULE:NAME"
            )
        return known[name]
    module = load_module(place)
    made = getattr(module, function, None)
    if not inspect.isfunction(made):
        functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise ValueError(f"{place} has no function {function!r}{_known(function, functions, 'it has')}")
    return Entry(function, made, parts_of(module))


def places(texts: Iterable[str]) -> list[str]:
    """The user's modules and files in methods as written."""
    names = (text.partition("(")[0].strip() for text in texts)
    return list(dict.fromkeys(name.rpartition(":")[0] for name in names if ":" in name))
