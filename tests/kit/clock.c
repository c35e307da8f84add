/* Shifts the clocks of the program that it is loaded into (LD_PRELOAD), while the program runs.
 *
 * CLOCK names a file of two 64-bit numbers: the nanoseconds that are added to CLOCK_REALTIME and to CLOCK_BOOTTIME. BOOT_ID
 * names a file that is opened in the place of the kernel's boot id. A test steps the wall clock, puts the machine to sleep
 * or reboots it by changing these files.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile int64_t *shift;

__attribute__((constructor)) static void map(void) {
    const char *path = getenv("CLOCK");
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) _exit(125);
    void *mapped = mmap(NULL, 16, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) _exit(125);
    close(file);
    shift = mapped;
}

int clock_gettime(clockid_t which, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, which, time);
    int at = which == CLOCK_REALTIME ? 0 : which == CLOCK_BOOTTIME ? 1 : -1;
    if (!failed && at >= 0 && shift) {
        int64_t now = time->tv_sec * SECOND + time->tv_nsec + shift[at];
        time->tv_sec = now / SECOND;
        time->tv_nsec = now % SECOND;
    }
    return failed;
}

static const char *instead(const char *path) {
    const char *other = getenv("BOOT_ID");
    return other && !strcmp(path, "/proc/sys/kernel/random/boot_id") ? other : path;
}

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...) {                         \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        return syscall(SYS_openat, AT_FDCWD, instead(path), flags | O_LARGEFILE, mode); \
    }
OPEN(open)
OPEN(open64)
