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
    "controller.c",
    "copy.c",
    "dma.c",
    "engine.c",
    "events.c",
    "features.c",
    "identify.c",
    "io.c",
    "log.c",
    "namespace.c",
    "prp.c",
    "queues.c",
    "sgl.c",
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
    };
    struct controller;

    int controller_create(const struct controller_options *options, struct controller **out);
    void controller_destroy(struct controller *c);
    uint64_t controller_read(struct controller *c, uint32_t offset, uint32_t bytes);
    void controller_write(struct controller *c, uint32_t offset, uint64_t value, uint32_t bytes);
    int controller_map(struct controller *c, int fd, uint64_t offset, uint64_t length,
                       uint64_t iova);
    int controller_unmap(struct controller *c, uint64_t iova, uint64_t length);
    int controller_set_interrupts(struct controller *c, const int *eventfds, uint32_t count);
    int controller_resize(struct controller *c, uint64_t image_bytes);
    void controller_reset(struct controller *c);
    void controller_look_at_doorbells(struct controller *c, bool look);
    void *controller_doorbells(struct controller *c);
    int controller_doorbell_fd(struct controller *c);
    int controller_kick_fd(struct controller *c);
    uint64_t controller_cpu_ns(struct controller *c);
    void controller_get_statistics(struct controller *c, struct controller_statistics *out);
    """
)
ffi.set_source(
    "driver.embedded._controller",
    '#include "driver/embedded/controller.h"',
    sources=[f"{_HERE}/{name}" for name in _SOURCES],
    depends=[
        f"{_HERE}/{name}" for name in ("backend.h", "controller.h", "dma.h", "nvme.h", "queues.h")
    ],
    include_dirs=["."],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[2])
    ffi.compile(verbose=True)
