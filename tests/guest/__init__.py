"""Tests in a guest: a real kernel, its VFIO, an IOMMU, and QEMU's NVMe controllers behind it.

    make guest                           all of it, on each kernel
    make guest T="-k vfio"               pytest's words
    GUEST_KERNELS=6.12 make guest        one kernel: 6.12, 6.1 (Debian's), built
    make guest-quick                     the part that is marked `quick`, on 6.12
    make guest-kernel                    the kernel with IOMMUFD and noiommu, once

A test takes the fixture `guest` (guest.Guest), shared by the tests of a session on a kernel:

    def test_identify(guest: Guest) -> None:
        with guest.bound("mdts5") as bdf:                 # on vfio-pci; afterwards on nvme again
            result = guest.nvmefs("id-ctrl", bdf)         # status, stdout, stderr
            assert "mdts5" in result.stdout               # a controller's name is its serial number

    guest.run([...], check=True, timeout_s=60)            a program, to its end
    guest.python("import driver; ...", "argument")        the project's Python; what it writes
    with guest.start([...]) as job: job.wait_for("word")  beside the test; killed at the end
    guest.read(path), guest.write(path, text)             files, also in /sys and /proc
    guest.bdf("narrow"), guest.give(bdf, "vfio-pci"), guest.disks(bdf)
    guest.machine.qmp("device_del", id="mdts7")           a word with QEMU
    guest.machine.kernel.name                             "6.12", "6.1", "built"
    guest.machine.controllers                             what there is, with the image files: what the
                                                          guest has written is to be read there

Controllers: mdts0, mdts1, mdts5, mdts7, each with a namespace of 512-byte blocks (1) and one of 4096
(2), 64 MiB each; narrow, with one I/O queue pair and two vectors. Root port 7 is free. A test leaves
them on the kernel's driver, and may have written anything to them. Another machine (no IOMMU, other
words for the kernel) is conftest.start(...), for a test of its own.

The guest sees the host's root, so the checkout and .venv are at the same paths. What it writes is
kept in its memory and forgotten with it. It has no network. After each test its kernel must not have
spoken of a DMAR fault, a BUG or a WARNING. Where QEMU, virtiofsd, root or a kernel is missing, tests
are skipped with the reason. Everything is slow, under TCG by a factor of ten: import driver takes
three seconds.

    kernels.py   kernels, fetched or built once, kept in ~/.cache/nvmefs/guest
    initrd.py    init.c and modules, as an archive
    machine.py   QEMU and virtiofsd: start, QMP, end
    agent.py     runs programs in the guest
    guest.py     what tests use
    conftest.py  the fixture, the controllers
"""
