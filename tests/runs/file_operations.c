// Preloaded into a training run: counts what the process does to the files of one folder, and ends
// it with SIGKILL at a chosen operation.
//
// An operation is a call that changes the folder or its files, or that makes a change durable. It is
// counted before it takes effect. A write can also be torn: half of its bytes reach the file. What
// the process did before stays, synced or not.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define ROW_BYTES 200
#define MOST_FILES 4096

static char folder[PATH_MAX];
static size_t folder_bytes;  // 0: nothing is counted
static long chosen, rows_left;
static int torn;
static char* next_row;
static atomic_long count;
static char opened[MOST_FILES];  // by descriptor: 1 opened for reading, 2 for writing

// Count from now on; kill at operation `number`, counted from 0, or never if it is negative.
// `rows` names each operation in memory shared with the parent, ROW_BYTES for each.
void watch_files(const char* path, long number, int tear, char* rows, long num_rows) {
    chosen = number, torn = tear, next_row = rows, rows_left = num_rows;
    snprintf(folder, sizeof folder, "%s", path);
    folder_bytes = strlen(folder);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// Counts one operation. Returns whether it is the chosen one and may be torn; otherwise kills there.
static int arrive(const char* what, const char* path, size_t bytes) {
    const long number = atomic_fetch_add(&count, 1);
    if (number < rows_left)
        snprintf(next_row + number * ROW_BYTES, ROW_BYTES, "%s %s %zu", what, path, bytes);
    if (number != chosen) return 0;
    if (torn && bytes > 1) return 1;
    die();
    return 0;
}

// The path below the folder; NULL for a path elsewhere.
static const char* below(int at, const char* path) {
    static _Thread_local char whole[2 * PATH_MAX];
    char base[PATH_MAX];
    if (!folder_bytes || !path) return NULL;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char link[64] = "/proc/self/cwd";
        if (at != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        const ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return NULL;
        base[n] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    if (strncmp(whole, folder, folder_bytes)) return NULL;
    const char* rest = whole + folder_bytes;
    return *rest == '/' ? rest + 1 : *rest ? NULL : ".";
}

static int is_open(int fd, int how) { return fd >= 0 && fd < MOST_FILES && opened[fd] >= how; }

static const char* name_of(int fd) {
    static _Thread_local char name[PATH_MAX];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, name, sizeof name - 1);
    name[n < 0 ? 0 : n] = 0;
    return strncmp(name, folder, folder_bytes) ? name : name + folder_bytes;
}

#define REAL(type, name, ...)                           \
    static type (*real)(__VA_ARGS__);                   \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int after_open(int fd, const char* path, int flags) {
    if (path && fd >= 0 && fd < MOST_FILES)
        opened[fd] = (flags & O_ACCMODE) == O_RDONLY ? 1 : 2;
    return fd;
}

#define OPEN(name)                                                                  \
    int name(const char* path, int flags, ...) {                                    \
        REAL(int, #name, const char*, int, ...);                                    \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                               \
        const char* found = below(AT_FDCWD, path);                                  \
        if (found && flags & (O_CREAT | O_TRUNC)) arrive("open", found, 0);         \
        return after_open(real(path, flags, mode), found, flags);                   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                \
    int name(int at, const char* path, int flags, ...) {                            \
        REAL(int, #name, int, const char*, int, ...);                               \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                               \
        const char* found = below(at, path);                                        \
        if (found && flags & (O_CREAT | O_TRUNC)) arrive("openat", found, 0);       \
        return after_open(real(at, path, flags, mode), found, flags);               \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                 \
    FILE* name(const char* path, const char* mode) {                                \
        REAL(FILE*, #name, const char*, const char*);                               \
        const char* found = below(AT_FDCWD, path);                                  \
        const int writes = strpbrk(mode, "wa+") != NULL;                            \
        if (found && writes) arrive("fopen", found, 0);                             \
        FILE* file = real(path, mode);                                              \
        if (file) after_open(fileno(file), found, writes ? O_RDWR : O_RDONLY);      \
        return file;                                                                \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void* data, size_t bytes) {
    REAL(ssize_t, "write", int, const void*, size_t);
    if (is_open(fd, 2) && arrive("write", name_of(fd), bytes)) {
        real(fd, data, bytes / 2);
        die();
    }
    return real(fd, data, bytes);
}

#define PWRITE(name, offset_type)                                                   \
    ssize_t name(int fd, const void* data, size_t bytes, offset_type offset) {      \
        REAL(ssize_t, #name, int, const void*, size_t, offset_type);                \
        if (is_open(fd, 2) && arrive(#name, name_of(fd), bytes)) {                  \
            real(fd, data, bytes / 2, offset);                                      \
            die();                                                                  \
        }                                                                           \
        return real(fd, data, bytes, offset);                                       \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

// NumPy's tofile writes in this way.
size_t fwrite(const void* data, size_t size, size_t items, FILE* file) {
    REAL(size_t, "fwrite", const void*, size_t, size_t, FILE*);
    if (is_open(fileno(file), 2) && arrive("fwrite", name_of(fileno(file)), size * items)) {
        real(data, 1, size * items / 2, file);
        fflush(file);
        die();
    }
    return real(data, size, items, file);
}

int dup(int fd) {
    REAL(int, "dup", int);
    const int copy = real(fd);
    if (copy >= 0 && copy < MOST_FILES && fd >= 0 && fd < MOST_FILES) opened[copy] = opened[fd];
    return copy;
}

int fcntl64(int fd, int command, ...) {
    REAL(int, "fcntl64", int, int, ...);
    va_list more;
    va_start(more, command);
    void* argument = va_arg(more, void*);
    va_end(more);
    const int result = real(fd, command, argument);
    const int copies = command == F_DUPFD || command == F_DUPFD_CLOEXEC;
    if (copies && result >= 0 && result < MOST_FILES && is_open(fd, 1)) opened[result] = opened[fd];
    return result;
}

#define BY_DESCRIPTOR(type, name, how, parameters, arguments)                       \
    type name parameters {                                                          \
        static type(*real) parameters;                                              \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);              \
        if (is_open(fd, how)) arrive(#name, name_of(fd), 0);                        \
        return real arguments;                                                      \
    }
BY_DESCRIPTOR(ssize_t, writev, 2, (int fd, const struct iovec* parts, int n), (fd, parts, n))
BY_DESCRIPTOR(int, fsync, 1, (int fd), (fd))
BY_DESCRIPTOR(int, fdatasync, 1, (int fd), (fd))
BY_DESCRIPTOR(int, ftruncate, 2, (int fd, off_t bytes), (fd, bytes))
BY_DESCRIPTOR(int, ftruncate64, 2, (int fd, off64_t bytes), (fd, bytes))
BY_DESCRIPTOR(int, posix_fallocate, 2, (int fd, off_t from, off_t bytes), (fd, from, bytes))
BY_DESCRIPTOR(int, posix_fallocate64, 2, (int fd, off64_t from, off64_t n), (fd, from, n))
BY_DESCRIPTOR(int, fchmod, 1, (int fd, mode_t mode), (fd, mode))
BY_DESCRIPTOR(ssize_t, sendfile, 2, (int fd, int in, off_t* at, size_t n), (fd, in, at, n))
BY_DESCRIPTOR(ssize_t, sendfile64, 2, (int fd, int in, off64_t* at, size_t n), (fd, in, at, n))

ssize_t copy_file_range(int in, off64_t* at, int fd, off64_t* to, size_t bytes, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t*, int, off64_t*, size_t, unsigned);
    if (is_open(fd, 2)) arrive("copy_file_range", name_of(fd), 0);
    return real(in, at, fd, to, bytes, flags);
}

int close(int fd) {
    REAL(int, "close", int);
    if (is_open(fd, 2)) arrive("close", name_of(fd), 0);
    if (fd >= 0 && fd < MOST_FILES) opened[fd] = 0;
    return real(fd);
}

int fclose(FILE* file) {
    REAL(int, "fclose", FILE*);
    const int fd = fileno(file);
    if (is_open(fd, 2)) arrive("fclose", name_of(fd), 0);
    if (fd >= 0 && fd < MOST_FILES) opened[fd] = 0;
    return real(file);
}

#define BY_PATH(name, at, parameters, arguments)                                    \
    int name parameters {                                                           \
        static int(*real) parameters;                                               \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);               \
        const char* found = below(at, path);                                        \
        if (found) arrive(#name, found, 0);                                         \
        return real arguments;                                                      \
    }
BY_PATH(unlink, AT_FDCWD, (const char* path), (path))
BY_PATH(unlinkat, fd, (int fd, const char* path, int flags), (fd, path, flags))
BY_PATH(remove, AT_FDCWD, (const char* path), (path))
BY_PATH(rmdir, AT_FDCWD, (const char* path), (path))
BY_PATH(mkdir, AT_FDCWD, (const char* path, mode_t mode), (path, mode))
BY_PATH(mkdirat, fd, (int fd, const char* path, mode_t mode), (fd, path, mode))
BY_PATH(truncate, AT_FDCWD, (const char* path, off_t bytes), (path, bytes))
BY_PATH(truncate64, AT_FDCWD, (const char* path, off64_t bytes), (path, bytes))
BY_PATH(chmod, AT_FDCWD, (const char* path, mode_t mode), (path, mode))
BY_PATH(rename, AT_FDCWD, (const char* old, const char* path), (old, path))
BY_PATH(renameat, to, (int at, const char* old, int to, const char* path), (at, old, to, path))
BY_PATH(renameat2, to, (int at, const char* old, int to, const char* path, unsigned flags),
        (at, old, to, path, flags))
BY_PATH(link, AT_FDCWD, (const char* old, const char* path), (old, path))
BY_PATH(linkat, to, (int at, const char* old, int to, const char* path, int flags),
        (at, old, to, path, flags))
BY_PATH(symlink, AT_FDCWD, (const char* old, const char* path), (old, path))
BY_PATH(symlinkat, at, (const char* old, int at, const char* path), (old, at, path))
