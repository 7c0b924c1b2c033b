/*
 * Memory that the program and the bus share: a memfd; before Linux 3.17 a file of a tmpfs.
 *
 * Invariant: nobody else can open it, and no name of it is left when it is used.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#endif

#define ATTEMPTS 100

static int memfd(void)
{
#ifdef SYS_memfd_create /* which headers of Linux 3.10 have not */
	return (int)syscall(SYS_memfd_create, "kdbus-outbox", MFD_CLOEXEC);
#else
	errno = ENOSYS;
	return -1;
#endif
}

static int unnamed_in(const char *folder)
{
	char path[256];
	int length, fd;

	for (unsigned number = 0; number < ATTEMPTS; number++) {
		length = snprintf(path, sizeof(path), "%s/kdbus-outbox-%u-%u", folder, sys_tid(),
				  number);
		if (length < 0 || (size_t)length >= sizeof(path))
			return -1;
		fd = (int)syscall(SYS_openat, AT_FDCWD, path,
				  O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (fd >= 0) {
			syscall(SYS_unlinkat, AT_FDCWD, path, 0);
			return fd;
		}
		if (errno != EEXIST)
			return -1;
	}
	return -1;
}

int memory_new(off_t size)
{
	const char *folder;
	int fd = memfd();

	if (fd < 0 && errno == ENOSYS) {
		fd = unnamed_in("/dev/shm");
		folder = fd < 0 ? secure_getenv("XDG_RUNTIME_DIR") : NULL;
		if (folder)
			fd = unnamed_in(folder);
	}
	if (fd >= 0 && ftruncate(fd, size) < 0) {
		sys_close(fd);
		fd = -1;
		errno = ENOMEM;
	}
	return fd;
}
