/*
 * A node opened: open() of a socket says ENXIO, and then we look whether it is a bus's.
 *
 * Invariant: who opens a socket that is not a bus's gets what the C library gave: ENXIO.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define KDBUSFS "/sys/fs/kdbus"
#define VERSION 1
#define PATIENCE_MS 10000

/* A path below /sys/fs/kdbus, where JITNEY_KDBUS says what is there. */
const char *node_path(const char *path, char *buffer, size_t size)
{
	static const size_t length = sizeof(KDBUSFS) - 1;
	const char *there;

	if (!path || path[0] != '/' || strncmp(path, KDBUSFS, length) ||
	    (path[length] && path[length] != '/'))
		return path;
	there = secure_getenv("JITNEY_KDBUS");
	if (!there || !*there ||
	    (size_t)snprintf(buffer, size, "%s%s", there, path + length) >= size)
		return path;
	return buffer;
}

/* Whether a bus is there: it answers OPEN. Else ENXIO, or why it does not want us. */
static int greet(int fd)
{
	struct {
		struct head head;
		uint32_t version, zero;
		unsigned char token[16];
	} frame = {{.length = HEAD + 8, .op = OP_OPEN, .serial = 1}, VERSION, 0, {0}};
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	struct iovec part = {&frame, HEAD + 8};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t size;

	frame.head.tid = sys_tid();
	if (sys_sendmsg(fd, &message) < 0 || poll(&readable, 1, PATIENCE_MS) == 0)
		return ENXIO;
	part.iov_len = sizeof(frame);
	do
		size = sys_recvmsg(fd, &message, 0);
	while (size < 0 && errno == EINTR);
	if (size < HEAD || frame.head.op != (OP_OPEN | ANSWER) || frame.head.serial != 1)
		return ENXIO;
	if (frame.head.frees)
		return (int)frame.head.frees;
	return size < HEAD + 8 || frame.version != VERSION ? ENXIO : 0;
}

static int connect_node(int node, const char *path, int fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	/* Long paths, and those that start at a directory's descriptor. */
	if (!path || strlen(path) >= sizeof(address.sun_path))
		snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", node);
	else
		strcpy(address.sun_path, path);
	while (syscall(SYS_connect, fd, &address, sizeof(address)) < 0)
		if (errno != EINTR)
			return errno == EPROTOTYPE || errno == ECONNREFUSED ? ENXIO : errno;
	return 0;
}

int node_open(int directory, const char *path, int flags)
{
	struct stat status;
	int error = ENXIO;
	int node, fd = -1;

	node = real_openat(directory, path, O_PATH | O_CLOEXEC | (flags & O_NOFOLLOW), 0);
	if (node < 0)
		return -1;
	if (fstat(node, &status) == 0 && S_ISSOCK(status.st_mode)) {
		node = sys_fd_up(node); /* the program gets the lowest number */
		fd = (int)syscall(SYS_socket, AF_UNIX,
				  SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
		error = fd < 0 ? errno :
		       connect_node(node, *path == '/' || directory == AT_FDCWD ? path : NULL, fd);
		if (!error)
			error = greet(fd);
		if (!error && flags & O_NONBLOCK && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
			error = errno;
	}
	sys_close(node);
	if (error) {
		if (fd >= 0)
			sys_close(fd);
		errno = error;
		return -1;
	}
	handle_opened(fd);
	return fd;
}
