/* A layer between a program and the C library that makes calls fail as a plan says.
 *
 * Loaded by LD_PRELOAD; the plan is the file that JITNEY_FAULTS names, mapped and shared with
 * whoever changes it (layer.py has the same layout). Invariant: without a plan, or with one that is
 * not armed, every call is what it was. Both variables are gone when main() starts, so that what
 * the program executes is not concerned; its forked children are.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    RECV, RECVMSG, SEND, SENDMSG, READ, WRITE, ACCEPT4, SOCKET, BIND, LISTEN, CONNECT, GETSOCKOPT,
    SETSOCKOPT, SOCKETPAIR, EPOLL_CREATE1, EPOLL_CTL, EPOLL_WAIT, POLL, OPEN, FSTAT, STAT, OPENDIR,
    READDIR, PIPE2, FORK, DUP, FCNTL, INOTIFY_INIT1, INOTIFY_ADD_WATCH, PIDFD_OPEN, WAITPID, WAITID,
    KILL, IOCTL, CLOSE, ALLOC, CALLS
};

#define CODES 16
#define SHORT (-1)

struct plan {
    uint32_t armed;
    uint32_t rate;    /* 0: calls first to first + count - 1 of their kind; else one in so many */
    uint32_t length;  /* what a short read or write is cut to */
    uint32_t foreign; /* allocations: also those that are not made by jitney's own modules */
    uint64_t first, count, seed;
    int32_t codes[CALLS][CODES]; /* what a call may fail with, up to a 0; SHORT for a cut */
    uint64_t seen[CALLS], hit[CALLS];
};

static struct plan *plan;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("JITNEY_FAULTS");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = (void *)syscall(SYS_mmap, NULL, sizeof(struct plan), PROT_READ | PROT_WRITE,
                                   MAP_SHARED, fd, 0);
        if (at != MAP_FAILED)
            plan = at;
        syscall(SYS_close, fd);
    }
    unsetenv("LD_PRELOAD");
    unsetenv("JITNEY_FAULTS");
}

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* What the plan has for this call: an errno, SHORT, or 0 for nothing. */
static int fault(int call)
{
    if (!plan || !plan->armed || !plan->codes[call][0])
        return 0;
    uint64_t n = __atomic_fetch_add(&plan->seen[call], 1, __ATOMIC_RELAXED);
    uint64_t dice = mix(plan->seed ^ mix(n * CALLS + (unsigned)call));
    if (plan->rate ? dice % plan->rate != 0 : n < plan->first || n - plan->first >= plan->count)
        return 0;
    int codes = 0;
    while (codes < CODES && plan->codes[call][codes])
        codes++;
    __atomic_fetch_add(&plan->hit[call], 1, __ATOMIC_RELAXED);
    return plan->codes[call][(dice >> 32) % (unsigned)codes];
}

#define REAL(result, name, ...)                                     \
    static result (*real)(__VA_ARGS__);                             \
    if (!real)                                                      \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define FAIL(call, failed)       \
    do {                         \
        int code = fault(call);  \
        if (code > 0) {          \
            errno = code;        \
            return failed;       \
        }                        \
    } while (0)

/* The same for calls with a size, which may be cut instead. */
#define FAIL_OR_CUT(call, n)                    \
    do {                                        \
        int code = fault(call);                 \
        if (code > 0) {                         \
            errno = code;                       \
            return -1;                          \
        }                                       \
        if (code == SHORT && n > plan->length)  \
            n = plan->length;                   \
    } while (0)

ssize_t recv(int fd, void *p, size_t n, int flags)
{
    REAL(ssize_t, recv, int, void *, size_t, int);
    FAIL_OR_CUT(RECV, n);
    return real(fd, p, n, flags);
}

ssize_t send(int fd, const void *p, size_t n, int flags)
{
    REAL(ssize_t, send, int, const void *, size_t, int);
    FAIL_OR_CUT(SEND, n);
    return real(fd, p, n, flags);
}

ssize_t read(int fd, void *p, size_t n)
{
    REAL(ssize_t, read, int, void *, size_t);
    FAIL_OR_CUT(READ, n);
    return real(fd, p, n);
}

