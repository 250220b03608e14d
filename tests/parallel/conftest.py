from collections.abc import Iterator

import pytest

from parallel.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """`ranks(2, function, *args)`: what function(world, *args) gives on each of two processes."""
    pool = Ranks()
    yield pool
    pool.stop()
