/*
 * Counts how often a process makes a file durable: loaded into a daemon by LD_PRELOAD, whatever it is written in.
 * The counter is the first eight bytes of the file $FLUSHES. On the embedded controller one Flush command is one
 * fdatasync() of the image, and one write with Force Unit Access one pwritev2() with RWF_DSYNC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic uint64_t *counter;

__attribute__((constructor)) static void open_counter(void)
{
    const char *path = getenv("FLUSHES");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *page = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    counter = page == MAP_FAILED ? NULL : page;
}

static void *count(const char *name)
{
    if (counter)
        atomic_fetch_add(counter, 1);
    return dlsym(RTLD_NEXT, name);
}

int fsync(int fd)
{
    return ((int (*)(int))count("fsync"))(fd);
}

int fdatasync(int fd)
{
    return ((int (*)(int))count("fdatasync"))(fd);
}

int syncfs(int fd)
{
    return ((int (*)(int))count("syncfs"))(fd);
}

ssize_t pwritev2(int fd, const struct iovec *vectors, int vector_count, off_t offset, int flags)
{
    if (!(flags & (RWF_DSYNC | RWF_SYNC)))
        return pwritev(fd, vectors, vector_count, offset);
    ssize_t (*real)(int, const struct iovec *, int, off_t, int) = count("pwritev2");
    return real(fd, vectors, vector_count, offset, flags);
}
