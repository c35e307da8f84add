/* Runs a program and records, in order, all its operations on the files below a folder and all the traffic of its
 * sockets:
 *
 *     recorder RECORDING FOLDER [CALL:N:ERRNO[:always]] -- PROGRAM ARGUMENT...
 *
 * It traces system calls (seccomp selects the few relevant ones, ptrace stops the thread), so it records every call,
 * from the C library or not. A call is recorded before the kernel sees it and again when the kernel is done: in
 * between it is in flight. Outgoing bytes of a socket are recorded before they are sent, incoming ones after their
 * arrival.
 *
 * With CALL:N:ERRNO the N-th call of its kind below the folder (write, sync, dirsync, open, rename, unlink, mkdir,
 * truncate, fallocate) fails with that error and never reaches the kernel; with `always` so do all that follow, of that kind.
 *
 * A record is a `struct record` and then its bytes. The exit status is the program's; if the recorder dies, so does the
 * program (EXITKILL).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

struct record {
    uint32_t kind;   /* a letter: see below; 'E' ends the call that the thread began last */
    uint32_t thread;
    int64_t inode;   /* of the file, folder or socket */
    int64_t a, b;    /* offset or size or flags; 'E': the result */
    uint32_t length; /* of the bytes that follow */
    uint32_t first;  /* of them, those of the first of two paths */
};

/* The result of PTRACE_GET_SYSCALL_INFO. */
struct call {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t instruction, stack;
    union {
        struct { uint64_t nr, args[6]; } entry;
        struct { int64_t result; uint8_t failed; } exit;
    };
};
#define GET_CALL 0x420e

struct thread {
    pid_t id;
    uint32_t kind; /* of the call in progress; 0: no relevant one */
    uint64_t args[6];
    char path[PATH_MAX];
    int existed;
};

static struct thread threads[1024];
static FILE *out;
static char folder[PATH_MAX];
static size_t folder_length;
static char *bytes;
static size_t capacity;
static const char *fail_call = "";
static long fail_at = -1, seen;
static int fail_errno, fail_always;

static pid_t child;

/* A signal to the recorder is meant for the program. */
static void pass_on(int signal) {
    if (child > 0) kill(child, signal);
}

static void die(const char *what) {
    perror(what);
    exit(125);
}

static struct thread *of(pid_t id) {
    struct thread *spare = NULL;
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        if (threads[i].id == id) return &threads[i];
        if (!threads[i].id && !spare) spare = &threads[i];
    }
    if (!spare) die("more than 1024 threads");
    memset(spare, 0, sizeof *spare);
    spare->id = id;
    return spare;
}

static void put(const struct thread *t, uint32_t kind, int64_t inode, int64_t a, int64_t b, size_t length, size_t first) {
    struct record r = {kind, t->id, inode, a, b, length, first};
    if (fwrite(&r, sizeof r, 1, out) != 1 || fwrite(bytes, 1, length, out) != length) die("write the recording");
}

static void room(size_t length) {
    if (length > capacity && !(bytes = realloc(bytes, capacity = 2 * length))) die("realloc");
}

static size_t copy(pid_t id, uint64_t address, size_t at, size_t length) {
    room(at + length);
    struct iovec here = {bytes + at, length}, there = {(void *)(uintptr_t)address, length};
    ssize_t got = length ? process_vm_readv(id, &here, 1, &there, 1, 0) : 0;
    if (got != (ssize_t)length) die("read the program's memory");
    return length;
}

static size_t copy_vector(pid_t id, uint64_t address, size_t count) {
    struct iovec parts[1024];
    size_t at = 0, most = count < 1024 ? count : 1024;
    struct iovec here = {parts, most * sizeof *parts}, there = {(void *)(uintptr_t)address, most * sizeof *parts};
    if (process_vm_readv(id, &here, 1, &there, 1, 0) != (ssize_t)here.iov_len) die("read the program's memory");
    for (size_t i = 0; i < most; i++) at += copy(id, (uintptr_t)parts[i].iov_base, at, parts[i].iov_len);
    return at;
}

