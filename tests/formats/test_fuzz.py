"""Every kind of dictionary in every format that holds it, spoilt at random: read, or refused with one of overtone's errors.

Never run, never without end, never in more memory than a bound, never anything but finite weights that encode and decode.
"""

import json
import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).with_name("hostile.py")
CASES = 400


def test_spoilt_files_are_read_or_refused():
    """In a process of its own (`hostile.py` says why); `python tests/formats/hostile.py 0 100000` looks further."""
    done = subprocess.run([sys.executable, WORKER, "0", str(CASES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    # The damage is neither so small that nothing is wrong with the files, nor so large that one check sees it all.
    assert found["counts"]["refused"] > CASES / 2 and found["counts"]["read"] > CASES / 20
