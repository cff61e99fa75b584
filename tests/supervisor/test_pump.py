"""What HAProxy says reaches the log whole, without a reader that each line wakes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from sandgate.supervisor import pump

_LINES = [b"line %d\n" % number for number in range(500)]


def test_all_is_copied_in_large_pieces_until_the_last_writer_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", pump.__file__], stdin=subprocess.PIPE, stdout=output
        )
        assert process.stdin is not None
        try:
            for line in _LINES:
                process.stdin.write(line)
                process.stdin.flush()
                time.sleep(0.001)
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.stdin.close()
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
    assert log.read_bytes() == b"".join(_LINES)
    sleeps = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
    assert sleeps is not None and int(sleeps[1]) < len(_LINES) / 2
