/*
 * The guest's first process, on the initial RAM disk: loads the modules that came with it, in the order
 * of /modules, puts the host's root under an overlay in memory, makes that the root, and becomes the
 * program that the kernel's command line names after "--".
 *
 * Linked statically. On failure it says what failed and ends, which ends the guest (panic=-1).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "init: %s %s: %s\n", what, which, strerror(errno));
    exit(1);
}

static void mounted(const char *source, const char *target, const char *type, unsigned long flags,
                    const char *options)
{
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) != 0)
        fail("mount", target);
}

static void load_modules(void)
{
    char name[256];
    FILE *list = fopen("/modules", "r");
    if (!list)
        fail("open", "/modules");
    while (fgets(name, sizeof name, list)) {
        name[strcspn(name, "\n")] = 0;
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST))
            fail("load", name);
        close(fd);
    }
    fclose(list);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        fail("no program after", "--");
    mounted("dev", "/dev", "devtmpfs", 0, NULL);
    load_modules();
    mounted("root", "/host", "virtiofs", MS_RDONLY, NULL);
    mounted("memory", "/memory", "tmpfs", 0, "mode=0755");
    mkdir("/memory/upper", 0755);
    mkdir("/memory/work", 0755);
    mounted("overlay", "/root", "overlay", 0,
            "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work");
    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) != 0)
        fail("move", "/dev");
    if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0)
        fail("change root to", "/root");
    mounted("proc", "/proc", "proc", 0, NULL);
    mounted("sys", "/sys", "sysfs", 0, NULL);
    mounted("run", "/run", "tmpfs", 0, "mode=0755");
    mounted("shm", "/dev/shm", "tmpfs", 0, "mode=1777");
    mounted("pts", "/dev/pts", "devpts", 0, "ptmxmode=0666");
    setenv("HOME", "/root", 1);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    execv(argv[1], argv + 1);
    fail("run", argv[1]);
}
