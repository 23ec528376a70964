/* What a disk sees: logs every change of files under SHIM_ROOT, and makes the nth of them fail or the process end there.
   Built and preloaded by the tests; see powercut.py and call_faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

enum mode { NOTHING, EXIT, NO_SPACE, IO_ERROR, SHORT, SYNC_ERROR };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1, armed_mode = NOTHING;
static long calls, armed_at, armed_many;
static const char *root;
static size_t root_bytes;

struct head { char op; char pad[3]; uint32_t path_bytes, other_bytes, data_bytes; int64_t offset; };

__attribute__((constructor)) static void begin(void) {
    root = getenv("SHIM_ROOT");
    root_bytes = root ? strlen(root) : 0;
    const char *log = getenv("SHIM_LOG");
    if (log) {
        log_fd = (int)((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open"))(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

/* Called by the tests: at the `at`th call from now do `mode`, and to the `many - 1` after it. */
void shim_arm(int mode, long at, long many) { calls = 0; armed_mode = mode; armed_at = at; armed_many = many; }
long shim_calls(void) { return calls; }

static int is_ours(const char *path) {
    if (!root || !path || strncmp(path, root, root_bytes) != 0) return 0;
    size_t length = strlen(path);
    return length < 4 || strcmp(path + length - 4, "-shm") != 0; /* shared memory is rebuilt at every start */
}

static int path_of(int fd, char *path, size_t room) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, room - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static void tell(char op, const char *path, const char *other, const void *data, size_t bytes, int64_t offset) {
    if (log_fd < 0) return;
    struct head head = {op, {0}, (uint32_t)strlen(path), other ? (uint32_t)strlen(other) : 0, (uint32_t)bytes, offset};
    struct iovec parts[4] = {{&head, sizeof head}, {(void *)path, head.path_bytes}, {(void *)other, head.other_bytes}, {(void *)data, bytes}};
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (real(log_fd, parts, 4) < 0) abort();
    pthread_mutex_unlock(&lock);
    errno = saved;
}

/* Whether this call fails, and how. Ends the process when that is what was asked for. Only calls that the mode is about count. */
static int strikes(char op) {
    int is_sync = op == 'S', takes_space = op == 'W' || op == 'C' || op == 'M';
    int counts = armed_mode == EXIT || armed_mode == IO_ERROR || (armed_mode == NO_SPACE && takes_space)
        || (armed_mode == SHORT && op == 'W') || (armed_mode == SYNC_ERROR && is_sync);
    if (!counts) return NOTHING;
    long call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (call < armed_at || call >= armed_at + armed_many) return NOTHING;
    if (armed_mode == EXIT) _exit(77);
    errno = armed_mode == NO_SPACE ? ENOSPC : EIO;
    return armed_mode;
}

static ssize_t put(ssize_t (*write_it)(int, const void *, size_t, off_t), int fd, const void *data, size_t bytes, off_t offset, int appends) {
    char path[4096];
    if (!path_of(fd, path, sizeof path)) return write_it(fd, data, bytes, offset);
    int how = strikes('W');
    if (how == SHORT && bytes > 1) bytes /= 2;
    else if (how != NOTHING) return -1;
    if (appends) offset = lseek(fd, 0, SEEK_CUR);
    ssize_t written = write_it(fd, data, bytes, offset);
    if (written > 0) tell('W', path, NULL, data, (size_t)written, offset);
    return written;
}

static ssize_t real_write(int fd, const void *data, size_t bytes, off_t offset) {
    (void)offset;
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, data, bytes);
}
static ssize_t real_pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    return real(fd, data, bytes, offset);
}
ssize_t write(int fd, const void *data, size_t bytes) { return put(real_write, fd, data, bytes, 0, 1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return put(real_pwrite, fd, data, bytes, offset, 0); }
ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) { return put(real_pwrite, fd, data, bytes, offset, 0); }

static int sync_one(int fd, const char *name) {
    char path[4096];
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (!path_of(fd, path, sizeof path)) return real(fd);
    if (strikes('S') != NOTHING) return -1;
    int result = real(fd);
    if (result == 0) tell('S', path, NULL, NULL, 0, 0);
    return result;
}
int fsync(int fd) { return sync_one(fd, "fsync"); }
int fdatasync(int fd) { return sync_one(fd, "fdatasync"); }

int ftruncate64(int fd, off_t size) {
    char path[4096];
    REAL(int, "ftruncate64", int, off_t);
    if (!path_of(fd, path, sizeof path)) return real(fd, size);
    if (strikes('T') != NOTHING) return -1;
    int result = real(fd, size);
    if (result == 0) tell('T', path, NULL, NULL, 0, size);
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int open_any(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    if (!is_ours(path)) return real(path, flags, mode);
    struct stat known;
    int is_new = (flags & O_CREAT) && stat(path, &known) != 0;
    if (is_new && strikes('C') != NOTHING) return -1;
    int fd = real(path, flags, mode);
    if (fd >= 0 && is_new) tell('C', path, NULL, NULL, 0, 0);
    if (fd >= 0 && !is_new && (flags & O_TRUNC)) tell('T', path, NULL, NULL, 0, 0);
    return fd;
}
#define MODE_OF(flags) mode_t mode = 0; if ((flags) & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
int open(const char *path, int flags, ...) { MODE_OF(flags) return open_any("open", path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_any("open64", path, flags, mode); }

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (!is_ours(path)) return real(path);
    if (strikes('U') != NOTHING) return -1;
    int result = real(path);
    if (result == 0) tell('U', path, NULL, NULL, 0, 0);
    return result;
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (!is_ours(to)) return real(from, to);
    if (strikes('R') != NOTHING) return -1;
    int result = real(from, to);
    if (result == 0) tell('R', from, to, NULL, 0, 0);
    return result;
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    if (!is_ours(to)) return real(from, to);
    if (strikes('R') != NOTHING) return -1;
    int result = real(from, to);
    if (result == 0) tell('L', from, to, NULL, 0, 0);
    return result;
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (!is_ours(path)) return real(path, mode);
    if (strikes('M') != NOTHING) return -1;
    int result = real(path, mode);
    if (result == 0) tell('M', path, NULL, NULL, 0, 0);
    return result;
}
