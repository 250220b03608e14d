"""One thing at a time that a thread does meanwhile, and what goes wrong with it, which is said to whoever gave it."""

from collections.abc import Callable
from threading import Thread


class Background:
    """Work of a kind, one piece under way at most.

    What a piece raises is raised by the first call after it has ended: `check` asks without waiting, `start` and `wait` wait. The
    interpreter does not exit before it has ended.
    """

    def __init__(self, name: str):
        self._name = name
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do this, once what is under way has ended."""
        self.wait()
        self._thread = Thread(target=self._run, args=(work,), name=self._name)
        self._thread.start()

    def check(self) -> None:
        """Raise what has gone wrong; nothing while the work is under way."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is under way; raise what has gone wrong."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, it is the starter's
            self._error = error
