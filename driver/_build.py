"""Builds driver._core: rings, PRPs, CRC-32C and histograms in C (cffi API mode, stable ABI).

    python driver/_build.py        compiles in place, from any directory

What C offers to Python is declared here and nowhere else; the reasons are in driver/core/*.h.
"""

from __future__ import annotations

import os
from pathlib import Path

import cffi

_CORE = Path(__file__).resolve().parent / "core"
_CDEF = """
enum { NV_RING_FULL = -1, NV_RING_PENDING = -1, NV_RING_MAX_DEPTH = 4095,
       NV_PRP_UNALIGNED = -2, NV_PRP_TOO_LONG = -3, NV_PRP_EMPTY = -4, NV_HISTOGRAM_BUCKETS = 510,
       NV_SGL_NONE = 0, NV_SGL_BYTE = 1, NV_SGL_DWORD = 2, NV_SGL_MOST = 256, NV_SGL_LARGE = 32768 };
enum { NV_OTHER, NV_WRITE, NV_READ };
enum { NV_LEASE_USE, NV_LEASE_PARK, NV_LEASE_END };

struct nv_segment { uint64_t iova; uint64_t nbytes; };
struct nv_done { uint16_t cid; uint16_t status; uint32_t result; };
struct nv_late { uint16_t cid; uint16_t kind; uint32_t missed; };
struct nv_lease { uint32_t wish, used, epoch; int attention_fd; };
struct nv_poll { uint32_t estimate_ns; uint16_t skip; uint16_t backoff; };
struct nv_histogram { uint64_t sum; uint64_t max; uint64_t bucket[510]; };

struct nv_ring {
    struct nv_done *done;
    uint32_t depth, capacity, free_count, done_count;
    uint32_t qid, sq_tail, cq_head, phase;
    volatile uint32_t sq_rung, cq_rung;
    uint8_t sgl;
    volatile uint32_t *sq_doorbell, *cq_doorbell, *sq_shadow, *cq_shadow, *sq_event, *cq_event;
    int kick_fd, kick_errno;
    uint32_t poll_max_ns;
    struct nv_poll poll[3];
    struct nv_lease lease;
    uint64_t submitted, completed, failed, doorbells, doorbells_saved, kicks, polled, poll_misses;
    uint64_t timeouts, lost_interrupts, bad_cid, bad_sq_id;
    uint32_t last_bad_cid;
    struct nv_histogram latency_ns[3];
    ...;
};

struct nv_ring *nv_ring_new(uint16_t qid, uint32_t depth, void *sq, void *cq, void *lists,
                            uint64_t lists_iova, uint32_t list_pages, uint32_t page_bytes);
void nv_ring_free(struct nv_ring *);
void nv_ring_reset(struct nv_ring *);
uint32_t nv_ring_inflight(const struct nv_ring *);
int nv_ring_push(struct nv_ring *, const void *command, uint64_t iova, uint64_t nbytes,
                 uint64_t timeout_ns);
int nv_ring_push_segments(struct nv_ring *, const void *command, const struct nv_segment *segments,
                          uint32_t count, uint64_t timeout_ns);
int nv_ring_doorbell(struct nv_ring *);
int nv_ring_cq_doorbell(struct nv_ring *);
uint32_t nv_ring_reap(struct nv_ring *);
int64_t nv_ring_wait(struct nv_ring *, uint16_t cid, int *by_message);
int nv_ring_due(const struct nv_ring *, uint64_t now_ns);
uint32_t nv_ring_overdue(struct nv_ring *, uint64_t now_ns, uint64_t grace_ns);
void nv_ring_extend(struct nv_ring *, uint64_t now_ns, uint64_t timeout_ns);
uint32_t nv_ring_late(const struct nv_ring *, struct nv_late *late, uint32_t max);
int nv_lease_enter(struct nv_lease *);
void nv_lease_leave(struct nv_lease *);
void nv_lease_report(struct nv_lease *);
void nv_lease_ask(struct nv_lease *, uint32_t wish);
uint32_t nv_lease_wish(const struct nv_lease *);
int nv_lease_used(const struct nv_lease *);
int nv_ring_need_event(uint16_t event, uint16_t fresh, uint16_t old);
uint64_t nv_now_ns(void);

enum { NV_PERF_ADAPTIVE, NV_PERF_POLL, NV_PERF_INTERRUPT };
struct nv_perf {
    uint32_t nsid, blocks, depth, block_bytes;
    uint64_t lba_count, data_iova, buffer_bytes, timeout_ns, grace_ns;
    uint8_t opcode, random, wait;
    int wakeup_fd, instructions_fd;
    uint64_t state, completed, failed, sleeps, cpu_ns, instructions;
    uint16_t last_status;
    ...;
};
int nv_perf_count_instructions(void);
int nv_perf_run(struct nv_perf *, struct nv_ring *, uint64_t until_ns, int refill);

uint32_t nv_read32(uintptr_t address);
uint64_t nv_read64(uintptr_t address);
void nv_write32(uintptr_t address, uint32_t value);
void nv_write64(uintptr_t address, uint64_t value);
uintptr_t nv_bar_map(int fd, uint64_t offset, uint64_t length);
int nv_bar_detach(uintptr_t bar, uint64_t length);
int nv_bar_unmap(uintptr_t bar, uint64_t length);

uint64_t nv_prp_list_pages(uint64_t entries, uint32_t per_page);
int64_t nv_prp_build(const struct nv_segment *segments, uint32_t count, uint32_t page_bytes,
                     uint64_t *list, uint64_t list_iova, uint32_t list_pages, uint64_t *prp);

struct nv_sgl_descriptor { uint64_t address; uint32_t length, type; };
int nv_sgl_better(const struct nv_segment *segments, uint32_t count);
int64_t nv_sgl_build(const struct nv_segment *segments, uint32_t count, int mode,
                     struct nv_sgl_descriptor *list, uint64_t list_iova, uint32_t most,
                     uint64_t *prp);

uint32_t nv_histogram_index(uint64_t value);
uint64_t nv_histogram_floor(uint32_t index);
void nv_histogram_add(struct nv_histogram *, uint64_t value);
uint64_t nv_histogram_count(const struct nv_histogram *);
uint64_t nv_histogram_percentile(const struct nv_histogram *, uint32_t share_1e5);

uint32_t nv_crc32c(uint32_t seed, const void *data, size_t length);
uint32_t nv_crc32c_table(uint32_t seed, const void *data, size_t length);
const char *nv_crc32c_method(void);
"""

ffi = cffi.FFI()
ffi.cdef(_CDEF)
# Paths are relative to the root of the repository, from where setuptools builds.
ffi.set_source(
    "driver._core",
    "".join(f'#include "{name}.h"\n' for name in ("bar", "crc32c", "deadline", "perf", "spin")),
    include_dirs=["driver/core"],
    sources=["driver/core/crc32c.c"],
    depends=sorted(f"driver/core/{path.name}" for path in _CORE.glob("*.h")),
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]
    + (["-Werror"] if os.environ.get("NVMEFS_WERROR") else []),
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    ffi.compile(verbose=False)
