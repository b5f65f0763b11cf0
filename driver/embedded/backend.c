#define _GNU_SOURCE
#include "backend.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#define VECTORS_PER_CALL 1024u /* the kernel's UIO_MAXIOV */

void backend_open(struct backend *backend, int fd, uint64_t size_bytes, bool read_only)
{
    backend->fd = fd;
    backend->can_punch = fd < 0;
    backend->can_zero_range = fd < 0;
    if (fd < 0 || read_only)
        return;
    /* Beyond the end with KEEP_SIZE nothing changes, and the filesystem says whether it knows the call. A
     * block device refuses the range as such, which also tells that the call is known. */
    int probe = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)((size_bytes + 4095) & ~4095ull), 4096);
    backend->can_punch = probe == 0 || (errno != EOPNOTSUPP && errno != ENOSYS);
    backend->can_zero_range = true; /* found out at the first use: a probe could allocate */
}

static int read_null(const struct iovec *vectors, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        memset(vectors[i].iov_base, 0, vectors[i].iov_len);
    return 0;
}

/* Steps over `done` bytes; returns how many vectors are finished. */
static uint32_t vectors_advance(struct iovec *vectors, uint32_t count, size_t done)
{
    uint32_t finished = 0;
    while (finished < count && done >= vectors[finished].iov_len)
        done -= vectors[finished++].iov_len;
    if (finished < count) {
        vectors[finished].iov_base = (uint8_t *)vectors[finished].iov_base + done;
        vectors[finished].iov_len -= done;
    }
    return finished;
}

int backend_read(struct backend *backend, struct iovec *vectors, uint32_t count, uint64_t offset)
{
    if (backend->fd < 0)
        return read_null(vectors, count);
    while (count) {
        uint32_t batch = count < VECTORS_PER_CALL ? count : VECTORS_PER_CALL;
        ssize_t done = batch == 1 ? pread(backend->fd, vectors->iov_base, vectors->iov_len, (off_t)offset)
                                  : preadv(backend->fd, vectors, (int)batch, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO; /* 0: the image was cut short behind our back */
        if (backend->cache) /* what a short read has not reached is read, and laid over, once more */
            cache_overlay(backend->cache, vectors, batch, offset);
        uint32_t finished = vectors_advance(vectors, batch, (size_t)done);
        vectors += finished;
        count -= finished;
        offset += (uint64_t)done;
    }
    return 0;
}

static int write_image(struct backend *backend, struct iovec *vectors, uint32_t count, uint64_t offset, bool durable)
{
    while (count) {
        uint32_t batch = count < VECTORS_PER_CALL ? count : VECTORS_PER_CALL;
        ssize_t done;
        if (durable)
            done = pwritev2(backend->fd, vectors, (int)batch, (off_t)offset, RWF_DSYNC);
        else if (batch == 1)
            done = pwrite(backend->fd, vectors->iov_base, vectors->iov_len, (off_t)offset);
        else
            done = pwritev(backend->fd, vectors, (int)batch, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        uint32_t finished = vectors_advance(vectors, batch, (size_t)done);
        vectors += finished;
        count -= finished;
        offset += (uint64_t)done;
    }
    return 0;
}

int backend_write(struct backend *backend, struct iovec *vectors, uint32_t count, uint64_t offset, bool durable)
{
    uint64_t bytes = 0;
    if (backend->fd < 0)
        return 0;
    if (backend->cache && !durable)
        return cache_write(backend->cache, backend->fd, vectors, count, offset);
    for (uint32_t i = 0; i < count; i++)
        bytes += vectors[i].iov_len;
    int error = write_image(backend, vectors, count, offset, durable);
    if (!error && backend->cache)
        error = cache_supersede(backend->cache, offset, bytes);
    return error;
}

int backend_flush(struct backend *backend)
{
    if (backend->fd < 0)
        return 0;
    int error = backend->cache ? cache_write_back(backend->cache, backend->fd) : 0;
    if (error)
        return error;
    while (fdatasync(backend->fd)) {
        if (errno == EINTR)
            continue;
        /* A descriptor on something without a cache, such as a read-only device: nothing to write back. */
        return errno == EROFS || errno == EINVAL ? 0 : -errno;
    }
    return 0;
}

static int fallocate_whole(int fd, int mode, uint64_t offset, uint64_t length)
{
    while (fallocate(fd, mode, (off_t)offset, (off_t)length)) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static int write_zeroes(struct backend *backend, uint64_t offset, uint64_t length)
{
    static const uint8_t zeroes[65536];
    while (length) {
        struct iovec vector = {(void *)zeroes, length < sizeof zeroes ? length : sizeof zeroes};
        uint64_t bytes = vector.iov_len;
        int error = write_image(backend, &vector, 1, offset, false);
        if (error)
            return error;
        offset += bytes;
        length -= bytes;
    }
    return 0;
}

int backend_zero(struct backend *backend, uint64_t offset, uint64_t length, bool deallocate)
{
    if (backend->fd < 0 || length == 0)
        return 0;
    if (backend->cache)
        return cache_zero(backend->cache, backend->fd, offset, length);
    if (deallocate && backend->can_punch) {
        int error = fallocate_whole(backend->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
        if (error != -EOPNOTSUPP) /* as a block device without discard says, in spite of the probe */
            return error;
    }
    if (backend->can_zero_range) {
        int error = fallocate_whole(backend->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
        if (error != -EOPNOTSUPP && error != -ENOSYS)
            return error;
        backend->can_zero_range = false;
    }
    return write_zeroes(backend, offset, length);
}
