"""What the mount options make of the driver's."""

from __future__ import annotations

import pytest

from driver import DriverOptions
from nvmefs.mount import _driver_options
from nvmefs.options import parse


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rw", DriverOptions()),
        ("ro", DriverOptions(read_only=True)),
        ("command_timeout=7", DriverOptions(command_timeout_s=7.0)),
        ("command_timeout=0", DriverOptions(command_timeout_s=None)),
        ("lba_size=4096,interrupt", DriverOptions(lba_bytes=4096, poll="never")),
        ("poll=always,poll_ns=5000", DriverOptions(poll="always", poll_ns=5000)),
    ],
)
def test_options(words: str, expected: DriverOptions) -> None:
    assert DriverOptions(**_driver_options(parse([words]))) == expected
