"""The driver on QEMU's NVMe controller, without a guest: a controller that nobody here wrote."""
