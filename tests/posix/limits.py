"""Surroundings that calls are made in: a limit of the process, a program that runs."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE, with SIGXFSZ blocked: sigtimedwait(2) tells whether it came."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    python_ignores = signal.signal(
        signal.SIGXFSZ, signal.SIG_DFL
    )  # Python ignores it, which drops it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        while signal.sigtimedwait({signal.SIGXFSZ}, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGXFSZ, python_ignores)


@contextmanager
def running_program(path: str) -> Iterator[None]:
    """A program of that name, in the working directory, that runs."""
    shutil.copy("/bin/cat", path)
    os.chmod(path, 0o755)
    process = subprocess.Popen(
        [os.path.abspath(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"  # it runs
        yield
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)
