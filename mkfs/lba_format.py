"""Whether the drive says that it is faster with other blocks: a remark before a filesystem is made.

Below: driver (Identify Namespace: LBA formats and their relative performance).  Above: mkfs.py.

    remark = await advice(device)           "" where there is nothing better
"""

from __future__ import annotations

from collections.abc import Sequence

from driver.identify_namespace import PERFORMANCE, LbaFormat, why_not
from nvmefs.device import Device
from nvmefs.layout import BLOCK_BYTES


def better(formats: Sequence[LbaFormat], present: int) -> int | None:
    """The index of the fastest format with 4,096-byte blocks, if it is faster than the present one."""

    def rank(index: int) -> int:
        return PERFORMANCE.index(formats[index].performance)

    fitting = [
        index
        for index, form in enumerate(formats)
        if form.lba_bytes == BLOCK_BYTES and not why_not(form)
    ]
    best = min(fitting, key=rank, default=present)
    return best if rank(best) < rank(present) else None


async def advice(device: Device) -> str:
    """What Identify says, and the command; "" where nothing is faster, or nothing can be done.

    Raises DriverError.
    """
    controller = device.controller
    if controller is None or not controller.identify.format_nvm:
        return ""
    formats, present = await controller.manage.formats(device.namespace.nsid)
    index = better(formats, present)
    if index is None:
        return ""
    now, then = formats[present], formats[index]
    return (
        f"the drive says of blocks of {now.lba_bytes} bytes: {now.performance}; of {then.lba_bytes}: "
        f"{then.performance}; to change that, before there is data: "
        f"nvmefs format {device.description} --lbaf {index}"
    )
