/*
 * Channels: a handle's other sockets. A command is sent on one and its answer read from it, so that
 * threads, and processes that share a handle, are in nobody's way.
 *
 * A channel is asked for on the program's own descriptor, and comes through a pair of sockets of which
 * the bus is given one end. So whoever has the descriptor can use it, as with kdbus: after fork(),
 * after execve(), as another user, from another root.
 *
 * Invariant: a channel's descriptor is used only while it is the socket that we were given: programs
 * close descriptors that they do not know.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* So long we wait for a socket that may not be a bus's at all. */
#define STRANGER_MS 10000
/* So long close() waits for a bus that does nothing. */
#define SETTLE_MS 1000

static size_t take_fds(struct msghdr *message, int *fds, size_t most)
{
	size_t count = 0;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t size = part->cmsg_len - CMSG_LEN(0);
		for (size_t at = 0; at + sizeof(int) <= size; at += sizeof(int)) {
			int fd;
			memcpy(&fd, CMSG_DATA(part) + at, sizeof(fd));
			if (count < most)
				fds[count++] = fd;
			else
				sys_close(fd);
		}
	}
	return count;
}

static void add_part(struct msghdr *message, int type, const void *data, size_t size)
{
	struct cmsghdr *part = (struct cmsghdr *)((char *)message->msg_control +
						  message->msg_controllen);

	memset(part, 0, CMSG_SPACE(size));
	part->cmsg_level = SOL_SOCKET;
	part->cmsg_type = type;
	part->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(part), data, size);
	message->msg_controllen += CMSG_SPACE(size);
}

/* What the kernel is to tell of us: kdbus looks at effective ids, sockets have the real ones. */
static void give_control(struct msghdr *message, char *control, const int *fds, size_t count)
{
	uint32_t user[3], group[3];

	message->msg_control = control;
	if (count)
		add_part(message, SCM_RIGHTS, fds, count * sizeof(int));
	if (syscall(SYS_getresuid, &user[0], &user[1], &user[2]) == 0 &&
	    syscall(SYS_getresgid, &group[0], &group[1], &group[2]) == 0 &&
	    (user[0] != user[1] || group[0] != group[1])) {
		uint32_t ids[3] = {sys_pid(), user[1], group[1]};
		add_part(message, SCM_CREDENTIALS, ids, sizeof(ids));
	}
	if (!message->msg_controllen)
		message->msg_control = NULL;
}

/* One end of a pair goes to the bus, and what comes back on the other is a channel. */
static int ask_for_channel(int handle, bool known, int *channel)
{
	struct {
		struct head head;
		_Alignas(8) char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(12)];
	} ask = {.head = {.length = HEAD, .op = OP_CHANNEL, .serial = 1, .tid = sys_tid()}}, back = {0};
	struct iovec part = {&ask.head, HEAD};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int pair[2];
	int error = 0;
	ssize_t done;

	if (syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return errno;
	give_control(&message, ask.control, &pair[1], 1);
	while ((done = sys_sendmsg(handle, &message)) < 0 && errno == EAGAIN) {
		struct pollfd writable = {.fd = handle, .events = POLLOUT};
		poll(&writable, 1, -1);
	}
	if (done < 0)
		error = errno;
	sys_close(pair[1]);
	if (!error && !known) {
		struct pollfd readable = {.fd = pair[0], .events = POLLIN};
		if (poll(&readable, 1, STRANGER_MS) == 0)
			error = ENOTTY;
	}
	if (!error) {
		part.iov_base = &back.head;
		message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_control = back.control,
					  .msg_controllen = sizeof(back.control)};
		do
			done = sys_recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC);
		while (done < 0 && errno == EINTR);
		if (done < HEAD)
			error = EPIPE;
		else if (back.head.frees)
			error = (int)back.head.frees;
		else if (take_fds(&message, channel, 1) != 1)
			error = EMFILE;
	}
	sys_close(pair[0]);
	return error;
}

struct channel *channel_new(int fd, uint64_t id, bool known, int *error)
{
	struct channel *channel;
	int own;

