"""A controller for the time of a mount: taken from the kernel's nvme driver, given back after it.

    with borrowed("0000:01:00.0"):
        ...                                     it is on vfio-pci

What an administrator bound stays bound. A record (records.py) says that it was only borrowed, so that
after a crash the next one who borrows it gives it back too; or `nvmefs unbind` does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ControllerGone
from . import records
from .binding import bind, unbind
from .sysfs import Machine

log = logging.getLogger("driver.pci")


@contextmanager
def borrowed(bdf: str, machine: Machine | None = None) -> Iterator[None]:
    """Raises AddressError, InUse, TransportError, ControllerGone; at the end what unbind() raises."""
    function = (machine or Machine()).function(bdf)
    if bind(function):
        records.mark_borrowed(function)
    ours = records.is_borrowed(function)
    try:
        yield
    finally:
        if ours:
            try:
                unbind(function)
            except ControllerGone as error:
                log.warning("%s", error)
