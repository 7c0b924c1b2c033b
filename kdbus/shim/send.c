/*
 * SEND: the message into the frame, its payload behind it or into the outbox, its descriptors beside.
 *
 * Invariant: what is wrong with a message is for the bus to say; here only pointers and descriptors
 * are looked for, in items that are as large as they have to be. Nothing beyond a size that the
 * program gave is read.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	AT_MESSAGE = 24, /* in the command */
	MESSAGE_LEAST = 64,
	PAYLOAD_MOST = 2 << 20, /* more is EMSGSIZE, whatever it is */

	ITEM_PAYLOAD_VEC = 2,
	ITEM_PAYLOAD_MEMFD = 4,
	ITEM_FDS = 5,
	ITEM_CANCEL_FD = 6,
};

/* A descriptor's number becomes its place in the list. */
static int add_fd(struct channel *channel, unsigned char *number)
{
	int32_t place = (int32_t)channel->sent_count;
	int32_t fd;

	memcpy(&fd, number, sizeof(fd));
	if (fd < 0)
		return EBADF;
	if (channel->sent_count == FDS_MAX)
		return EMFILE;
	channel->sent_fds[channel->sent_count++] = fd;
	memcpy(number, &place, sizeof(place));
	return 0;
}

/* How large the item at this place is; 0: it is none, and neither is what follows. */
static uint64_t item_size(const unsigned char *at, uint64_t left)
{
	uint64_t size = left < ITEM_HEAD ? 0 : get64(at);

	return size < ITEM_HEAD || size > left ? 0 : size;
}

static int gather_item(struct channel *channel, unsigned char *item, uint64_t size, uint64_t *payload)
{
	uint64_t type = get64(item + 8);
	int error = 0;

	if (type == ITEM_PAYLOAD_VEC && size == ITEM_HEAD + 16) {
		uint64_t length = get64(item + 16);
		uint64_t address = get64(item + 24);
		if (!address || !length)
			return 0;
		*payload = length > PAYLOAD_MOST ? PAYLOAD_MOST + 1 : *payload + length;
		if (channel->part_count < PARTS_MAX)
			channel->parts[++channel->part_count] =
				(struct iovec){(void *)(uintptr_t)address, length};
		else
			*payload = PAYLOAD_MOST + 1;
	} else if (type == ITEM_PAYLOAD_MEMFD && size == ITEM_HEAD + 24)
		error = add_fd(channel, item + 32);
	else if (type == ITEM_FDS)
		for (uint64_t at = ITEM_HEAD; at + 4 <= size && !error; at += 4)
			error = add_fd(channel, item + at);
	return error;
}

/* Addresses of payload become places: in the frame from `place` on, or in the outbox, or nowhere. */
static void place_payload(unsigned char *message, uint64_t message_size, uint64_t place)
{
	uint64_t size;

	for (uint64_t at = MESSAGE_LEAST; (size = item_size(message + at, message_size - at));
	     at += align8(size)) {
		unsigned char *item = message + at;
		if (get64(item + 8) == ITEM_PAYLOAD_VEC && size == ITEM_HEAD + 16 &&
		    get64(item + 16) && get64(item + 24)) {
			put64(item + 24, place);
			place += get64(item + 16);
		}
		if (align8(size) > message_size - at)
			break;
	}
}

/* There is an outbox; where there is none, it is made. */
static int outbox_ready(struct channel *channel)
{
	struct head head = {.length = HEAD, .op = OP_OUTBOX, .flags = QUIET, .tid = sys_tid()};
	int fd;

	if (channel->outbox_id && file_id(channel->outbox) == channel->outbox_id)
		return 0;
	fd = memory_new(PAYLOAD_MOST);
	if (fd < 0)
		return errno;
	channel->outbox = sys_fd_up(fd);
	channel->outbox_id = file_id(channel->outbox);
	/* Before the SEND; if it fails, an answer comes that nobody waits for, and the SEND as well. */
	head.serial = ~channel->serial;
	return channel_slip(channel, &head, channel->outbox);
}

static int fill_outbox(struct channel *channel, uint64_t payload)
{
	ssize_t done = syscall(SYS_pwritev, channel->outbox, &channel->parts[1],
			       channel->part_count, 0L, 0L);

	channel->part_count = 0;
	if (done == (ssize_t)payload)
		return 0;
	return done < 0 && errno != EFAULT ? errno : EFAULT;
}

/*
 * The command is in the frame, `size` bytes of it. Behind it comes the message as far as it can be read
 * by its own size; the bus finds out what is wrong with it.
 */
int send_gather(struct channel *channel, size_t size)
{
	struct head *head = (struct head *)channel->frame;
	unsigned char *command = channel->frame + HEAD;
	uint64_t from = channel->message = get64(command + AT_MESSAGE);
	uint64_t at = align8(HEAD + size);
	unsigned char *message = channel->frame + at;
	uint64_t payload = 0, length, item;
	int error = 0;

	for (uint64_t where = 56; !error && (item = item_size(command + where, size - where));
	     where += align8(item)) {
		if (get64(command + where + 8) == ITEM_CANCEL_FD && item == ITEM_HEAD + 4)
			error = add_fd(channel, command + where + ITEM_HEAD);
		if (align8(item) > size - where)
			break;
	}
	if (error)
		return error;
	if (!from && get64(command + AT_FLAGS) & FLAG_NEGOTIATE)
		return 0;
	if (!from || from % 8)
		return EFAULT;
	memset(channel->frame + HEAD + size, 0, at - HEAD - size);
	if (copy_in(message, from, MESSAGE_LEAST)) {
		error = copy_in(message, from, 8);
		return error ? error : get64(message) < MESSAGE_LEAST ? EINVAL : EFAULT;
	}
	length = get64(message);
	if (length < MESSAGE_LEAST || length > COMMAND_MOST)
		length = MESSAGE_LEAST;
	if (at + length > FRAME_MAX)
		return EMSGSIZE;
	error = copy_in(message + MESSAGE_LEAST, from + MESSAGE_LEAST, length - MESSAGE_LEAST);
	if (error)
		return error;
	put64(command + AT_MESSAGE, at);
	for (uint64_t where = MESSAGE_LEAST;
	     !error && (item = item_size(message + where, length - where)); where += align8(item)) {
		error = gather_item(channel, message + where, item, &payload);
		if (align8(item) > length - where)
			break;
	}
	if (error)
		return error;
	at += length;
	head->length = (uint32_t)at;
	if (payload > PAYLOAD_MOST) {
		/* It will be refused: there is nothing to be copied. */
		channel->part_count = 0;
		place_payload(message, length, IN_OUTBOX);
		return 0;
	}
	if (at + payload <= FRAME_MAX) {
		place_payload(message, length, at);
		return 0;
	}
	error = outbox_ready(channel);
	if (error)
		return error;
	place_payload(message, length, IN_OUTBOX);
	return fill_outbox(channel, payload);
}
