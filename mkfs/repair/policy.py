"""Which findings are repaired: those that are safe to, all of them, or those that the user agrees to.

Below: fixes.py, cli.  Above: fsck.py.
"""

from __future__ import annotations

import sys

from mkfs.check.findings import Finding
from mkfs.check.run import Report
from mkfs.cli import printable
from mkfs.repair.fixes import SAFE


def everything(finding: Finding) -> bool:
    """-y: yes to all."""
    return True


def only_safe(report: Report) -> bool:
    """-a, -p: whether all that was found can be repaired without a loss; else nothing is touched."""
    return set(report.findings.counts) <= SAFE


class Asking:
    """Ask on the terminal, finding by finding, until the user says 'a', all."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.all = False

    def __call__(self, finding: Finding) -> bool:
        if self.all:
            return True
        question = printable(f"{self.spec}: {finding}")
        while True:
            print(f"{question}\nrepair it (y/n/a = all)? ", end="", file=sys.stderr, flush=True)
            answer = sys.stdin.readline()
            if not answer:
                raise KeyboardInterrupt  # the terminal is gone
            if answer.strip().lower() in ("a", "all"):
                self.all = True
            if self.all or answer.strip().lower() in ("y", "yes"):
                return True
            if answer.strip().lower() in ("n", "no"):
                return False


def terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
