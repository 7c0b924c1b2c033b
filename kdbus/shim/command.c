/*
 * A command's way: from the program's memory into a frame, and what came of it back.
 *
 * Invariant: a command is answered by the bus alone; what is decided here is what the bus cannot see,
 * which is the program's memory.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define ITEM_NEGOTIATE 1
#define SEND_SYNC_REPLY 1
#define INCOMPLETE_FDS 1

#define READS (1U << 31)
#define WRITES (1U << 30)

/* The ioctls' numbers: direction, size of the struct, kdbus's own letter, operation. */
#define COMMAND(direction, size, op) ((direction) | (size) << 16 | 0x95U << 8 | (op))

static const uint32_t commands[] = {
	COMMAND(WRITES, 24U, 0x00), COMMAND(WRITES, 24U, 0x10), COMMAND(WRITES, 24U, 0x11),
	COMMAND(WRITES | READS, 96U, 0x80), COMMAND(WRITES, 24U, 0x81), COMMAND(WRITES, 24U, 0x82),
	COMMAND(WRITES, 32U, 0x83), COMMAND(READS, 56U, 0x84), COMMAND(READS, 56U, 0x85),
	COMMAND(READS, 40U, 0x86), COMMAND(WRITES, 56U, 0x90), COMMAND(READS, 64U, 0x91),
	COMMAND(WRITES, 24U, 0xa0), COMMAND(WRITES, 24U, 0xa1), COMMAND(WRITES, 32U, 0xb0),
	COMMAND(WRITES, 32U, 0xb1),
};

static bool is_command(uint32_t number)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (commands[i] == number)
			return true;
	return false;
}

struct writes {
	struct iovec from[66], to[66];
	size_t count;
};

static void write_back(struct writes *writes, unsigned char *answer, uint64_t to, size_t at,
		       size_t end)
{
	if (at >= end || writes->count == 66)
		return;
	writes->from[writes->count] = (struct iovec){answer + at, end - at};
	writes->to[writes->count++] = (struct iovec){(void *)(uintptr_t)(to + at), end - at};
}

/* What was asked with NEGOTIATE: lists of types of items. */
static void write_negotiated(struct writes *writes, unsigned char *answer, size_t size, size_t items,
			     uint64_t to)
{
	for (size_t at = items; at + ITEM_HEAD <= size;) {
		uint64_t length = get64(answer + at);
		if (length < ITEM_HEAD || length > size - at)
			break;
		if (get64(answer + at + 8) == ITEM_NEGOTIATE)
			write_back(writes, answer, to, at + ITEM_HEAD, at + length);
		at += align8(length);
	}
}

static int answer_back(struct channel *channel, unsigned op, size_t fixed, uint64_t to)
{
	unsigned char *answer = channel->answer + HEAD;
	size_t size = channel->answer_size;
	struct writes writes = {.count = 0};

	if (size < fixed)
		return 0;
	if (op == OP_SEND) {
		/* The message's address is ours, the rest is the program's. */
		write_back(&writes, answer, to, AT_FLAGS, 24);
		write_back(&writes, answer, to, 32, fixed);
	} else
		write_back(&writes, answer, to, AT_FLAGS, fixed);
	if (size > fixed) {
		size_t command = get64(answer);
		if (command > size)
			command = size;
		write_negotiated(&writes, answer, command, fixed, to);
		command = align8(command);
		if (op == OP_SEND && channel->message && size >= command + 64) {
			write_back(&writes, answer + command, channel->message, AT_FLAGS,
				   AT_FLAGS + 8);
			write_negotiated(&writes, answer + command, size - command, 64,
					 channel->message);
		}
	}
	return copy_out(writes.from, writes.to, writes.count);
}

/* Descriptors that came with a message: the bus puts their numbers where the program will look. */
static void tell_numbers(struct channel *channel, size_t info)
{
	unsigned char *answer = channel->answer + HEAD;
	uint32_t promised = ((struct head *)channel->answer)->credit;
	uint32_t came = channel->fds_came;
	unsigned char kept[64];
	size_t size = channel->answer_size;

	if (!promised || size < info + 24 || size > sizeof(kept) || promised > FDS_MAX)
		return;
	memcpy(kept, answer, size);
	memcpy(channel->frame + HEAD, answer + info, 8);
	for (uint32_t i = came; i < promised; i++)
		channel->fds[i] = -1;
	memcpy(channel->frame + HEAD + 8, channel->fds, promised * sizeof(int));
	channel_ask(channel, OP_NUMBERS, 8 + promised * sizeof(int), -1);
	memcpy(answer, kept, size);
	channel->answer_size = size;
	if (came < promised)
		put64(answer + info + 16, get64(answer + info + 16) | INCOMPLETE_FDS);
}