ssize_t write(int fd, const void *p, size_t n)
{
    REAL(ssize_t, write, int, const void *, size_t);
    FAIL_OR_CUT(WRITE, n);
    return real(fd, p, n);
}

/* A copy of `from` with vectors of `most` bytes together, in `vectors`. */
static struct msghdr cut(const struct msghdr *from, struct iovec *vectors, size_t most)
{
    struct msghdr to = *from;
    size_t i;
    for (i = 0; i < from->msg_iovlen && i < 64 && most; i++) {
        vectors[i] = from->msg_iov[i];
        if (vectors[i].iov_len > most)
            vectors[i].iov_len = most;
        most -= vectors[i].iov_len;
    }
    to.msg_iov = vectors;
    to.msg_iovlen = i;
    return to;
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
    REAL(ssize_t, recvmsg, int, struct msghdr *, int);
    int code = fault(RECVMSG);
    if (code > 0) {
        errno = code;
        return -1;
    }
    if (code != SHORT)
        return real(fd, msg, flags);
    struct iovec vectors[64];
    struct msghdr some = cut(msg, vectors, plan->length);
    ssize_t got = real(fd, &some, flags);
    msg->msg_namelen = some.msg_namelen;
    msg->msg_controllen = some.msg_controllen;
    msg->msg_flags = some.msg_flags;
    return got;
}

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
    int code = fault(SENDMSG);
    if (code > 0) {
        errno = code;
        return -1;
    }
    if (code != SHORT)
        return real(fd, msg, flags);
    struct iovec vectors[64];
    struct msghdr some = cut(msg, vectors, plan->length);
    return real(fd, &some, flags);
}

#define PLAIN(call, result, failed, name, params, args, ...) \
    result name params                                       \
    {                                                        \
        REAL(result, name, __VA_ARGS__);                     \
        FAIL(call, failed);                                  \
        return real args;                                    \
    }

PLAIN(ACCEPT4, int, -1, accept4, (int fd, struct sockaddr *a, socklen_t *n, int flags),
      (fd, a, n, flags), int, struct sockaddr *, socklen_t *, int)
PLAIN(SOCKET, int, -1, socket, (int d, int t, int p), (d, t, p), int, int, int)
PLAIN(SOCKETPAIR, int, -1, socketpair, (int d, int t, int p, int two[2]), (d, t, p, two), int, int,
      int, int *)
PLAIN(BIND, int, -1, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n), int,
      const struct sockaddr *, socklen_t)
PLAIN(CONNECT, int, -1, connect, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n), int,
      const struct sockaddr *, socklen_t)
PLAIN(LISTEN, int, -1, listen, (int fd, int n), (fd, n), int, int)
PLAIN(GETSOCKOPT, int, -1, getsockopt, (int fd, int l, int o, void *p, socklen_t *n),
      (fd, l, o, p, n), int, int, int, void *, socklen_t *)
PLAIN(SETSOCKOPT, int, -1, setsockopt, (int fd, int l, int o, const void *p, socklen_t n),
      (fd, l, o, p, n), int, int, int, const void *, socklen_t)
PLAIN(EPOLL_CREATE1, int, -1, epoll_create1, (int flags), (flags), int)
PLAIN(EPOLL_WAIT, int, -1, epoll_wait, (int e, struct epoll_event *p, int n, int t), (e, p, n, t),
      int, struct epoll_event *, int, int)
PLAIN(POLL, int, -1, poll, (struct pollfd *p, nfds_t n, int t), (p, n, t),
      struct pollfd *, nfds_t, int)
PLAIN(FSTAT, int, -1, fstat64, (int fd, struct stat64 *p), (fd, p), int, struct stat64 *)
PLAIN(STAT, int, -1, stat64, (const char *path, struct stat64 *p), (path, p), const char *,
      struct stat64 *)
PLAIN(STAT, int, -1, fstatat64, (int fd, const char *path, struct stat64 *p, int flags),
      (fd, path, p, flags), int, const char *, struct stat64 *, int)
