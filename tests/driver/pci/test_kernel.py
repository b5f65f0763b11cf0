"""driver.pci.kernel: a write that is refused, one that never returns, a claim."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from driver.errors import TransportError
from driver.pci import kernel


def test_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "driver_override"
    path.touch()
    kernel.write_bounded(path, "vfio-pci\n")
    assert path.read_text() == "vfio-pci\n"


def test_gone(tmp_path: Path) -> None:
    """It must not be made."""
    with pytest.raises(TransportError, match="unbind: not there"):
        kernel.write_bounded(tmp_path / "unbind", "x")
    assert os.listdir(tmp_path) == []


def test_the_kernels_reason() -> None:
    with pytest.raises(TransportError, match=r"writing 'x' to /dev/full: No space left on device"):
        kernel.write_bounded(Path("/dev/full"), "x\n")


def test_a_write_that_does_not_return(tmp_path: Path) -> None:
    """A FIFO that nobody reads, as a driver that does not let go."""
    path = tmp_path / "unbind"
    os.mkfifo(path)
    start = time.monotonic()
    with pytest.raises(TransportError, match=r"has not come back within 0\.2 s"):
        kernel.write_bounded(path, "0000:01:00.0", bound_s=0.2)
    assert time.monotonic() - start < 5


def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modprobe = tmp_path / "modprobe"
    monkeypatch.setattr(kernel, "program", lambda _name: None)
    with pytest.raises(TransportError, match="module x is not loaded, and there is no modprobe"):
        kernel.load_module("x")
    monkeypatch.setattr(kernel, "program", lambda _name: str(modprobe))
    modprobe.write_text("#!/bin/sh\necho FATAL: $1 not found >&2; exit 1\n")
    modprobe.chmod(0o755)
    with pytest.raises(TransportError, match="x cannot be loaded: FATAL: x not found"):
        kernel.load_module("x")
    modprobe.write_text(f"#!/bin/sh\necho $1 > {tmp_path}/loaded\n")
    kernel.load_module("x")
    assert (tmp_path / "loaded").read_text() == "x\n"


def test_waiting() -> None:
    answers = [False, False, True]
    assert kernel.wait_until(lambda: answers.pop(0), 5)
    assert not kernel.wait_until(lambda: False, 0.05)


@pytest.mark.parametrize(("number", "claimed"), [(errno.EBUSY, True), (errno.EACCES, False)])
def test_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, claimed: bool
) -> None:
    node = tmp_path / "nvme0n1"
    node.touch()
    assert not kernel.is_claimed(node)

    def refuse(path: Path, flags: int) -> int:
        assert flags & os.O_EXCL
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    assert kernel.is_claimed(node) is claimed
    with pytest.raises(OSError, match=os.strerror(number)):
        kernel.claim(node)
