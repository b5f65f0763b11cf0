/* Publishers and users of block maps against each other, to be run under -fsanitize=thread.
 *
 *     datamap_race SECONDS
 *
 * Each publisher owns some inodes. It publishes one, withdraws it, waits until it is drained, and then changes
 * `content` of it, without a lock, as Python changes blocks. Users acquire, look at the map and at `content`, and
 * release. The sanitizer sees a race if anybody uses a file after it was drained. Another thread withdraws all. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "datamap.h"

enum { PUBLISHERS = 2, USERS = 2, INODES = 8, EXTENTS = 5 };

static struct datamap *map;
static int drain_fd;
static atomic_int stop;
static atomic_ulong acquired, drained;
static uint64_t content[PUBLISHERS * INODES];

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

static void wait_until_drained(uint64_t inode)
{
    while (dm_withdraw(map, inode)) {
        struct pollfd fd = {.fd = drain_fd, .events = POLLIN};
        uint64_t count;
        if (poll(&fd, 1, 1) > 0 && read(drain_fd, &count, sizeof count) < 0)
            require(errno == EAGAIN, "drain_fd cannot be read"); /* the other publisher was faster */
        atomic_fetch_add(&drained, 1);
    }
}

static void *publish(void *argument)
{
    uint64_t base = (uint64_t)(uintptr_t)argument * INODES;
    for (uint64_t round = 1; !atomic_load(&stop); round++) {
        uint64_t inode = base + round % INODES;
        struct dm_extent extents[EXTENTS];
        for (uint64_t i = 0; i < EXTENTS; i++)
            extents[i] = (struct dm_extent){i * 10, content[inode] + i * 100, 5};
        require(!dm_publish(map, inode, content[inode], extents, EXTENTS), "not published");
        require(dm_count(map) <= PUBLISHERS * INODES, "too many files");
        wait_until_drained(inode);
        content[inode] = round;
    }
    return NULL;
}

static void *use(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    while (!atomic_load(&stop)) {
        uint64_t inode = (uint64_t)rand_r(&seed) % (PUBLISHERS * INODES);
        struct dm_file *file = dm_acquire(map, inode);
        if (!file)
            continue;
        atomic_fetch_add(&acquired, 1);
        require(dm_busy(map, inode) > 0, "in use, but not busy");
        uint32_t at = dm_find(file, 21);
        require(at == 2 && file->extents[at].start == content[inode] + 200, "a stale map");
        require(file->size_bytes == content[inode], "a stale size");
        dm_release(map, file);
    }
    return NULL;
}

static void *withdraw_all(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        struct timespec pause = {0, 1000000};
        dm_withdraw_all(map);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[PUBLISHERS + USERS + 1];
    unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    drain_fd = eventfd(0, EFD_NONBLOCK);
    map = dm_new(drain_fd);
    require(drain_fd >= 0 && map, "no memory");
    for (uintptr_t i = 0; i < PUBLISHERS; i++)
        require(!pthread_create(&threads[i], NULL, publish, (void *)i), "no thread");
    for (uintptr_t i = 0; i < USERS; i++)
        require(!pthread_create(&threads[PUBLISHERS + i], NULL, use, (void *)(i + 1)), "no thread");
    require(!pthread_create(&threads[PUBLISHERS + USERS], NULL, withdraw_all, NULL), "no thread");
    sleep(seconds);
    atomic_store(&stop, 1);
    for (int i = 0; i < PUBLISHERS + USERS + 1; i++)
        pthread_join(threads[i], NULL);
    require(dm_count(map) == 0, "files are left");
    printf("acquired %lu drained %lu\n", atomic_load(&acquired), atomic_load(&drained));
    require(atomic_load(&acquired) > 0, "nothing was acquired");
    dm_free(map);
    close(drain_fd);
    return 0;
}
