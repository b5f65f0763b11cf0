/*
 * The least a C filesystem on libfuse can do: one file, "data", which reads as zeroes and forgets what is written.
 * What a request costs here is what FUSE and libfuse cost (low-level API, libfuse's own threads).
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FILE_INODE = 2, LARGEST_READ = 1 << 20 };

static const double FOREVER_S = 1e6;
static char zeroes[LARGEST_READ];

static struct stat attributes(fuse_ino_t inode)
{
    struct stat stat = {.st_ino = inode, .st_nlink = 1, .st_mode = S_IFREG | 0644, .st_size = 1 << 30};
    if (inode == FUSE_ROOT_ID)
        stat.st_mode = S_IFDIR | 0755;
    return stat;
}

static void null_init(void *data, struct fuse_conn_info *connection)
{
    (void)data;
    connection->want |= connection->capable & FUSE_CAP_WRITEBACK_CACHE;
}

static void null_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = FILE_INODE, .attr_timeout = FOREVER_S, .entry_timeout = FOREVER_S};
    if (parent != FUSE_ROOT_ID || strcmp(name, "data") != 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    entry.attr = attributes(FILE_INODE);
    fuse_reply_entry(request, &entry);
}

static void null_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)file;
    struct stat stat = attributes(inode);
    fuse_reply_attr(request, &stat, FOREVER_S);
}

static void null_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *to, int set, struct fuse_file_info *file)
{
    (void)to, (void)set;
    null_getattr(request, inode, file);
}

static void null_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *file)
{
    (void)inode;
    fuse_reply_open(request, file);
}

static void null_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *file)
{
    (void)inode, (void)offset, (void)file;
    fuse_reply_buf(request, zeroes, size < LARGEST_READ ? size : LARGEST_READ);
}

static void null_write(fuse_req_t request, fuse_ino_t inode, const char *bytes, size_t size, off_t offset,
                       struct fuse_file_info *file)
{
    (void)inode, (void)bytes, (void)offset, (void)file;
    fuse_reply_write(request, size);
}

static const struct fuse_lowlevel_ops OPERATIONS = {
    .init = null_init, .lookup = null_lookup, .getattr = null_getattr, .setattr = null_setattr,
    .open = null_open, .read = null_read, .write = null_write,
};

int main(int argc, char **argv)
{
    struct fuse_args arguments = FUSE_ARGS_INIT(argc, argv);
    struct fuse_cmdline_opts options;
    if (fuse_parse_cmdline(&arguments, &options) != 0)
        return 1;
    struct fuse_loop_config loop = {.max_idle_threads = options.max_idle_threads};
    struct fuse_session *session = fuse_session_new(&arguments, &OPERATIONS, sizeof OPERATIONS, NULL);
    if (!session || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, options.mountpoint) != 0)
        return 1;
    int status = fuse_session_loop_mt(session, &loop);
    fuse_session_unmount(session);
    return status != 0;
}
