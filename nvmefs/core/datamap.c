#include "datamap.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BUCKETS = 4096 };

struct datamap {
    pthread_mutex_t lock; /* held for a few instructions: table and counters only */
    int drain_fd;
    uint32_t files;
    _Atomic uint64_t committed_seq;
    struct dm_file *bucket[BUCKETS];
    struct dm_file *departed; /* for dm_next_departed() */
};

static struct dm_file **place_of(struct datamap *map, uint64_t inode)
{
    struct dm_file **place = &map->bucket[(inode * 0x9E3779B97F4A7C15u) >> 52];
    while (*place && (*place)->inode != inode)
        place = &(*place)->next;
    return place;
}

static void remove_at(struct datamap *map, struct dm_file **place)
{
    struct dm_file *file = *place;
    *place = file->next;
    map->files--;
    if (file->read_ns) {
        file->next = map->departed;
        map->departed = file;
    } else {
        free(file);
    }
}

struct datamap *dm_new(int drain_fd)
{
    struct datamap *map = calloc(1, sizeof *map);
    if (!map)
        return NULL;
    pthread_mutex_init(&map->lock, NULL);
    map->drain_fd = drain_fd;
    return map;
}

/* Nobody may use the map any more. */
void dm_free(struct datamap *map)
{
    for (uint32_t i = 0; i < BUCKETS; i++)
        while (map->bucket[i])
            remove_at(map, &map->bucket[i]);
    uint64_t inode, read_ns;
    while (dm_next_departed(map, &inode, &read_ns)) {
    }
    pthread_mutex_destroy(&map->lock);
    free(map);
}

/* 0, or -1 without memory, when the file is published already, or when the extents are not in order. */
int dm_publish(struct datamap *map, uint64_t inode, uint64_t size_bytes, const struct dm_extent *extents, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!extents[i].count || (i && extents[i].file_block < extents[i - 1].file_block + extents[i - 1].count))
            return -1;
    struct dm_file *file = calloc(1, sizeof *file + count * sizeof *extents);
    if (!file)
        return -1;
    file->inode = inode;
    file->size_bytes = size_bytes;
    file->seq = file->data_seq = UINT64_MAX; /* until dm_change() says better */
    file->count = count;
    if (count)
        memcpy(file->extents, extents, count * sizeof *extents);
    pthread_mutex_lock(&map->lock);
    struct dm_file **place = place_of(map, inode);
    int taken = *place != NULL;
    if (!taken) {
        *place = file;
        map->files++;
    }
    pthread_mutex_unlock(&map->lock);
    if (taken)
        free(file);
    return taken ? -1 : 0;
}

void dm_change(struct datamap *map, uint64_t inode, uint64_t seq, uint64_t data_seq)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = *place_of(map, inode);
    if (file) {
        file->seq = seq;
        file->data_seq = data_seq;
    }
    pthread_mutex_unlock(&map->lock);
}

/* Of the clock that the kernel stamps files by. It ticks some hundred times a second: mostly there is nothing to do. */
void dm_mark_read(struct dm_file *file)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    uint64_t ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (atomic_load_explicit(&file->read_ns, memory_order_relaxed) != ns)
        atomic_store_explicit(&file->read_ns, ns, memory_order_relaxed);
}

uint64_t dm_take_read(struct datamap *map, uint64_t inode)
{
    uint64_t read_ns = 0;
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = *place_of(map, inode);
    if (file)
        read_ns = atomic_exchange(&file->read_ns, 0);
    pthread_mutex_unlock(&map->lock);
    return read_ns;
}

int dm_next_departed(struct datamap *map, uint64_t *inode, uint64_t *read_ns)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = map->departed;
    if (file)
        map->departed = file->next;
    pthread_mutex_unlock(&map->lock);
    if (!file)
        return 0;
    *inode = file->inode;
    *read_ns = file->read_ns;
    free(file);
    return 1;
}

void dm_commit(struct datamap *map, uint64_t seq)
{
    map->committed_seq = seq;
}

uint64_t dm_committed(struct datamap *map)
{
    return map->committed_seq;
}

/* From now on requests for the file are forwarded. Returns how many are still under way. */
uint32_t dm_withdraw(struct datamap *map, uint64_t inode)
{
    uint32_t users = 0;
    pthread_mutex_lock(&map->lock);
    struct dm_file **place = place_of(map, inode);
    if (*place) {
        users = (*place)->users;
        (*place)->withdrawn = 1;
        if (!users)
            remove_at(map, place);
    }
    pthread_mutex_unlock(&map->lock);
    return users;
}

int dm_evict(struct datamap *map, uint64_t inode)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file **place = place_of(map, inode);
    int idle = !*place || !(*place)->users;
    if (*place && idle)
        remove_at(map, place);
    pthread_mutex_unlock(&map->lock);
    return idle;
}

/* Withdraws every file; does not wait. */
void dm_withdraw_all(struct datamap *map)
{
    pthread_mutex_lock(&map->lock);
    for (uint32_t i = 0; i < BUCKETS; i++) {
        struct dm_file **place = &map->bucket[i];
        while (*place) {
            (*place)->withdrawn = 1;
            if ((*place)->users)
                place = &(*place)->next;
            else
                remove_at(map, place);
        }
    }
    pthread_mutex_unlock(&map->lock);
}

void dm_wake(struct datamap *map)
{
    const uint64_t one = 1;
    if (write(map->drain_fd, &one, sizeof one) < 0) {
        /* EAGAIN alone is possible: the counter is full, so the reader is awake as it is. */
    }
}

/* How many requests for the file are under way. */
uint32_t dm_busy(struct datamap *map, uint64_t inode)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = *place_of(map, inode);
    uint32_t users = file ? file->users : 0;
    pthread_mutex_unlock(&map->lock);
    return users;
}

/* Whether requests for the file are served, just now. */
int dm_is_published(struct datamap *map, uint64_t inode)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = *place_of(map, inode);
    int published = file && !file->withdrawn;
    pthread_mutex_unlock(&map->lock);
    return published;
}

uint32_t dm_count(struct datamap *map)
{
    pthread_mutex_lock(&map->lock);
    uint32_t files = map->files;
    pthread_mutex_unlock(&map->lock);
    return files;
}

struct dm_file *dm_acquire(struct datamap *map, uint64_t inode)
{
    pthread_mutex_lock(&map->lock);
    struct dm_file *file = *place_of(map, inode);
    if (file && file->withdrawn)
        file = NULL;
    if (file)
        file->users++;
    pthread_mutex_unlock(&map->lock);
    return file;
}

void dm_release(struct datamap *map, struct dm_file *file)
{
    int drained = 0;
    pthread_mutex_lock(&map->lock);
    if (!--file->users && file->withdrawn) {
        remove_at(map, place_of(map, file->inode));
        drained = 1;
    }
    pthread_mutex_unlock(&map->lock);
    if (drained)
        dm_wake(map);
}

uint32_t dm_find(const struct dm_file *file, uint64_t block)
{
    uint32_t low = 0, high = file->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (file->extents[middle].file_block + file->extents[middle].count <= block)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
