/*
 * The embedded controller under sanitizers: a small host in C, several threads, everything at once.
 *
 *   stress IMAGE SECONDS
 *
 * Two threads do I/O on a queue pair each (shadow doorbells, random pauses, data checked), one maps and
 * unmaps memory, one reads registers and statistics; then a reset under load, a shutdown, and again.
 * Host accesses are atomic where a driver's are, so that a race reported is the controller's.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "driver/embedded/controller.h"

#define MEMORY (4u << 20)
#define IOVA 0x100000ull
#define ENTRIES 16u
#define QUEUES 2u

struct queue {
    uint32_t id, tail, head, phase;
    uint64_t seed;
    uint32_t commands;
};

static struct controller *controller;
static uint8_t *memory;
static int memory_fd, stop, deaf;
static uint64_t image_bytes;

static void require(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "failed: %s\n", what);
        abort();
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Page n of the memory: queue q has its rings in 2q and 2q+1, its data from 16 + 4q on and descriptors in 40 + q;
 * 10, 11: shadow doorbells. */
static uint8_t *page(uint32_t n)
{
    return memory + 4096 * n;
}

static uint64_t iova(uint32_t n)
{
    return IOVA + 4096 * n;
}

static void doorbell(uint32_t index, uint32_t value)
{
    uint32_t *shadow = (uint32_t *)page(10) + index, *event = (uint32_t *)page(11) + index;
    if (index >= 2) {
        uint32_t old = __atomic_exchange_n(shadow, value, __ATOMIC_SEQ_CST);
        uint32_t seen = __atomic_load_n(event, __ATOMIC_SEQ_CST);
        if ((uint16_t)(value - seen - 1) >= (uint16_t)(value - old))
            return;
    }
    uint64_t one = 1;
    __atomic_store_n((uint32_t *)controller_doorbells(controller) + index, value, __ATOMIC_RELEASE);
    require(write(controller_kick_fd(controller), &one, sizeof one) == sizeof one, "kick");
}

/* Status of the next completion, or -1 when the controller was reset underneath. */
static int reap(struct queue *q)
{
    struct nvme_completion *entry = (struct nvme_completion *)page(2 * q->id + 1) + q->head;
    double deadline = seconds() + 20;
    for (;;) {
        uint32_t last = __atomic_load_n(&entry->dw[3], __ATOMIC_ACQUIRE);
        if ((last >> 16 & 1) == q->phase) {
            if (++q->head == ENTRIES) {
                q->head = 0;
                q->phase ^= 1;
            }
            doorbell(2 * q->id + 1, q->head);
            return (int)(last >> 17 & 0x7ff);
        }
        if (__atomic_load_n(&deaf, __ATOMIC_ACQUIRE))
            return -1;
        require(seconds() < deadline, "a completion in time");
    }
}

static int run(struct queue *q, struct nvme_command command)
{
    memcpy(page(2 * q->id) + 64 * q->tail, &command, sizeof command);
    q->tail = (q->tail + 1) % ENTRIES;
    doorbell(2 * q->id, q->tail);
    return reap(q);
}

static uint32_t pick(struct queue *q, uint32_t limit)
{
    q->seed = q->seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(q->seed >> 33) % limit;
}

/* What was written is copied, and read back by an SGL of three pieces in a segment and a last segment. */
static int copy_and_gather(struct queue *q, uint32_t lba)
{
    uint32_t data = 16 + 4 * q->id, lists = 40 + q->id;
    struct nvme_copy_range range = {.lba = lba, .blocks = 15};
    memcpy(page(lists), &range, sizeof range);
    struct nvme_command command = {.opcode = IO_COPY, .nsid = 1, .prp1 = iova(lists), .cdw10 = lba + 12288};
    int status = run(q, command);
    if (status)
        return status;
    uint32_t cut = 1 + pick(q, 4000), rest = 8192 - cut - 100;
    uint64_t sgl[][2] = {
        {iova(data + 2) + 100, cut},
        {iova(lists) + 512, 32 | 3ull << 60},
        {iova(data + 2), 100},
        {iova(data + 2) + 100 + cut, rest},
    };
    memcpy(page(lists), sgl, 32);
    memcpy(page(lists) + 512, sgl + 2, 32);
    memset(page(data + 2), 0, 8192);
    command = (struct nvme_command){.opcode = IO_READ, .flags = 0x40, .nsid = 1, .prp1 = iova(lists), .prp2 = 32 | 2ull << 60,
                                    .cdw10 = lba + 12288, .cdw12 = 15};
    status = run(q, command);
    require(status || !memcmp(page(data), page(data + 2), 8192), "the copy comes back");
    return status;
}

