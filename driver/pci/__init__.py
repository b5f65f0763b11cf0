"""NVMe controllers on this machine's PCI buses: who drives them, what uses them, giving and taking.

sysfs       what the kernel tells: functions, drivers, IOMMU groups, namespaces
"""
