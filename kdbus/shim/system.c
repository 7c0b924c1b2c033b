/*
 * System calls, and the program's memory through them.
 *
 * Invariant: a pointer of the program's that leads nowhere is EFAULT, never a signal.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers above this are seldom looked at by a program that counts on the lowest. */
#define OUT_OF_THE_WAY 200

ssize_t sys_sendmsg(int fd, const struct msghdr *message)
{
	ssize_t done;
	do
		done = syscall(SYS_sendmsg, fd, message, MSG_NOSIGNAL);
	while (done < 0 && errno == EINTR);
	return done;
}

ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags)
{
	return syscall(SYS_recvmsg, fd, message, flags);
}

int sys_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

int sys_fd_up(int fd)
{
	int higher = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, OUT_OF_THE_WAY);
	if (higher < 0)
		return fd;
	sys_close(fd);
	return higher;
}

uint32_t sys_tid(void)
{
	return (uint32_t)syscall(SYS_gettid);
}

uint32_t sys_pid(void)
{
	return (uint32_t)syscall(SYS_getpid);
}

int sys_fstat(int fd, struct stat *status)
{
#ifdef SYS_fstat
	/* The C library's is another one since glibc 2.33. */
	return (int)syscall(SYS_fstat, fd, status);
#else
	return fstat(fd, status);
#endif
}

uint64_t file_id(int fd)
{
	struct stat status;

	if (fd < 0 || sys_fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
		return 0;
	return (uint64_t)status.st_ino << 16 ^ (uint64_t)status.st_dev;
}

static bool forbidden(void)
{
	/* A filter that knows neither these calls nor us: then pointers had better be right. */
	return errno == ENOSYS || errno == EPERM;
}

int copy_in(void *to, uint64_t from, size_t size)
{
	struct iovec local = {to, size};
	struct iovec remote = {(void *)(uintptr_t)from, size};
	ssize_t done;

	if (!size)
		return 0;
	done = syscall(SYS_process_vm_readv, sys_tid(), &local, 1, &remote, 1, 0);
	if (done == (ssize_t)size)
		return 0;
	if (done < 0 && forbidden()) {
		memcpy(to, (void *)(uintptr_t)from, size);
		return 0;
	}
	return EFAULT;
}

int copy_out(const struct iovec *from, const struct iovec *to, size_t count)
{
	size_t wanted = 0;
	ssize_t done;

	for (size_t i = 0; i < count; i++)
		wanted += to[i].iov_len;
	if (!wanted)
		return 0;
	done = syscall(SYS_process_vm_writev, sys_tid(), from, count, to, count, 0);
	if (done == (ssize_t)wanted)
		return 0;
	if (done < 0 && forbidden()) {
		for (size_t i = 0; i < count; i++)
			memcpy(to[i].iov_base, from[i].iov_base, to[i].iov_len);
		return 0;
	}
	return EFAULT;
}
