/*
 * Where the blocks live: an image (a file or a block device, given as an open descriptor) or nothing at
 * all ("null": reads are zeroes, writes are dropped; for measuring what lies above). Before an image there may
 * be a volatile write cache (cache.c). All functions return 0 or a negative errno and move everything or fail.
 */
#ifndef EMBEDDED_BACKEND_H
#define EMBEDDED_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cache.h"

struct backend {
    int fd; /* -1: the null backend */
    struct cache *cache; /* NULL: the host's page cache is the only one */
    bool can_punch;
    bool can_zero_range;
};

void backend_open(struct backend *backend, int fd, uint64_t size_bytes, bool read_only);

/* The vectors are consumed: a short transfer advances them. */
int backend_read(struct backend *backend, struct iovec *vectors, uint32_t count, uint64_t offset);
int backend_write(struct backend *backend, struct iovec *vectors, uint32_t count, uint64_t offset, bool durable);
int backend_flush(struct backend *backend);

/* Afterwards the range reads as zeroes. deallocate: the space may go back to the host. */
int backend_zero(struct backend *backend, uint64_t offset, uint64_t length, bool deallocate);

#endif
