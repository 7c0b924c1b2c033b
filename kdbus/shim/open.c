/*
 * A node opened: open() of a socket says ENXIO, and then we look whether it is a bus's.
 *
 * Invariant: who opens a socket that is not a bus's gets what the C library gave: ENXIO.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define KDBUSFS "/sys/fs/kdbus"

static const char *place;

/* What JITNEY_KDBUS says is /sys/fs/kdbus; not for who has more rights than who set it. */
void node_place(void)
{
	const char *there = secure_getenv("JITNEY_KDBUS");

	place = there && *there ? there : NULL;
}

const char *node_path(const char *path, char *buffer, size_t size)
{
	static const size_t length = sizeof(KDBUSFS) - 1;
	char start;

	/* A path may be no pointer at all. */
	if (!place || copy_in(&start, (uintptr_t)path, 1) || start != '/' ||
	    strncmp(path, KDBUSFS, length) || (path[length] && path[length] != '/') ||
	    (size_t)snprintf(buffer, size, "%s%s", place, path + length) >= size)
		return path;
	return buffer;
}

/* Whether a bus is there: it gives us a channel. Else ENXIO, or why it does not want us. */
static struct channel *greet(int fd, uint64_t id, int *error)
{
	struct head head;
	struct iovec part = {&head, HEAD};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	struct channel *channel = channel_new(fd, id, false, error);

	if (channel || *error == EMFILE || *error == ENOMEM)
		return channel;
	*error = ENXIO;
	if (sys_recvmsg(fd, &message, MSG_DONTWAIT) == HEAD && head.op == (OP_CHANNEL | ANSWER) &&
	    head.frees)
		*error = (int)head.frees;
	return NULL;
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
	struct channel *channel = NULL;

	node = real_openat(directory, path, O_PATH | O_CLOEXEC | (flags & O_NOFOLLOW), 0);
	if (node < 0)
		return -1;
	if (sys_fstat(node, &status) == 0 && S_ISSOCK(status.st_mode)) {
		node = sys_fd_up(node); /* the program gets the lowest number */
		fd = (int)syscall(SYS_socket, AF_UNIX,
				  SOCK_SEQPACKET | (flags & O_CLOEXEC ? SOCK_CLOEXEC : 0), 0);
		error = fd < 0 ? errno :
		       connect_node(node, *path == '/' || directory == AT_FDCWD ? path : NULL, fd);
		if (!error)
			channel = greet(fd, socket_id(fd), &error);
		if (!error && flags & O_NONBLOCK && fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
			error = errno;
	}
	sys_close(node);
	if (error) {
		if (channel)
			channel_destroy(channel);
		if (fd >= 0)
			sys_close(fd);
		errno = error;
		return -1;
	}
	handle_opened(fd, channel);
	return fd;
}
