/* A PCI BAR mapped into this process: registers by single loads and stores, and an end that leaves no dangling
 * address behind.
 *
 * Below: nothing. Above: transports/vfio_device.py; ring.h stores doorbells into the same mapping.
 *
 * Python's memoryview copies bytes as it likes; a register wants one aligned access of its width. 64-bit registers
 * are read and written as two halves, the lower one first: the specification allows it (NVM Express base 2.0,
 * section 3.1.1), and there are controllers that take nothing else.
 */
#ifndef NV_BAR_H
#define NV_BAR_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

static inline uint32_t nv_read32(uintptr_t address)
{
    return *(const volatile uint32_t *)address;
}

static inline void nv_write32(uintptr_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static inline uint64_t nv_read64(uintptr_t address)
{
    uint64_t low = nv_read32(address);
    return low | (uint64_t)nv_read32(address + 4) << 32;
}

static inline void nv_write64(uintptr_t address, uint64_t value)
{
    nv_write32(address, (uint32_t)value);
    nv_write32(address + 4, (uint32_t)(value >> 32));
}

/* Maps [offset, offset + length) of a device's descriptor; 0 and errno when it cannot be. A forked child, which
 * may outlive us, must not hold the device: it does not get the mapping. */
static inline uintptr_t nv_bar_map(int fd, uint64_t offset, uint64_t length)
{
    void *bar = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (bar == MAP_FAILED)
        return 0;
    if (madvise(bar, length, MADV_DONTFORK) < 0) {
        int reason = errno;
        munmap(bar, length);
        errno = reason;
        return 0;
    }
    return (uintptr_t)bar;
}

/* Takes the device away from under its addresses: memory of all-ones takes its place in one step, as an absent
 * device reads, and whoever still stores a doorbell there does no harm. 0, or an errno. */
static inline int nv_bar_detach(uintptr_t bar, uint64_t length)
{
    void *ones = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ones == MAP_FAILED)
        return errno;
    memset(ones, 0xFF, length);
    if (mremap(ones, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)bar) == MAP_FAILED) {
        int reason = errno;
        munmap(ones, length);
        return reason;
    }
    return 0;
}

static inline int nv_bar_unmap(uintptr_t bar, uint64_t length)
{
    return munmap((void *)bar, length) < 0 ? errno : 0;
}

#endif