	*error = ask_for_channel(fd, known, &own);
	if (*error)
		return NULL;
	channel = real_mmap(NULL, sizeof(*channel), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (channel == MAP_FAILED) {
		sys_close(own);
		*error = ENOMEM;
		return NULL;
	}
	channel->id = id;
	channel->fd = sys_fd_up(own);
	channel->cookie = socket_id(channel->fd);
	channel->generation = generation();
	channel->fresh = true;
	return channel;
}

bool channel_is_sound(struct channel *channel)
{
	return channel->id && socket_id(channel->fd) == channel->cookie;
}

bool channel_has_ended(struct channel *channel)
{
	struct pollfd ended = {.fd = channel->fd};

	return poll(&ended, 1, 0) > 0;
}

void channel_destroy(struct channel *channel)
{
	if (channel_is_sound(channel))
		sys_close(channel->fd);
	if (channel->outbox_id && file_id(channel->outbox) == channel->outbox_id)
		sys_close(channel->outbox);
	munmap(channel, sizeof(*channel));
}

void frame_begin(struct channel *channel, unsigned op, size_t size)
{
	struct head head = {.length = (uint32_t)(HEAD + size), .op = (uint16_t)op,
			    .serial = ++channel->serial, .tid = sys_tid()};

	if (!head.serial)
		head.serial = ++channel->serial;
	memcpy(channel->frame, &head, HEAD);
	channel->part_count = 0;
	channel->sent_count = 0;
}

/* The frame in the buffer, and what else belongs to it. Where it fails, nothing was sent. */
int frame_send(struct channel *channel)
{
	struct head *head = (struct head *)channel->frame;
	struct msghdr message = {.msg_iov = channel->parts, .msg_iovlen = 1 + channel->part_count};

	channel->parts[0] = (struct iovec){channel->frame, head->length};
	for (size_t i = 1; i <= channel->part_count; i++)
		head->length += (uint32_t)channel->parts[i].iov_len;
	give_control(&message, channel->control, channel->sent_fds, channel->sent_count);
	if (sys_sendmsg(channel->fd, &message) >= 0)
		return 0;
	if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
		channel->broken = true;
	return errno == ETOOMANYREFS ? EMFILE : errno;
}

/* A frame of its own, while another one is in the buffer. */
int channel_slip(struct channel *channel, const struct head *head, int fd)
{
	_Alignas(8) char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(12)];
	struct iovec part = {(void *)head, HEAD};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	give_control(&message, control, &fd, 1);
	if (sys_sendmsg(channel->fd, &message) >= 0)
		return 0;
	if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
		channel->broken = true;
	return errno == ETOOMANYREFS ? EMFILE : errno;
}

static void cancel(struct channel *channel)
{
	uint32_t serial = channel->serial;
	struct {
		struct head head;
		uint32_t serial, zero;
	} frame = {{.length = sizeof(frame), .op = OP_CANCEL, .serial = serial + 1}, serial, 0};
	struct iovec part = {&frame, sizeof(frame)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	sys_sendmsg(channel->fd, &message);
}

/*
 * Waits for the answer; its errno. A signal whose handler lets system calls go on does not end it (the
 * kernel sees to that), another one ends a call that may be interrupted, unless the answer is there.
 */
int frame_answer(struct channel *channel, bool may_be_interrupted)
{
	struct head *head = (struct head *)channel->answer;
	bool cancelled = false;

	for (;;) {
		struct iovec part = {channel->answer, FRAME_MAX};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
					 .msg_control = channel->control,
					 .msg_controllen = sizeof(channel->control)};
		ssize_t size = sys_recvmsg(channel->fd, &message, MSG_CMSG_CLOEXEC);

		if (size < 0 && errno == EINTR) {
			if (may_be_interrupted && !cancelled)
				cancel(channel);
			cancelled = true;
			continue;
		}
		channel->fds_came = 0;
		if (size < HEAD || head->length != (size_t)size) {
			channel->broken = true;
			return handle_over(channel->id);
		}
		channel->fds_came = (uint32_t)take_fds(&message, channel->fds, FDS_MAX);
		if (head->serial != channel->serial || !(head->op & ANSWER)) {
			channel_close_fds(channel);
			continue;
		}
		channel->answer_size = (size_t)size - HEAD;
		return (int)head->frees;
	}
}

/* A frame that is in the buffer already, behind its head. */
int channel_ask(struct channel *channel, unsigned op, size_t size, int fd)
{
	int error;

	frame_begin(channel, op, size);
	if (fd >= 0)
		channel->sent_fds[channel->sent_count++] = fd;
	error = frame_send(channel);
	return error ? error : frame_answer(channel, false);
}

/* One that is not answered. */
void channel_tell(struct channel *channel, unsigned op, size_t size)
{
	frame_begin(channel, op, size);
	frame_send(channel);
}

/* kdbus's close() has done all when it returns; ours has when the bus has heard of it. */
void channel_settle(struct channel *channel)
{
	struct pollfd readable = {.fd = channel->fd, .events = POLLIN};
	int before = errno;

	frame_begin(channel, OP_SETTLE, 0);
	if (!frame_send(channel))
		poll(&readable, 1, SETTLE_MS);
	channel_destroy(channel);
	errno = before;
}

void channel_close_fds(struct channel *channel)
{
	for (uint32_t i = 0; i < channel->fds_came; i++)
		sys_close(channel->fds[i]);
	channel->fds_came = 0;
}
