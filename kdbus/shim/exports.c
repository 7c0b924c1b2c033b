/*
 * The functions that take the place of the C library's: open and its kin, ioctl, mmap, close.
 *
 * Invariant: a program that has nothing to do with kdbus gets what the C library gives, with its errno,
 * for no system call more.
 */

#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Some libraries make one name of two. */
#undef open64
#undef openat64
#undef mmap64

/* Since glibc 2.34 it is in libc itself and has a second version; the first is in all of them. */
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver dlsym, dlsym@GLIBC_2.17");
#endif

#define EXPORT __attribute__((visibility("default")))
#define KDBUS_LETTER 0x95

typedef int open_type(const char *, int, ...);
typedef int openat_type(int, const char *, int, ...);
typedef int ioctl_type(int, unsigned long, ...);
typedef void *mmap_type(void *, size_t, int, int, int, off_t);
typedef int close_type(int);

static open_type *_Atomic next_open;
static openat_type *_Atomic next_openat;
static ioctl_type *_Atomic next_ioctl;
static mmap_type *_Atomic next_mmap;
static close_type *_Atomic next_close;

/* What comes after us: the C library's, or another library's that was preloaded. */
#define FIND(name)                                           \
	do {                                                 \
		name##_type *found;                          \
		*(void **)&found = dlsym(RTLD_NEXT, #name);  \
		atomic_store(&next_##name, found);           \
	} while (0)

__attribute__((constructor)) static void find_all(void)
{
	int before = errno;

	FIND(open);
	FIND(openat);
	FIND(ioctl);
	FIND(mmap);
	FIND(close);
	node_place();
	errno = before;
}

/* Before the constructor ran: the kernel. */
int real_openat(int directory, const char *path, int flags, mode_t mode)
{
	openat_type *openat_there = next_openat;

	return openat_there ? openat_there(directory, path, flags, mode) :
			      (int)syscall(SYS_openat, directory, path, flags, mode);
}

void *real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	mmap_type *mmap_there = next_mmap;

	return mmap_there ? mmap_there(address, length, protection, flags, fd, offset) :
			    (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

static int open_any(int directory, const char *path, int flags, mode_t mode)
{
	open_type *open_there = next_open;
	char buffer[PATH_MAX];
	int before = errno;
	int fd;

	path = node_path(path, buffer, sizeof(buffer));
	fd = directory == AT_FDCWD && open_there ? open_there(path, flags, mode) :
						   real_openat(directory, path, flags, mode);
	if (fd >= 0 || errno != ENXIO)
		return fd;
	fd = node_open(directory, path, flags);
	if (fd >= 0)
		errno = before;
	return fd;
}

#ifdef O_TMPFILE
#define TAKES_MODE(flags) ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE)
#else
#define TAKES_MODE(flags) ((flags) & O_CREAT)
#endif

#define OPEN(name, directory, ...)                                       \
	EXPORT int name(__VA_ARGS__, ...)                                \
	{                                                                \
		mode_t mode = 0;                                         \
		if (TAKES_MODE(flags)) {                                 \
			va_list more;                                    \
			va_start(more, flags);                           \
			mode = va_arg(more, mode_t);                     \
			va_end(more);                                    \
		}                                                        \
		return open_any(directory, path, flags, mode);           \
	}

OPEN(open, AT_FDCWD, const char *path, int flags)
OPEN(open64, AT_FDCWD, const char *path, int flags)
OPEN(openat, at, int at, const char *path, int flags)
OPEN(openat64, at, int at, const char *path, int flags)

/* What fortified programs call where no mode is given. */
EXPORT int __open_2(const char *path, int flags);
EXPORT int __open64_2(const char *path, int flags);
EXPORT int __openat_2(int at, const char *path, int flags);
EXPORT int __openat64_2(int at, const char *path, int flags);

EXPORT int __open_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags, 0);
}

EXPORT int __open64_2(const char *path, int flags)
{
	return open_any(AT_FDCWD, path, flags, 0);
}

EXPORT int __openat_2(int at, const char *path, int flags)
{
	return open_any(at, path, flags, 0);
}

EXPORT int __openat64_2(int at, const char *path, int flags)
{
	return open_any(at, path, flags, 0);
}

/* Declared here, because C libraries do not agree on the second argument. */
EXPORT int ioctl(int fd, unsigned long request, ...);

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	ioctl_type *ioctl_there = next_ioctl;
	uintptr_t argument;
	va_list more;
	int result;

	va_start(more, request);
	argument = va_arg(more, uintptr_t);
	va_end(more);
	if ((request >> 8 & 0xff) == KDBUS_LETTER &&
	    command_run(fd, (uint32_t)request, argument, &result))
		return result;
	return ioctl_there ? ioctl_there(fd, request, argument) :
			     (int)syscall(SYS_ioctl, fd, request, argument);
}

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	int before = errno;
	void *result = real_mmap(address, length, protection, flags, fd, offset);

	if (result != MAP_FAILED || fd < 0 || errno != ENODEV)
		return result;
	if (!pool_map(address, length, protection, flags, fd, offset, &result))
		errno = ENODEV;
	else if (result != MAP_FAILED)
		errno = before;
	return result;
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset);

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return mmap(address, length, protection, flags, fd, offset);
}

EXPORT int close(int fd)
{
	close_type *close_there = next_close;
	struct channel *last = handle_noted(fd) ? handle_closing(fd) : NULL;
	int result = close_there ? close_there(fd) : sys_close(fd);

	if (last)
		channel_settle(last);
	return result;
}