/* Writes two pages, reads them back elsewhere, compares; now and then another command, now and then a pause. */
static void *io_thread(void *argument)
{
    struct queue *q = argument;
    uint32_t data = 16 + 4 * q->id;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        uint32_t lba = q->id * 4096 + pick(q, 4000);
        memset(page(data), (int)pick(q, 256), 8192);
        struct nvme_command command = {.opcode = IO_WRITE, .nsid = 1, .prp1 = iova(data), .prp2 = iova(data + 1)};
        command.cdw10 = lba;
        command.cdw12 = 15;
        if (run(q, command))
            break;
        command.opcode = IO_READ;
        command.prp1 = iova(data + 2);
        command.prp2 = iova(data + 3);
        if (run(q, command))
            break;
        require(!memcmp(page(data), page(data + 2), 8192), "data comes back");
        static const uint8_t others[] = {IO_FLUSH, IO_COMPARE, IO_WRITE_ZEROES, IO_VERIFY, 0x77};
        command.opcode = others[pick(q, sizeof others)];
        if (run(q, command) < 0)
            break;
        command.opcode = IO_WRITE;
        command.prp1 = iova(data);
        command.prp2 = iova(data + 1);
        if (run(q, command) || copy_and_gather(q, lba))
            break;
        q->commands += 6;
        struct timespec pause = {0, pick(q, 4) * 20000};
        if (pick(q, 4) == 0)
            nanosleep(&pause, NULL);
    }
    return NULL;
}

/* Rules that a host which waits for each command survives: commands that wait, interrupts for nothing. */
static void misbehave(uint32_t turn)
{
    struct fault_rule rules[] = {
        {.queue = FAULT_IO_QUEUES, .opcode = -1, .selector = -1, .last_lba = UINT64_MAX, .every = 7,
         .actions = FAULT_DELAY | FAULT_SPURIOUS, .delay_ns = 50000},
        {.queue = FAULT_IO_QUEUES, .opcode = -1, .selector = -1, .last_lba = UINT64_MAX, .probability = 1u << 29,
         .actions = FAULT_DELAY | FAULT_BEHIND, .delay_ns = 90000, .behind = 1},
    };
    struct fault_plan plan = {.rules = rules, .count = turn % 3, .seed = turn};
    require(!controller_set_faults(controller, &plan), "faults");
}

static void *map_thread(void *argument)
{
    (void)argument;
    for (uint32_t turn = 0; !__atomic_load_n(&stop, __ATOMIC_ACQUIRE); turn++) {
        require(!controller_map(controller, memory_fd, 0, 65536, 0x70000000), "map");
        require(!controller_unmap(controller, 0x70000000, 65536), "unmap");
        if (turn % 32 == 0)
            misbehave(turn / 32);
        require(turn % 64 || !controller_resize(controller, image_bytes), "resize");
    }
    return NULL;
}

static void *register_thread(void *argument)
{
    struct controller_statistics statistics;
    (void)argument;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        require((controller_read(controller, REG_CSTS, 4) & CSTS_CFS) == 0, "no fatal status");
        controller_write(controller, REG_INTMS, 1, 4);
        controller_get_statistics(controller, &statistics);
        controller_cpu_ns(controller);
        controller_write(controller, REG_INTMC, 1, 4);
    }
    return NULL;
}

static void wait_csts(uint32_t mask, uint32_t value)
{
    double deadline = seconds() + 20;
    while ((controller_read(controller, REG_CSTS, 4) & mask) != value)
        require(seconds() < deadline, "CSTS in time");
}

