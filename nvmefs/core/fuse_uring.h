/* FUSE over io_uring as the kernel has laid it out since 6.14 (include/uapi/linux/fuse.h, protocol 7.42). Declared here
 * because the headers that a distribution builds with are older. Documentation/filesystems/fuse-io-uring.rst.
 *
 * The kernel has one queue for each possible CPU, and puts a request into that of the CPU it is made on. An entry is
 * memory for one request: it is registered once, comes back as a completion with a request in it, and goes to the kernel
 * again with the answer. Names, values and data are in `payload`, which is memory of its own, in both directions. */
#ifndef NVMEFS_FUSE_URING_H
#define NVMEFS_FUSE_URING_H

#include <linux/fuse.h>
#include <stdint.h>

#ifndef FUSE_OVER_IO_URING

#define FUSE_OVER_IO_URING (1ull << 41)
enum { FUSE_IO_URING_CMD_REGISTER = 1, FUSE_IO_URING_CMD_COMMIT_AND_FETCH = 2 };
enum { FUSE_URING_IN_OUT_HEADER_SZ = 128, FUSE_URING_OP_IN_OUT_SZ = 128 };

struct fuse_uring_ent_in_out {
    uint64_t flags;
    uint64_t commit_id; /* to be told with the answer */
    uint32_t payload_sz;
    uint32_t padding;
    uint64_t reserved;
};

struct fuse_uring_req_header {
    uint8_t in_out[FUSE_URING_IN_OUT_HEADER_SZ]; /* struct fuse_in_header, then struct fuse_out_header */
    uint8_t op_in[FUSE_URING_OP_IN_OUT_SZ];      /* what follows it, as far as its size is fixed */
    struct fuse_uring_ent_in_out ring_ent_in_out;
};

/* In the last 80 bytes of a submission of 128. */
struct fuse_uring_cmd_req {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t qid;
    uint8_t padding[6];
};

#endif

_Static_assert(sizeof(struct fuse_uring_req_header) == 288, "the kernel's");

#endif