/* The program's socket is readable while something is queued: docs/native.md, "Being told". */
static void take_wake(int fd, struct channel *channel)
{
	struct head head;
	struct iovec part = {&head, HEAD};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (sys_recvmsg(fd, &message, MSG_DONTWAIT) == HEAD && head.op == OP_WAKE)
		channel_tell(channel, OP_WOKEN, 0);
}

/* The command into the frame; an errno where it cannot be read. */
static int gather(struct channel *channel, unsigned op, size_t fixed, uint64_t argument)
{
	unsigned char *command = channel->frame + HEAD;
	uint64_t size;
	int error;

	frame_begin(channel, op, fixed);
	if (copy_in(command, argument, fixed)) {
		error = copy_in(command, argument, 8);
		if (error)
			return error;
		size = get64(command);
		return size < fixed ? EINVAL : size > COMMAND_MOST ? EMSGSIZE : EFAULT;
	}
	size = get64(command);
	if (size < fixed || size > COMMAND_MOST)
		return 0; /* the bus says what it is */
	error = copy_in(command + fixed, argument + fixed, size - fixed);
	if (error)
		return error;
	((struct head *)channel->frame)->length = (uint32_t)(HEAD + size);
	return op == OP_SEND ? send_gather(channel, size) : 0;
}

static int run(int fd, uint64_t id, unsigned op, size_t fixed, uint64_t argument)
{
	struct channel *channel;
	int error, failed;
	uint64_t flags;
	bool sync = op == OP_SEND && !copy_in(&flags, argument + AT_FLAGS, 8) &&
		    flags & SEND_SYNC_REPLY;

	if (argument % 8)
		return EFAULT;
	for (;;) {
		channel = channel_claim(fd, id, sync, &error);
		if (!channel)
			return error;
		error = gather(channel, op, fixed, argument);
		if (!error)
			error = frame_send(channel);
		if (!channel->broken)
			break;
		/* An idle one that the bus has closed meanwhile. */
		bool fresh = channel->fresh;
		channel_release(channel);
		if (fresh)
			return handle_over(id);
	}
	if (!error) {
		channel->answer_size = 0;
		error = frame_answer(channel, sync);
		if (!channel->broken) {
			if (op == OP_HELLO) {
				if (!error && channel->fds_came) {
					handle_connected(id, channel->fds[0]);
					channel->fds[0] = channel->fds[--channel->fds_came];
				}
				channel_close_fds(channel);
			} else if (op == OP_SEND)
				tell_numbers(channel, 32);
			else if (op == OP_RECV) {
				tell_numbers(channel, 40);
				take_wake(fd, channel);
			} else
				channel_close_fds(channel);
			failed = answer_back(channel, op, fixed, argument);
			if (failed)
				error = failed;
		}
	}
	channel_release(channel);
	return error;
}

bool command_run(int fd, uint32_t number, uint64_t argument, int *result)
{
	int before = errno;
	uint64_t id;
	int error;

	if (!is_command(number))
		return false;
	id = socket_id(fd);
	error = id && is_handle(fd, id) ?
			run(fd, id, number & 0xff, number >> 16 & 0x3fff, argument) : NOT_OURS;
	if (error == NOT_OURS) {
		errno = before;
		return false;
	}
	errno = error ? error : before;
	*result = error ? -1 : 0;
	return true;
}

/* The pool's descriptor, or an errno below 0. */
static int get_pool(int fd, uint64_t id)
{
	struct channel *channel;
	int error, pool = handle_take_pool(id);

	if (pool >= 0)
		return pool;
	channel = channel_claim(fd, id, false, &error);
	if (!channel)
		return error == NOT_OURS ? -ENODEV : -error;
	error = channel_ask(channel, OP_POOL, 0, -1);
	if (!error && !channel->fds_came)
		error = EMFILE;
	pool = -error;
	if (!error) {
		pool = channel->fds[0];
		channel->fds[0] = channel->fds[--channel->fds_came];
	}
	channel_close_fds(channel);
	channel_release(channel);
	return pool;
}

/* Maps the pool in place of the socket, which cannot be mapped. */
bool pool_map(void *address, size_t length, int protection, int flags, int fd, off_t offset,
	      void **result)
{
	uint64_t id = socket_id(fd);
	struct stat status;
	int error = 0, pool;

	if (!id || !is_handle(fd, id))
		return false;
	*result = MAP_FAILED;
	pool = get_pool(fd, id);
	if (pool < 0)
		error = -pool;
	else if (protection & PROT_WRITE)
		error = EPERM;
	else if (sys_fstat(pool, &status) == 0 && length > (uint64_t)status.st_size)
		error = EFAULT;
	else {
		/* Shared, and of a file that is open for reading: it can never be made writable. */
		*result = real_mmap(address, length, protection,
				    (flags & ~MAP_PRIVATE) | MAP_SHARED, pool, offset);
		if (*result == MAP_FAILED)
			error = errno;
	}
	if (pool >= 0)
		sys_close(pool);
	if (error)
		errno = error;
	return true;
}
