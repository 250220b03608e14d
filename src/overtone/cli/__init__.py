"""The command line: one module per verb. Only this room prints."""

import os
import sys
from typing import Any

EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, IndexError)


def main() -> None:
    """Entry point of the `overtone` command: expected errors become one clear line and exit status 2."""
    import tyro

    from overtone import __version__
    from overtone.cli.compare import compare
    from overtone.cli.evaluate import evaluate
    from overtone.cli.experiment import experiment
    from overtone.cli.export import export
    from overtone.cli.harvest import harvest
    from overtone.cli.latents import latents
    from overtone.cli.methods import methods
    from overtone.cli.plan import plan
    from overtone.cli.plot import plot
    from overtone.cli.probe import probe
    from overtone.cli.quickstart import quickstart
    from overtone.cli.recover import recover
    from overtone.cli.report import report
    from overtone.cli.score import score
    from overtone.cli.store import VERBS as STORE
    from overtone.cli.store import store
    from overtone.cli.theory import theory
    from overtone.cli.train import train
    from overtone.cli.view import view

    if sys.argv[1:] == ["--version"]:
        print(f"overtone {__version__}")
        return
    verbs: dict[str, Any] = {
        "quickstart": quickstart,
        "recover": recover,
        "harvest": harvest,
        "store": store,
        "methods": methods,
        "plan": plan,
        "train": train,
        "compare": compare,
        "evaluate": evaluate,
        "latents": latents,
        "score": score,
        "probe": probe,
        "report": report,
        "view": view,
        "plot": plot,
        "export": export,
        "theory": theory,
        "experiment": experiment,
    }
    name, words, about = "overtone", sys.argv[1:], __import__("overtone").__doc__
    if words[:1] == ["store"]:
        verbs, name, words, about = STORE, "overtone store", words[1:], store.__doc__
    try:
        tyro.extras.subcommand_cli_from_dict(verbs, prog=name, description=about, args=words)
    except KeyboardInterrupt as stop:
        print(f"overtone: stopped{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `overtone … | head` has all that it wanted; what rich prints ends likewise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries once more as it exits
        sys.exit(1)
    except EXPECTED as error:
        if os.environ.get("OVERTONE_TRACEBACK"):
            raise
        print(f"overtone: error: {error}", file=sys.stderr)
        sys.exit(2)
