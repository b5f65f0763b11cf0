"""A POSIX filesystem on an NVMe namespace, mounted through pyfuse3; it knows nothing of PCI."""
