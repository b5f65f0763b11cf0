"""Builds driver.embedded._controller, the software NVMe controller, with cffi in API mode.

Run as a program it compiles in place, next to the sources.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

_HERE = "driver/embedded"
_SOURCES = [
    "admin.c",
    "backend.c",
    "cache.c",
    "controller.c",
    "copy.c",
    "deallocated.c",
    "dma.c",
    "engine.c",
    "events.c",
    "faults.c",
    "features.c",
    "guard.c",
    "identify.c",
    "io.c",
    "log.c",
    "misfortune.c",
    "namespace.c",
    "prp.c",
    "queues.c",
    "registers.c",
    "sgl.c",
]

_HEADERS = [
    "backend.h",
    "cache.h",
    "controller.h",
    "dma.h",
    "faults.h",
    "guard.h",
    "mix.h",
    "nvme.h",
    "queues.h",
]

ffi = FFI()
ffi.cdef(
    """
    enum { SGL_NONE, SGL_BYTE, SGL_DWORD };
    struct command_limits {
        uint32_t verify_bytes, write_zeroes_bytes;
        uint8_t ranges;
        uint32_t range_blocks;
        uint64_t deallocate_blocks;
        uint16_t copy_range_blocks;
        uint32_t copy_blocks;
        uint16_t copy_ranges;
    };
    struct controller_options {
        int image_fd;
        uint64_t image_bytes;
        uint32_t lba_bytes;
        uint32_t queue_entries;
        uint32_t max_transfer_bytes;
        uint32_t io_queues;
        uint32_t vectors;
        uint32_t poll_ns;
        uint32_t tear_bytes;
        bool read_only;
        bool shadow_doorbells;
        uint8_t sgl;
        struct command_limits limits;
        uint8_t uuid[16];
    };
    struct controller_statistics {
        uint64_t commands;
        uint64_t interrupts;
        uint64_t sleeps;
        uint64_t polls;
        uint64_t bytes_read;
        uint64_t bytes_written;
        uint64_t reads;
        uint64_t writes;
        uint64_t flushes;
        uint64_t errors;
        uint64_t media_errors;
        uint64_t fault_hits;
        uint64_t stray_accesses;
    };
    struct deallocated {
        uint64_t lba;
        uint64_t blocks;
    };
    struct controller;
    enum fault_subject {
        FAULT_ANY_QUEUE, FAULT_IO_QUEUES, FAULT_ENABLE, FAULT_RESET, FAULT_SHUTDOWN, ...
    };
    enum fault_action {
        FAULT_DROP, FAULT_MUTE, FAULT_LOST, FAULT_DELAY, FAULT_BEHIND, FAULT_STATUS, FAULT_EXECUTED,
        FAULT_DUPLICATE, FAULT_CID, FAULT_CID_FLIP, FAULT_CID_STALE, FAULT_SQ_ID, FAULT_SQ_HEAD,
        FAULT_RESULT, FAULT_STALE_PHASE, FAULT_QUIET, FAULT_SPURIOUS, FAULT_EVENT, FAULT_FATAL,
        FAULT_GONE, FAULT_ROT, FAULT_MISDIRECT, FAULT_PATCH, FAULT_FLIP, ...
    };
    struct fault_rule {
        int32_t queue;
        int32_t opcode;
        int32_t selector;
        uint64_t first_lba;
        uint64_t last_lba;
        uint64_t nth;
        uint64_t every;
        uint64_t limit;
        uint32_t probability;
        uint32_t actions;
        uint64_t delay_ns;
        uint32_t behind;
        uint32_t copies;
        uint16_t status;
        uint16_t cid;
        uint16_t sq_id;
        uint16_t sq_head;
        uint32_t result;
        uint32_t event;
        uint64_t blocks;
        uint32_t patch_offset;
        uint32_t patch_bytes;
        uint8_t patch[64];
    };
    struct fault_plan {
        const struct fault_rule *rules;
        uint32_t count;
        uint64_t seed;
        uint64_t cap_mask;
        uint64_t cap_value;
    };

    int controller_create(const struct controller_options *options, struct controller **out);
    void controller_destroy(struct controller *c);
    uint64_t controller_read(struct controller *c, uint32_t offset, uint32_t bytes);
    void controller_write(struct controller *c, uint32_t offset, uint64_t value, uint32_t bytes);
    int controller_map(struct controller *c, int fd, uint64_t offset, uint64_t length,
                       uint64_t iova);
    int controller_unmap(struct controller *c, uint64_t iova, uint64_t length);
    int controller_set_interrupts(struct controller *c, const int *eventfds, uint32_t count);
    int controller_resize(struct controller *c, uint64_t image_bytes);
    int guard_install(void);
    void controller_reset(struct controller *c);
    void controller_look_at_doorbells(struct controller *c, bool look);
    void controller_serve_others(struct controller *c, bool serve);
    int controller_set_faults(struct controller *c, const struct fault_plan *plan);
    int controller_power_cut(struct controller *c, uint64_t seed);
    void *controller_doorbells(struct controller *c);
    int controller_doorbell_fd(struct controller *c);
    int controller_kick_fd(struct controller *c);
    uint64_t controller_cpu_ns(struct controller *c);
    void controller_get_statistics(struct controller *c, struct controller_statistics *out);
    int controller_take_deallocated(struct controller *c, struct deallocated *out, uint32_t most);
    """
)
ffi.set_source(
    "driver.embedded._controller",
    '#include "driver/embedded/controller.h"\n#include "driver/embedded/guard.h"',
    sources=[f"{_HERE}/{name}" for name in _SOURCES],
    depends=[f"{_HERE}/{name}" for name in _HEADERS],
    include_dirs=["."],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    ffi.compile(verbose=True)
