"""vfio-user: a PCI function behind a UNIX socket. The protocol, and a server of NVMe controllers.

messages       every message as a typed structure; nothing of it is believed unchecked
channel        messages and file descriptors over a stream socket, each wait bounded
config_space   the PCI configuration space of an NVMe function
interrupts     MSI-X vectors: which eventfd each has, masked or not
function       the device side of a session: what each command does
server         the socket, one client at a time

The client is driver/transports/vfio_user.py. Protocol text: docs/interop/vfio-user.rst of QEMU.
"""