static void bring_up(struct queue *queues)
{
    memset(memory, 0, 4096 * 16);
    for (uint32_t id = 0; id <= QUEUES; id++)
        queues[id] = (struct queue){.id = id, .phase = 1, .seed = 77 * id};
    controller_write(controller, REG_AQA, (ENTRIES - 1) | (ENTRIES - 1) << 16, 4);
    controller_write(controller, REG_ASQ, iova(0), 8);
    controller_write(controller, REG_ACQ, iova(1), 8);
    controller_write(controller, REG_CC, CC_EN | 6u << 16 | 4u << 20, 4);
    wait_csts(CSTS_RDY | CSTS_CFS, CSTS_RDY);
    struct nvme_command command = {.opcode = ADMIN_DOORBELL_BUFFER, .prp1 = iova(10), .prp2 = iova(11)};
    require(run(&queues[0], command) == 0, "shadow doorbells");
    for (uint32_t id = 1; id <= QUEUES; id++) {
        struct nvme_command cq = {.opcode = ADMIN_CREATE_CQ, .prp1 = iova(2 * id + 1)};
        cq.cdw10 = id | (ENTRIES - 1) << 16;
        cq.cdw11 = 3 | id << 16;
        require(run(&queues[0], cq) == 0, "create CQ");
        struct nvme_command sq = {.opcode = ADMIN_CREATE_SQ, .prp1 = iova(2 * id), .cdw10 = cq.cdw10, .cdw11 = 1 | id << 16};
        require(run(&queues[0], sq) == 0, "create SQ");
    }
}

/* One life of the controller; returns the commands executed. The last part is a reset or a shutdown under load. */
static uint32_t one_round(const struct controller_options *options, double length, int reset)
{
    struct queue queues[QUEUES + 1];
    pthread_t threads[QUEUES + 2];
    int fds[QUEUES + 1];
    uint32_t commands = 0;
    stop = deaf = 0;
    require(!controller_create(options, &controller), "create");
    require(!controller_map(controller, memory_fd, 0, MEMORY, IOVA), "map");
    for (uint32_t i = 0; i <= QUEUES; i++)
        fds[i] = eventfd(0, EFD_NONBLOCK);
    require(!controller_set_interrupts(controller, fds, QUEUES + 1), "interrupts");
    bring_up(queues);
    for (uint32_t id = 1; id <= QUEUES; id++)
        pthread_create(&threads[id - 1], NULL, io_thread, &queues[id]);
    pthread_create(&threads[QUEUES], NULL, map_thread, NULL);
    pthread_create(&threads[QUEUES + 1], NULL, register_thread, NULL);
    struct timespec pause = {(time_t)length, (long)((length - (double)(time_t)length) * 1e9)};
    nanosleep(&pause, NULL);
    controller_set_interrupts(controller, NULL, 0);
    controller_write(controller, REG_CC, reset ? 0 : CC_EN | 1u << 14 | 6u << 16 | 4u << 20, 4);
    if (reset)
        wait_csts(CSTS_RDY, 0);
    else
        wait_csts(CSTS_SHST_MASK, CSTS_SHST_COMPLETE);
    __atomic_store_n(&deaf, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < QUEUES + 2; i++)
        pthread_join(threads[i], NULL);
    if (reset) { /* up again, then closed without a word */
        deaf = 0;
        bring_up(queues);
    }
    controller_destroy(controller);
    for (uint32_t i = 0; i <= QUEUES; i++) {
        close(fds[i]);
        commands += queues[i].commands;
    }
    return commands;
}

int main(int argc, char **argv)
{
    require(argc == 3, "usage: stress IMAGE SECONDS");
    struct controller_options options = {.lba_bytes = 512, .queue_entries = 64, .max_transfer_bytes = 65536};
    options.io_queues = QUEUES;
    options.vectors = QUEUES + 1;
    options.shadow_doorbells = true;
    options.sgl = SGL_BYTE;
    struct stat status;
    options.image_fd = open(argv[1], O_RDWR | O_CLOEXEC);
    require(options.image_fd >= 0 && !fstat(options.image_fd, &status), "open the image");
    options.image_bytes = image_bytes = (uint64_t)status.st_size;
    memory_fd = memfd_create("stress", MFD_CLOEXEC);
    require(memory_fd >= 0 && !ftruncate(memory_fd, MEMORY), "memory");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    require(memory != MAP_FAILED, "memory");
    double length = atof(argv[2]) / 4;
    uint32_t commands = 0;
    for (int i = 0; i < 4; i++) {
        options.poll_ns = i % 2 ? 20000 : 0;
        options.tear_bytes = i % 2 ? 512 : 0; /* with a volatile cache */
        commands += one_round(&options, length, i / 2);
    }
    printf("%u commands\n", commands);
    munmap(memory, MEMORY);
    close(memory_fd);
    close(options.image_fd);
    return 0;
}