PLAIN(OPENDIR, DIR *, NULL, opendir, (const char *path), (path), const char *)
PLAIN(OPENDIR, DIR *, NULL, fdopendir, (int fd), (fd), int)
PLAIN(READDIR, struct dirent64 *, NULL, readdir64, (DIR * p), (p), DIR *)
PLAIN(PIPE2, int, -1, pipe2, (int two[2], int flags), (two, flags), int *, int)
PLAIN(FORK, pid_t, -1, fork, (void), (), void)
PLAIN(DUP, int, -1, dup, (int fd), (fd), int)
PLAIN(DUP, int, -1, dup2, (int fd, int to), (fd, to), int, int)
PLAIN(DUP, int, -1, dup3, (int fd, int to, int flags), (fd, to, flags), int, int, int)
PLAIN(INOTIFY_INIT1, int, -1, inotify_init1, (int flags), (flags), int)
PLAIN(INOTIFY_ADD_WATCH, int, -1, inotify_add_watch, (int fd, const char *path, uint32_t mask),
      (fd, path, mask), int, const char *, uint32_t)
PLAIN(WAITPID, pid_t, -1, waitpid, (pid_t pid, int *status, int flags), (pid, status, flags), pid_t,
      int *, int)
PLAIN(WAITID, int, -1, waitid, (idtype_t type, id_t id, siginfo_t *p, int flags),
      (type, id, p, flags), idtype_t, id_t, siginfo_t *, int)
PLAIN(KILL, int, -1, kill, (pid_t pid, int number), (pid, number), pid_t, int)

/* The kernel has room for what is there already: only additions fail. */
int epoll_ctl(int e, int op, int fd, struct epoll_event *p)
{
    REAL(int, epoll_ctl, int, int, int, struct epoll_event *);
    if (op == EPOLL_CTL_ADD)
        FAIL(EPOLL_CTL, -1);
    return real(e, op, fd, p);
}

/* A descriptor is gone whatever close() says. */
int close(int fd)
{
    REAL(int, close, int);
    int code = fault(CLOSE);
    int result = real(fd);
    if (code > 0) {
        errno = code;
        return -1;
    }
    return result;
}

#define MODE(flags, last) (((flags) & (O_CREAT | __O_TMPFILE)) ? va_arg(last, mode_t) : 0)

int open64(const char *path, int flags, ...)
{
    REAL(int, open64, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t mode = MODE(flags, more);
    va_end(more);
    FAIL(OPEN, -1);
    return real(path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...)
{
    REAL(int, openat64, int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t mode = MODE(flags, more);
    va_end(more);
    FAIL(OPEN, -1);
    return real(at, path, flags, mode);
}

#define ONE_MORE(call, name, request)                   \
    int name(int fd, request what, ...)                 \
    {                                                   \
        REAL(int, name, int, request, ...);             \
        va_list more;                                   \
        va_start(more, what);                           \
        void *one = va_arg(more, void *);               \
        va_end(more);                                   \
        FAIL(call, -1);                                 \
        return real(fd, what, one);                     \
    }

ONE_MORE(FCNTL, fcntl64, int)
ONE_MORE(IOCTL, ioctl, unsigned long)

long syscall(long number, ...)
{
    REAL(long, syscall, long, ...);
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(more, long);
    va_end(more);
    if (number == SYS_pidfd_open)
        FAIL(PIDFD_OPEN, -1);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Memory: as a rule only what jitney's compiled modules ask for themselves. */
static int out_of_memory(void *caller)
{
    Dl_info about;
    if (!plan || !plan->armed || !plan->codes[ALLOC][0])
        return 0;
    if (!plan->foreign
        && (!dladdr(caller, &about) || !about.dli_fname || !strstr(about.dli_fname, "/jitney/")))
        return 0;
    return fault(ALLOC) > 0;
}

#define CALLER __builtin_return_address(0)

#ifdef __GLIBC__
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

void *malloc(size_t n)
{
    if (out_of_memory(CALLER)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    if (out_of_memory(CALLER)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    if (out_of_memory(CALLER)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(p, n);
}
#endif

void *mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t off)
{
    REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);
    if (out_of_memory(CALLER)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, n, prot, flags, fd, off);
}
