/* Ordering between this CPU and a device that reads and writes our memory, and stores to its registers.
 *
 * Below: nothing. Above: ring.h. C11 atomics order CPUs among themselves; a device is an observer outside that
 * model, so the barriers are named for what they order and spelled per architecture.
 */
#ifndef NV_MMIO_H
#define NV_MMIO_H

#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
/* x86 keeps stores in order and loads in order for write-back and uncached memory: only the compiler must be held. */
#define nv_wmb() __asm__ volatile("" ::: "memory")
#define nv_rmb() __asm__ volatile("" ::: "memory")
/* The one reordering x86 does is a later load before an earlier store: that needs a real fence. A locked
 * instruction is a full fence for write-back memory and cheaper than MFENCE. */
#define nv_mb() __asm__ volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc")
#define nv_relax() __asm__ volatile("pause")
#elif defined(__aarch64__)
/* Outer shareable: the observer is a device, not a CPU of the inner domain. */
#define nv_wmb() __asm__ volatile("dmb oshst" ::: "memory")
#define nv_rmb() __asm__ volatile("dmb oshld" ::: "memory")
#define nv_mb() __asm__ volatile("dmb osh" ::: "memory")
#define nv_relax() __asm__ volatile("yield")
#else
#define nv_wmb() __sync_synchronize()
#define nv_rmb() __sync_synchronize()
#define nv_mb() __sync_synchronize()
#define nv_relax() __asm__ volatile("" ::: "memory")
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "queue entries are little-endian; this host is not"
#endif

/* What an honest controller does is the straight way through the code. */
#define NV_LIKELY(x) __builtin_expect(!!(x), 1)
#define NV_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define NV_COLD __attribute__((noinline, unused))

static inline uint64_t nv_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
