"""NVMe controllers on this machine's PCI buses: who drives them, what uses them, giving and taking.

kernel      acting on it: writes to sysfs, modules, claims, each with a bound
sysfs       what it tells: functions, drivers, IOMMU groups, namespaces
names       addresses, serials and by-id names; the moving ones are refused
processes   who has a device node open
signatures  what blkid recognises
usage       all that speaks against taking a controller, and the commands that clear it
records     what a controller was, while vfio-pci has it
binding     nvme -> vfio-pci and back
borrow      there for the time of a mount, and back
"""
