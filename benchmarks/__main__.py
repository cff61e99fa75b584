"""Measure, and write `benchmarks/results.md` with plots.

    sudo .venv/bin/python -m benchmarks [--quick] [--only create,density]

Everything runs in network namespaces and on a node of its own, and is gone at the end. Each group
takes turns between Sandgate and what it is compared with, within one run. On a machine that does
other things as well, only the ratios mean something.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent / "tests"))  # the small internet lives there

from benchmarks.place import Place, place  # noqa: E402 - it needs the path
from benchmarks.report import Report  # noqa: E402

Group = Callable[[Place, Report, bool], None]


def _create(here: Place, report: Report, quick: bool) -> None:
    from benchmarks import containers, creation

    with containers.contenders(here, report) as (new, live):
        creation.measure(here, report, 10 if quick else 100, new)
        creation.measure_commands(report, 20 if quick else 200, live)


def _density(here: Place, report: Report, quick: bool) -> None:
    from benchmarks import density

    density.measure_burst(report, 20 if quick else 100)
    density.measure_sustained(report, 50 if quick else 500)
    density.measure_density(report, 50 if quick else 1000)


def _traffic(here: Place, report: Report, quick: bool) -> None:
    from benchmarks import traffic

    traffic.measure(here, report, rounds=1 if quick else 5)


def _inbound(here: Place, report: Report, quick: bool) -> None:
    from benchmarks import inbound

    inbound.measure_requests(here, report, rounds=1 if quick else 5)
    inbound.measure_files(here, report)


GROUPS: dict[str, Group] = {
    "create": _create,
    "inbound": _inbound,
    "traffic": _traffic,
    "density": _density,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: does it work at all?")
    parser.add_argument("--only", default=",".join(GROUPS), help="groups, separated by commas")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        parser.error(f"--only: no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    report = Report()
    with place() as here:
        for name in chosen:
            GROUPS[name](here, report, options.quick)
    if not options.quick:
        report.write(_HERE)


if __name__ == "__main__":
    main()
