from pathlib import Path

import pytest

from overtone.files import check_writable


def test_a_file_that_cannot_be_written_is_found_out_before(tmp_path: Path):
    check_writable(tmp_path / "new" / "page.html")
    assert list((tmp_path / "new").iterdir()) == [], "a look leaves nothing"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"page\.html cannot be written .*; give another file"):
        check_writable(tmp_path / "file" / "page.html")
    with pytest.raises(OSError, match="is a folder; give the file"):
        check_writable(tmp_path)
