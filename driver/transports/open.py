"""From an address to an open transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import AddressError

if TYPE_CHECKING:
    from ..address import Address
    from ..options import DriverOptions
    from . import Transport


def open_transport(address: Address, options: DriverOptions) -> Transport:
    """Opens what the address names.

    Raises AddressError for a kind that this version cannot open, DeviceBusy, TransportError.
    """
    if address.kind == "file":
        from ..pci.names import refuse_moving
        from ..pci.sysfs import Machine
        from .embedded import open_embedded

        refuse_moving(Machine(), address.endpoint)
        if options.lba_bytes is None:
            return open_embedded(address.endpoint, read_only=options.read_only)
        return open_embedded(
            address.endpoint, lba_size=options.lba_bytes, read_only=options.read_only
        )
    if address.kind == "qtest":
        from .qtest import open_qtest, parse_endpoint

        images, chosen = parse_endpoint(address.endpoint)
        return open_qtest(images, chosen, address=address.text)
    if address.kind == "pci":
        from .vfio import open_vfio

        return open_vfio(address, options)
    if address.kind == "vfio-user":
        from .vfio_user import open_vfio_user

        return open_vfio_user(address.endpoint, address=address.text)
    raise AddressError(
        f"{address}: this version has no {address.kind} transport: "
        "use an image file (file:disk.img)"
    )
