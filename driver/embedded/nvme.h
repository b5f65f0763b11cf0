/*
 * What travels between a host and an NVMe controller: register offsets, the 64-byte command, the 16-byte
 * completion, opcodes and status codes. NVM Express Base Specification 1.4; figures are named where a
 * layout comes from one. Little-endian hosts only, as the structures are read in place.
 */
#ifndef EMBEDDED_NVME_H
#define EMBEDDED_NVME_H

#include <assert.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "structures are shared as little-endian memory");

/* Section 3.1: controller registers. */
enum {
    REG_CAP = 0x00,
    REG_VS = 0x08,
    REG_INTMS = 0x0c,
    REG_INTMC = 0x10,
    REG_CC = 0x14,
    REG_CSTS = 0x1c,
    REG_AQA = 0x24,
    REG_ASQ = 0x28,
    REG_ACQ = 0x30,
    REG_DOORBELLS = 0x1000,
    REG_END = 0x2000,
};

#define CC_EN 0x1u
#define CC_CSS(cc) (((cc) >> 4) & 0x7u)
#define CC_MPS(cc) (((cc) >> 7) & 0xfu)
#define CC_AMS(cc) (((cc) >> 11) & 0x7u)
#define CC_SHN(cc) (((cc) >> 14) & 0x3u)
#define CC_IOSQES(cc) (((cc) >> 16) & 0xfu)
#define CC_IOCQES(cc) (((cc) >> 20) & 0xfu)

#define CSTS_RDY 0x1u
#define CSTS_CFS 0x2u
#define CSTS_SHST_MASK 0xcu
#define CSTS_SHST_OCCURRING 0x4u
#define CSTS_SHST_COMPLETE 0x8u

#define NVME_VERSION 0x00010400u
#define NVME_BROADCAST 0xffffffffu
#define NVME_SQE_BYTES 64u
#define NVME_CQE_BYTES 16u
#define NVME_IDENTIFY_BYTES 4096u

/* Figure 104: common command format. */
struct nvme_command {
    uint8_t opcode;
    uint8_t flags; /* FUSE in bits 1:0, PSDT in bits 7:6 */
    uint16_t cid;
    uint32_t nsid;
    uint32_t cdw2;
    uint32_t cdw3;
    uint64_t mptr;
    uint64_t prp1;
    uint64_t prp2;
    uint32_t cdw10;
    uint32_t cdw11;
    uint32_t cdw12;
    uint32_t cdw13;
    uint32_t cdw14;
    uint32_t cdw15;
};
_Static_assert(sizeof(struct nvme_command) == NVME_SQE_BYTES, "Figure 104");
#define COMMAND_HAS_SGL(cmd) ((cmd)->flags >> 6 == 1) /* PSDT 01b: an SGL, metadata contiguous */

/* Figure 122: result; reserved; SQ head | SQ id << 16; command id | phase << 16 | status << 17. */
struct nvme_completion {
    uint32_t dw[4];
};
_Static_assert(sizeof(struct nvme_completion) == NVME_CQE_BYTES, "Figure 122");

/* Dataset Management range: context attributes, length in blocks, first block. */
struct nvme_dsm_range {
    uint32_t attributes;
    uint32_t blocks;
    uint64_t lba;
};

/* Copy source range, descriptor format 0. */
struct nvme_copy_range {
    uint64_t reserved;
    uint64_t lba;
    uint16_t blocks; /* zero-based */
    uint8_t protection[14];
};
_Static_assert(sizeof(struct nvme_copy_range) == 32, "source range entries");

enum {
    ADMIN_DELETE_SQ = 0x00,
    ADMIN_CREATE_SQ = 0x01,
    ADMIN_GET_LOG_PAGE = 0x02,
    ADMIN_DELETE_CQ = 0x04,
    ADMIN_CREATE_CQ = 0x05,
    ADMIN_IDENTIFY = 0x06,
    ADMIN_ABORT = 0x08,
    ADMIN_SET_FEATURES = 0x09,
    ADMIN_GET_FEATURES = 0x0a,
    ADMIN_ASYNC_EVENT = 0x0c,
    ADMIN_DOORBELL_BUFFER = 0x7c,
    ADMIN_FORMAT = 0x80,
};

enum {
    IO_FLUSH = 0x00,
    IO_WRITE = 0x01,
    IO_READ = 0x02,
    IO_COMPARE = 0x05,
    IO_WRITE_ZEROES = 0x08,
    IO_DATASET_MANAGEMENT = 0x09,
    IO_VERIFY = 0x0c,
    IO_COPY = 0x19,
};

/*
 * Status as it stands in a completion above the phase bit: code in bits 7:0, type in bits 10:8, retry
 * delay 12:11, more 13, do-not-retry 14. What repeating the same command cannot cure carries DNR here;
 * media errors do not, as the host's disk may recover.
 */
#define STATUS_DNR 0x4000u
enum {
    STATUS_SUCCESS = 0x000,
    STATUS_INVALID_OPCODE = 0x001 | STATUS_DNR,
    STATUS_INVALID_FIELD = 0x002 | STATUS_DNR,
    STATUS_DATA_TRANSFER_ERROR = 0x004 | STATUS_DNR,
    STATUS_ABORT_REQUESTED = 0x007,
    STATUS_INVALID_NAMESPACE = 0x00b | STATUS_DNR,
    STATUS_SEQUENCE_ERROR = 0x00c | STATUS_DNR,
    STATUS_SGL_SEGMENT_INVALID = 0x00d | STATUS_DNR,
    STATUS_SGL_COUNT_INVALID = 0x00e | STATUS_DNR,
    STATUS_SGL_DATA_LENGTH = 0x00f | STATUS_DNR,
    STATUS_SGL_TYPE_INVALID = 0x011 | STATUS_DNR,
    STATUS_PRP_OFFSET_INVALID = 0x013 | STATUS_DNR,
    STATUS_SGL_GRANULARITY = 0x01e | STATUS_DNR,
    STATUS_WRITE_PROTECTED = 0x020 | STATUS_DNR,
    STATUS_LBA_OUT_OF_RANGE = 0x080 | STATUS_DNR,
    STATUS_CAPACITY_EXCEEDED = 0x081,
    STATUS_CQ_INVALID = 0x100 | STATUS_DNR,
    STATUS_INVALID_QUEUE_ID = 0x101 | STATUS_DNR,
    STATUS_INVALID_QUEUE_SIZE = 0x102 | STATUS_DNR,
    STATUS_ASYNC_EVENT_LIMIT = 0x105 | STATUS_DNR,
    STATUS_INVALID_VECTOR = 0x108 | STATUS_DNR,
    STATUS_INVALID_LOG_PAGE = 0x109 | STATUS_DNR,
    STATUS_INVALID_FORMAT = 0x10a | STATUS_DNR,
    STATUS_INVALID_QUEUE_DELETION = 0x10c | STATUS_DNR,
    STATUS_FEATURE_NOT_SAVEABLE = 0x10d | STATUS_DNR,
    STATUS_FEATURE_NOT_CHANGEABLE = 0x10e | STATUS_DNR,
    STATUS_FEATURE_NOT_PER_NAMESPACE = 0x10f | STATUS_DNR,
    STATUS_SIZE_LIMIT = 0x183 | STATUS_DNR,
    STATUS_WRITE_FAULT = 0x280,
    STATUS_UNRECOVERED_READ = 0x281,
    STATUS_COMPARE_FAILURE = 0x285 | STATUS_DNR,
    STATUS_HELD = 0xffff, /* never posted: the command completes later (Asynchronous Event Request) */
};

#endif
