import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overtone.cli import main
from overtone.cli.common import WIDE, console

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Call:
    """Run `overtone …` in this process, in a folder of its own: (exit status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", WIDE)  # as in a file; pytest's workers set COLUMNS

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["overtone", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