/* The target of a descriptor: "socket:[1]" or a path. */
static void path_of(pid_t id, int64_t fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, (int)fd == AT_FDCWD ? "/proc/%d/cwd" : "/proc/%d/fd/%d", id, (int)fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static int below(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* The absolute path of a name in the program's memory. */
static void named(pid_t id, int64_t at, uint64_t address, char *path) {
    char name[PATH_MAX] = "";
    for (size_t i = 0; i < sizeof name - 1; i++) { /* a page may end right behind the name */
        struct iovec here = {name + i, 1}, there = {(void *)(uintptr_t)(address + i), 1};
        if (process_vm_readv(id, &here, 1, &there, 1, 0) != 1) die("read a path");
        if (!name[i]) break;
    }
    path[0] = 0;
    if (name[0] != '/') path_of(id, at, path);
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "%s%s", name[0] == '/' ? "" : "/", name);
    for (length = strlen(path); length > 1 && path[length - 1] == '/'; length--) path[length - 1] = 0;
}

static int64_t inode_of(pid_t id, int64_t fd, mode_t *mode) {
    char link[64];
    struct stat file;
    snprintf(link, sizeof link, "/proc/%d/fd/%d", id, (int)fd);
    if (stat(link, &file)) return -1;
    *mode = file.st_mode;
    return (int64_t)file.st_ino;
}

static int64_t position(pid_t id, int64_t fd) {
    char name[64];
    long long at = 0;
    snprintf(name, sizeof name, "/proc/%d/fdinfo/%d", id, (int)fd);
    FILE *info = fopen(name, "r");
    if (!info || fscanf(info, "pos: %lld", &at) != 1) die("read a position");
    fclose(info);
    return at;
}

/* True if this call has to fail; then it never reaches the kernel. */
static int fails(const struct thread *t, const char *call) {
    if (strcmp(call, fail_call) || !(++seen == fail_at || (fail_always && seen > fail_at))) return 0;
#if defined(__x86_64__)
    struct user_regs_struct registers;
    struct iovec set = {&registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, t->id, NT_PRSTATUS, &set)) die("read the registers");
    registers.orig_rax = -1;
    registers.rax = -fail_errno;
    if (ptrace(PTRACE_SETREGSET, t->id, NT_PRSTATUS, &set)) die("set the registers");
#elif defined(__aarch64__)
    struct user_regs_struct registers;
    struct iovec set = {&registers, sizeof registers};
    int none = -1;
    struct iovec number = {&none, sizeof none};
    if (ptrace(PTRACE_GETREGSET, t->id, NT_PRSTATUS, &set)) die("read the registers");
    registers.regs[0] = -fail_errno;
    if (ptrace(PTRACE_SETREGSET, t->id, NT_PRSTATUS, &set) || ptrace(PTRACE_SETREGSET, t->id, NT_ARM_SYSTEM_CALL, &number))
        die("set the registers");
#else
#error "faults need to know this processor's registers"
#endif
    put(t, '!', 0, -fail_errno, 0, 0, 0);
    return 1;
}

