"""`python -m fuzz [TARGET ...] --seconds N`: look for inputs that break a property.

With atheris, guided by coverage; where there is no atheris, by random changes of the corpus. What
is found is written to the current directory and named in the message.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

GUIDED = find_spec("atheris") is not None
_INSTRUMENTED = ["sandgate.egress", "sandgate.envd", "sandgate.policy"]
_MEMORY_MB = 1024
_SLOWEST_S = 10


def main() -> None:
    """Each target in a process of its own, one after the other."""
    options = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    options.add_argument("targets", nargs="*", metavar="TARGET")
    options.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    options.add_argument(
        "--new", type=Path, default=None, help="directory to write new inputs to, by target"
    )
    options.add_argument("--blind", action="store_true", help="do without atheris")
    options.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    guided = GUIDED and not chosen.blind
    if chosen.alone and guided:
        _fuzz_guided(chosen.targets[0], chosen.seconds, chosen.new)
        return
    from fuzz.targets import TARGETS

    unknown = set(chosen.targets) - TARGETS.keys()
    if unknown:
        options.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if chosen.alone:
        _fuzz_blindly(chosen.targets[0], chosen.seconds)
        return
    failed = []
    for name in chosen.targets or TARGETS:
        command = [sys.executable, "-m", "fuzz", name, "--alone", f"--seconds={chosen.seconds}"]
        command += ["--blind"] if chosen.blind else []
        print(f"{name}:", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            command.append(f"--new={chosen.new or scratch}")
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    if failed:
        sys.exit(f"properties that do not hold: {', '.join(failed)}")


def _fuzz_guided(name: str, seconds: int, new: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from fuzz.targets import CORPUS, MAX_INPUT, TARGETS
    (new / name).mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT}",
            f"-timeout={_SLOWEST_S}",
            f"-rss_limit_mb={_MEMORY_MB}",
            "-print_final_stats=1",
            "-verbosity=1",
            str(new / name),  # the first one is written to
            str(CORPUS / name),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()  # ends the process


def _fuzz_blindly(name: str, seconds: int) -> None:
    from fuzz.targets import TARGETS, corpus

    inputs = corpus(name)
    seed = int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        _try(TARGETS[name], changed(dice, inputs))
        count += 1
    print(f"{count} inputs tried, seed {seed}")


def _try(target: Callable[[bytes], None], data: bytes) -> None:
    try:
        target(data)
    except BaseException:
        path = Path(f"crash-{hashlib.sha256(data).hexdigest()[:16]}")
        path.write_bytes(data)
        print(f"written to {path}")
        raise


def changed(dice: random.Random, inputs: list[bytes]) -> bytes:
    """One of the inputs with some random changes, or two of them spliced."""
    data = bytearray(dice.choice(inputs))
    for _ in range(dice.randint(1, 4)):
        at = dice.randint(0, len(data))
        match dice.randrange(5):
            case 0:
                data[at:at] = dice.randbytes(dice.randint(1, 4))
            case 1:
                del data[at : at + dice.randint(1, 8)]
            case 2:
                data[at : at + 1] = bytes([dice.choice(b"\0\1\r\n :;.*-/\x7f\x80\xc0\xff")])
            case 3:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case _:
                other = dice.choice(inputs)
                data[at:] = other[dice.randint(0, len(other)) :]
    return bytes(data[:4096])


if __name__ == "__main__":
    main()
