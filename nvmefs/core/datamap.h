/* The published block maps: which files the front end may read and overwrite without asking Python.
 *
 * Below: nothing.  Above: hot.c (looks up), nvmefs/dataplane.py (publishes and withdraws).
 *
 *     Python: dm_publish(map, inode, size, extents, n)          the map is true from now on
 *     C:      file = dm_acquire(map, inode) ... I/O ... dm_release(map, file)
 *     Python: dm_withdraw(map, inode)                           no new I/O; returns how many are under way
 *             drain_fd becomes readable when the last of them is done; only then may the blocks change
 *
 *     Python: dm_change(map, inode, ...) for each change of its metadata, dm_commit(map, seq) for each commit
 *     C:      by these an fsync is known to need nothing but a Flush
 *
 *     C:      dm_mark_read(file) for each read; Python: dm_take_read(), dm_next_departed(), and sets atime
 *
 * A map is never changed: it is withdrawn, and published anew. So whoever holds one may read it without a lock.
 */
#ifndef NVMEFS_DATAMAP_H
#define NVMEFS_DATAMAP_H

#include <stdint.h>

/* cffi: begin */
struct dm_extent {
    uint64_t file_block;
    uint64_t start; /* device block */
    uint64_t count; /* blocks of 4,096 bytes */
};

struct datamap *dm_new(int drain_fd);
void dm_free(struct datamap *map);
int dm_publish(struct datamap *map, uint64_t inode, uint64_t size_bytes, const struct dm_extent *extents, uint32_t count);
/* The batches that last changed anything of a published file, and its size or block map. */
void dm_change(struct datamap *map, uint64_t inode, uint64_t seq, uint64_t data_seq);
/* All batches up to `seq` are durable. */
void dm_commit(struct datamap *map, uint64_t seq);
uint64_t dm_committed(struct datamap *map);
uint32_t dm_withdraw(struct datamap *map, uint64_t inode);
/* Withdraws a file unless requests for it are under way. 1: it is published no more. */
int dm_evict(struct datamap *map, uint64_t inode);
void dm_withdraw_all(struct datamap *map);
uint32_t dm_busy(struct datamap *map, uint64_t inode);
int dm_is_published(struct datamap *map, uint64_t inode);
uint32_t dm_count(struct datamap *map);
/* When the file was read last (real time, ns), since this was asked last; 0: not since then. */
uint64_t dm_take_read(struct datamap *map, uint64_t inode);
/* The same of files that were read and are published no more, one after the other: 1, or 0 when there is none left. */
int dm_next_departed(struct datamap *map, uint64_t *inode, uint64_t *read_ns);
/* The map of a file, or NULL. To be given back. */
struct dm_file *dm_acquire(struct datamap *map, uint64_t inode);
void dm_release(struct datamap *map, struct dm_file *file);
void dm_mark_read(struct dm_file *file);
/* cffi: end */

struct dm_file {
    struct dm_file *next;
    uint64_t inode;
    uint64_t size_bytes;
    uint32_t users; /* requests under way */
    uint32_t withdrawn;
    uint32_t count;
    _Atomic uint64_t seq, data_seq; /* dm_change(): what fsync and fdatasync have to see committed */
    _Atomic uint64_t read_ns;       /* dm_mark_read() */
    _Atomic uint32_t unsynced;      /* writes since the last fsync */
    _Atomic uint32_t streak;        /* fsyncs in succession with one write before each */
    struct dm_extent extents[]; /* ascending, apart from each other; what they leave out is a hole */
};

/* Whoever waits for files to be drained looks again. */
void dm_wake(struct datamap *map);
/* The first extent that ends behind file block `block`; file->count if there is none. */
uint32_t dm_find(const struct dm_file *file, uint64_t block);

#endif
