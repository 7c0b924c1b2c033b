/*
 * The shim: kdbus's system calls on a bus that is reached through sockets (docs/native.md).
 *
 * exports.c    the functions that take the place of the C library's
 * system.c     system calls, and the program's memory through them
 * open.c       a node opened: the program's descriptor is a socket
 * handles.c    which sockets are handles, and the idle channels to each
 * channel.c    a channel: one more socket of a handle, for one command at a time
 * command.c    a command's way from the program's memory to the bus, and back
 * send.c       the same for SEND, whose message, payload and descriptors come along
 * memory.c     memory for payload that does not fit a frame
 *
 * Invariant: nothing here takes a lock, allocates from the heap or changes errno where it succeeds, so
 * that all of it may be called from a signal handler and after fork(). The program's memory is only
 * touched by system calls, which say EFAULT.
 */

#ifndef JITNEY_SHIM_H
#define JITNEY_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || !defined(__LP64__)
#error "only 64 bits and little-endian"
#endif

/* The format: docs/native.md. */
enum {
	HEAD = 24,
	FRAME_MAX = 65536,
	FDS_MAX = 253,
	PARTS_MAX = 128, /* more items no message may have */

	OP_BYEBYE = 0x82,
	OP_HELLO = 0x80,
	OP_SEND = 0x90,
	OP_RECV = 0x91,
	OP_OUTBOX = 0x102,
	OP_NUMBERS = 0x103,
	OP_WOKEN = 0x104,
	OP_CANCEL = 0x105,
	OP_POOL = 0x107,
	OP_CHANNEL = 0x108,
	OP_SETTLE = 0x109,
	OP_WAKE = 0x8200,
	ANSWER = 0x8000,
	QUIET = 1,
};

/* kdbus's commands: where their fields are. */
enum {
	AT_SIZE = 0,
	AT_FLAGS = 8,
	AT_RETURN_FLAGS = 16,
	COMMAND_LEAST = 24,
	COMMAND_MOST = 32768,
	ITEM_HEAD = 16,
};
#define FLAG_NEGOTIATE (1ULL << 63)
#define IN_OUTBOX (1ULL << 63)
#define NOT_OURS (-1) /* in place of an errno: a socket that is no handle */

#define HIDDEN __attribute__((visibility("hidden")))

struct head {
	uint32_t length;
	uint16_t op;
	uint16_t flags;
	uint32_t serial;
	uint32_t frees; /* in an answer: error */
	uint32_t credit; /* in an answer: how many descriptors */
	uint32_t tid;
};

/* A channel is a mapping of its own. Who has claimed it may use it, and nobody else. */
struct channel {
	uint64_t id; /* of the handle */
	uint64_t cookie; /* of our own socket: that the descriptor still is it */
	uint32_t generation;
	uint32_t serial;
	int fd;
	int outbox;
	uint64_t outbox_id; /* 0: none yet */
	uint64_t outbox_size;
	bool fresh; /* made for this command */
	bool counted; /* among those whose command will soon be over */
	bool broken;
	/* Of the answer: descriptors that came, -1 behind them for those that did not fit. */
	int fds[FDS_MAX];
	uint32_t fds_came;
	size_t answer_size;
	/* Of the request: what is sent behind the frame's buffer (parts[0]), and descriptors. */
	struct iovec parts[1 + PARTS_MAX];
	size_t part_count;
	int sent_fds[FDS_MAX];
	size_t sent_count;
	uint64_t message; /* SEND's, in the program */
	_Alignas(8) char control[CMSG_SPACE(FDS_MAX * sizeof(int)) + CMSG_SPACE(12)];
	_Alignas(8) unsigned char frame[FRAME_MAX];
	_Alignas(8) unsigned char answer[FRAME_MAX];
};

/* System calls that are no cancellation points, and nobody's to interpose. */
HIDDEN ssize_t sys_sendmsg(int fd, const struct msghdr *message);
HIDDEN ssize_t sys_recvmsg(int fd, struct msghdr *message, int flags);
HIDDEN int sys_close(int fd);
HIDDEN int sys_fstat(int fd, struct stat *status);
HIDDEN int sys_fd_up(int fd); /* the same out of the program's way, close-on-exec */
HIDDEN uint32_t sys_tid(void);
HIDDEN uint32_t sys_pid(void);

/* 0 or an errno. */
HIDDEN int copy_in(void *to, uint64_t from, size_t size);
HIDDEN int copy_out(const struct iovec *from, const struct iovec *to, size_t count);

HIDDEN uint64_t socket_id(int fd); /* never used again for another socket; 0: no socket */
HIDDEN bool is_handle(int fd, uint64_t id);
HIDDEN void handle_opened(int fd, struct channel *first);
HIDDEN bool handle_noted(int fd);
HIDDEN struct channel *handle_closing(int fd); /* one to settle it on, or NULL */
HIDDEN void handle_connected(uint64_t id, int pool); /* which is kept, or closed */
HIDDEN int handle_take_pool(uint64_t id); /* -1: it has to be asked for */
HIDDEN int handle_over(uint64_t id); /* the errno where the bus is gone */
HIDDEN struct channel *channel_claim(int fd, uint64_t id, bool waits, int *error);
HIDDEN void channel_release(struct channel *channel);
HIDDEN uint32_t generation(void);

HIDDEN struct channel *channel_new(int fd, uint64_t id, bool known, int *error);
HIDDEN void channel_destroy(struct channel *channel);
HIDDEN bool channel_is_sound(struct channel *channel);
HIDDEN bool channel_has_ended(struct channel *channel);
HIDDEN void frame_begin(struct channel *channel, unsigned op, size_t size);
HIDDEN int frame_send(struct channel *channel);
HIDDEN int frame_answer(struct channel *channel, bool may_be_interrupted);
HIDDEN uint64_t file_id(int fd); /* of memory; 0: it is none */
HIDDEN int channel_slip(struct channel *channel, const struct head *head, int fd);
HIDDEN int channel_ask(struct channel *channel, unsigned op, size_t size, int fd);
HIDDEN void channel_tell(struct channel *channel, unsigned op, size_t size);
HIDDEN void channel_settle(struct channel *channel);
HIDDEN void channel_close_fds(struct channel *channel);

/* -1 and errno, or the descriptor; `path` is a socket's. */
HIDDEN int node_open(int directory, const char *path, int flags);
HIDDEN void node_place(void);
HIDDEN const char *node_path(const char *path, char *buffer, size_t size);

/* Whether it was ours; then *result and errno are what the program gets. */
HIDDEN bool command_run(int fd, uint32_t number, uint64_t argument, int *result);
HIDDEN bool pool_map(void *address, size_t length, int protection, int flags, int fd, off_t offset,
		     void **result);

/* -1 and errno, or the descriptor of memory that nobody else has. */
HIDDEN int memory_new(off_t size);

/* Brings the message into the frame behind the command; 0 or an errno. */
HIDDEN int send_gather(struct channel *channel, size_t size);

/* What the C library would have done. */
HIDDEN int real_openat(int directory, const char *path, int flags, mode_t mode);
HIDDEN void *real_mmap(void *address, size_t length, int protection, int flags, int fd,
		       off_t offset);

static inline uint64_t align8(uint64_t size)
{
	return (size + 7) & ~7ULL;
}

static inline uint64_t get64(const void *from)
{
	uint64_t value;
	__builtin_memcpy(&value, from, sizeof(value));
	return value;
}

static inline void put64(void *to, uint64_t value)
{
	__builtin_memcpy(to, &value, sizeof(value));
}

#endif
