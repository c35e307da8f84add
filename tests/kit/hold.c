/* Holds a thread of the program that it is loaded into (LD_PRELOAD) at a named instant, until the program is killed.
 *
 * HOLD names a folder. A test makes the file NAME in it, and the thread that reaches the instant NAME then makes the file
 * NAME.reached:
 *
 * | name    | instant                                                        | held |
 * | sync    | before the journal is synced: its blocks are written           | yes  |
 * | synced  | after the journal was synced                                   | no   |
 * | reply   | before a reply with `relay-durable: fleet` is written           | yes  |
 * | change  | before a restored store is complete                            | yes  |
 * | changed | after a restored store is complete, before it is moved         | yes  |
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static int reached(const char *name) {
    char path[PATH_MAX];
    const char *folder = getenv("HOLD");
    if (!folder) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (access(path, F_OK)) return 0;
    strcat(path, ".reached");
    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (file >= 0) close(file);
    return 1;
}

static void hold(const char *name) {
    if (reached(name))
        for (;;) pause();
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    int journal = strstr(path, "/journal.") != NULL;
    if (journal) hold("sync");
    int failed = real(file);
    if (journal && !failed) reached("synced");
    return failed;
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    const char *end = strstr(to, "/compacted/complete");
    int change = end && !strcmp(end, "/compacted/complete");
    if (change) hold("change");
    int failed = real(from, to);
    if (change && !failed) hold("changed");
    return failed;
}

static void look(const void *bytes, size_t length) {
    if (length > 9 && !memcmp(bytes, "HTTP/1.1 ", 9) && memmem(bytes, length, "relay-durable: fleet", 20)) hold("reply");
}

ssize_t write(int file, const void *bytes, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    look(bytes, length);
    return real(file, bytes, length);
}

ssize_t send(int file, const void *bytes, size_t length, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "send");
    look(bytes, length);
    return real(file, bytes, length, flags);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    if (count > 0) look(parts[0].iov_base, parts[0].iov_len);
    return real(file, parts, count);
}

ssize_t sendmsg(int file, const struct msghdr *message, int flags) {
    static ssize_t (*real)(int, const struct msghdr *, int);
    if (!real) real = dlsym(RTLD_NEXT, "sendmsg");
    if (message->msg_iovlen > 0) look(message->msg_iov[0].iov_base, message->msg_iov[0].iov_len);
    return real(file, message, flags);
}
