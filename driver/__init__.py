"""A userspace NVMe driver on trio: controllers, namespaces, DMA memory.

    controller = await driver.open_controller("file:disk.img")
    async with controller:
        namespace = await controller.namespace(1)
        with controller.dma.allocate(4096) as buffer:
            await namespace.read(0, buffer)

Layers, from bottom to top (each file's first lines say more):

    core/            C: barriers, rings, PRPs, histogram, CRC-32C
    transports/      registers, doorbells, DMA mappings, interrupts of one kind of device
    registers, identify*, commands      what is on the wire
    memory           DMA memory
    rings            the memory of a queue pair: queues (tasks wait on it), leases (threads own it)
    queueset, interrupts, recovery, events, bringup     what watches over a controller
    controller       one controller, brought up
    transfer         from buffers to the commands that move them
    namespace        blocks
    tools/           the command line: identify, logs, reset, perf
"""

from __future__ import annotations

from .address import Address, parse_address
from .checksum import crc32c, crc32c_method
from .controller import Controller, ControllerStatistics, open_controller
from .errors import (
    AddressError,
    CommandError,
    CommandTimeout,
    ControllerClosed,
    ControllerError,
    ControllerFailed,
    ControllerGone,
    DeviceBusy,
    DriverError,
    InvalidRequest,
    PoolExhausted,
    TransportError,
    Unsupported,
    WriteProtected,
)
from .identify import IdentifyController
from .identify_namespace import IdentifyNamespace, LbaFormat
from .leases import LeasedQueue
from .memory import DmaBuffer, DmaPool, PoolStatistics
from .namespace import Namespace
from .options import DriverOptions
from .queues import QueuePair
from .requests import QueueStatistics
from .transfer import Buffer

__all__ = [
    "Address",
    "AddressError",
    "Buffer",
    "CommandError",
    "CommandTimeout",
    "Controller",
    "ControllerClosed",
    "ControllerError",
    "ControllerFailed",
    "ControllerGone",
    "ControllerStatistics",
    "DeviceBusy",
    "DmaBuffer",
    "DmaPool",
    "DriverError",
    "DriverOptions",
    "IdentifyController",
    "IdentifyNamespace",
    "InvalidRequest",
    "LbaFormat",
    "LeasedQueue",
    "Namespace",
    "PoolExhausted",
    "PoolStatistics",
    "QueuePair",
    "QueueStatistics",
    "TransportError",
    "Unsupported",
    "WriteProtected",
    "crc32c",
    "crc32c_method",
    "open_controller",
    "parse_address",
]