/* Handles the start of a call. Returns true if its end is needed, too. */
static int begin(struct thread *t, const struct call *call) {
    const uint64_t *args = call->entry.args;
    int64_t offset;
    size_t length;
    mode_t mode = 0;
    char *path = t->path, other[PATH_MAX];
    memcpy(t->args, args, sizeof t->args);
    t->kind = 0;
    switch (call->entry.nr) {
    case SYS_write:
    case SYS_writev:
    case SYS_pwrite64:
    case SYS_sendto:
        path_of(t->id, args[0], path);
        int socket = !strncmp(path, "socket:", 7);
        if (!socket && !below(path)) return 0;
        length = call->entry.nr == SYS_writev ? copy_vector(t->id, args[1], args[2]) : copy(t->id, args[1], 0, args[2]);
        offset = socket ? 0 : call->entry.nr == SYS_pwrite64 ? (int64_t)args[3] : position(t->id, args[0]);
        if (!socket && fails(t, "write")) return 0;
        put(t, t->kind = socket ? '>' : 'W', inode_of(t->id, args[0], &mode), offset, 0, length, 0);
        return 1;
    case SYS_read:
    case SYS_recvfrom:
        path_of(t->id, args[0], path);
        t->kind = '<';
        return !strncmp(path, "socket:", 7);
    case SYS_ftruncate:
        path_of(t->id, args[0], path);
        if (!below(path) || fails(t, "truncate")) return 0;
        put(t, t->kind = 'T', inode_of(t->id, args[0], &mode), args[1], 0, 0, 0);
        return 1;
    case SYS_fallocate:
        path_of(t->id, args[0], path);
        if (!below(path) || fails(t, "fallocate")) return 0;
        /* Only calls that reserve space: FALLOC_FL_KEEP_SIZE or not. */
        if (args[1] & ~1) die("fallocate with flags that are not known here");
        put(t, t->kind = 'F', inode_of(t->id, args[0], &mode), args[1] & 1 ? 0 : args[2] + args[3], 0, 0, 0);
        return 1;
    case SYS_fsync:
    case SYS_fdatasync:
        path_of(t->id, args[0], path);
        if (!below(path)) return 0;
        offset = inode_of(t->id, args[0], &mode);
        if (fails(t, S_ISDIR(mode) ? "dirsync" : "sync")) return 0;
        put(t, t->kind = 'S', offset, S_ISDIR(mode), call->entry.nr == SYS_fdatasync, 0, 0);
        return 1;
    case SYS_fadvise64:
        path_of(t->id, args[0], path);
        if (below(path)) put(t, 'A', inode_of(t->id, args[0], &mode), args[3], 0, 0, 0);
        return 0;
    case SYS_openat:
#ifdef SYS_open
    case SYS_open:
        if (call->entry.nr == SYS_open) {
            named(t->id, AT_FDCWD, args[0], path);
            t->args[2] = args[1];
        } else
#endif
            named(t->id, args[0], args[1], path);
        if (!(t->args[2] & (O_CREAT | O_TRUNC)) || !below(path) || fails(t, "open")) return 0;
        t->kind = 'O';
        t->existed = !access(path, F_OK);
        return 1;
    case SYS_mkdirat:
#ifdef SYS_mkdir
    case SYS_mkdir:
        if (call->entry.nr == SYS_mkdir) named(t->id, AT_FDCWD, args[0], path);
        else
#endif
            named(t->id, args[0], args[1], path);
        if (!below(path) || fails(t, "mkdir")) return 0;
        t->kind = 'M';
        return 1;
    case SYS_unlinkat:
#ifdef SYS_unlink
    case SYS_unlink:
    case SYS_rmdir:
        if (call->entry.nr != SYS_unlinkat) named(t->id, AT_FDCWD, args[0], path);
        else
#endif
            named(t->id, args[0], args[1], path);
        if (!below(path) || fails(t, "unlink")) return 0;
        room(PATH_MAX);
        length = strlen(strcpy(bytes, path));
        put(t, t->kind = 'U', 0, 0, 0, length, length);
        return 1;
    case SYS_renameat:
    case SYS_renameat2:
#ifdef SYS_rename
    case SYS_rename:
        if (call->entry.nr == SYS_rename) {
            named(t->id, AT_FDCWD, args[0], path);
            named(t->id, AT_FDCWD, args[1], other);
        } else
#endif
        {
            named(t->id, args[0], args[1], path);
            named(t->id, args[2], args[3], other);
        }
        if (!below(path) || fails(t, "rename")) return 0;
        room(2 * PATH_MAX);
        offset = strlen(strcpy(bytes, path));
        length = offset + strlen(strcpy(bytes + offset, other));
        put(t, t->kind = 'R', 0, 0, 0, length, offset);
        return 1;
    }
    /* A traced call that is not handled above would be missing in the recording. */
    path_of(t->id, args[0], path);
    if (below(path) || !strncmp(path, "socket:", 7)) {
        fprintf(stderr, "recorder: system call %llu on %s is not known here\n", (unsigned long long)call->entry.nr, path);
        exit(125);
    }
    return 0;
}

/* Handles the end of the call that `begin` saw. */
static void end(struct thread *t, int64_t result) {
    mode_t mode;
    struct stat made;
    size_t length = strlen(t->path);
    switch (t->kind) {
    case 0:
        return;
    case '<':
        if (result > 0) put(t, '<', inode_of(t->id, t->args[0], &mode), 0, 0, copy(t->id, t->args[1], 0, result), 0);
        break;
    case 'O':
        if (result < 0) break;
        room(length);
        memcpy(bytes, t->path, length);
        put(t, 'O', inode_of(t->id, result, &mode), !t->existed, !!(t->args[2] & O_TRUNC), length, length);
        break;
    case 'M':
        if (result < 0 || stat(t->path, &made)) break;
        room(length);
        memcpy(bytes, t->path, length);
        put(t, 'M', made.st_ino, 0, 0, length, length);
        break;
    default:
        put(t, 'E', 0, result, 0, 0, 0);
    }
    t->kind = 0;
}

/* Calls that change a file or send something are passed to the tracer, and those that `begin` must not miss. */
static const int traced[] = {
    SYS_write, SYS_writev, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_sendto, SYS_sendmsg, SYS_sendmmsg, SYS_read, SYS_readv,
    SYS_recvfrom, SYS_recvmsg, SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_fadvise64, SYS_openat, SYS_mkdirat, SYS_unlinkat,
    SYS_renameat, SYS_renameat2, SYS_linkat, SYS_copy_file_range, SYS_sendfile, SYS_splice, SYS_truncate,
#ifdef SYS_open
    SYS_open, SYS_creat, SYS_mkdir, SYS_unlink, SYS_rmdir, SYS_rename, SYS_link,
#endif
};

static void start(char **program, int ready) {
    struct sock_filter filter[2 * sizeof traced / sizeof *traced + 2];
    size_t n = 0;
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < sizeof traced / sizeof *traced; i++) {
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, traced[i], 0, 1);
        filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog all = {n, filter};
    char go;
    if (read(ready, &go, 1) != 1) _exit(125); /* not before the tracer is attached */
    close(ready);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all)) die("seccomp");
    execv(program[0], program);
    die(program[0]);
}

int main(int count, char **arguments) {
    int at = 3, ready[2], status, code = 125;
    if (count > 4 && strcmp(arguments[3], "--")) {
        fail_call = strtok(arguments[at++], ":");
        fail_at = atol(strtok(NULL, ":"));
        fail_errno = atoi(strtok(NULL, ":"));
        fail_always = strtok(NULL, ":") != NULL;
    }
    if (count < at + 2 || strcmp(arguments[at], "--") || !realpath(arguments[2], folder)) {
        fprintf(stderr, "recorder RECORDING FOLDER [CALL:N:ERRNO[:always]] -- PROGRAM ARGUMENT...\n");
        return 2;
    }
    folder_length = strlen(folder);
    if (!(out = fopen(arguments[1], "we")) || pipe(ready)) die(arguments[1]);
    setvbuf(out, NULL, _IOFBF, 1 << 20);
    room(1 << 16);
    child = fork();
    if (child < 0) die("fork");
    if (!child) {
        close(ready[1]);
        start(arguments + at + 1, ready[0]);
    }
    long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SEIZE, child, 0, options)) die("trace the program");
    signal(SIGTERM, pass_on);
    if (write(ready[1], "", 1) != 1) die("start the program");
    for (;;) {
        pid_t id = waitpid(-1, &status, __WALL);
        if (id < 0 && errno == EINTR) continue;
        if (id < 0) break; /* all have ended */
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (id == child) code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            of(id)->id = 0;
            continue;
        }
        int stop = WSTOPSIG(status), event = status >> 16, request = PTRACE_CONT;
        long passed = 0;
        struct call call;
        struct thread *t = of(id);
        if (event == PTRACE_EVENT_SECCOMP) {
            if (ptrace(GET_CALL, id, sizeof call, &call) <= 0) continue;
            if (begin(t, &call)) request = PTRACE_SYSCALL;
        } else if (stop == (SIGTRAP | 0x80)) {
            if (ptrace(GET_CALL, id, sizeof call, &call) <= 0) continue;
            if (call.op == 2) end(t, call.exit.result);
            else request = PTRACE_SYSCALL; /* the entry, on kernels that stop there as well */
        } else if (!event) {
            passed = stop; /* a signal that is meant for the program */
        }
        ptrace(request, id, 0, passed);
    }
    if (fclose(out)) die("close the recording");
    return code;
}
