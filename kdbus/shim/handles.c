/*
 * Which of the process's sockets are handles, and the idle channels to each.
 *
 * A handle is known by its socket, not by a number: dup() and fork() need not be watched. All that is
 * kept here can be had anew, so an entry that goes too early costs a round trip and nothing else.
 *
 * Invariant: an idle channel belongs to exactly one slot, and is used only for the handle whose id it
 * has, in the process that made it.
 */

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define ENTRIES 1024
#define IDLE 4
#define TURN_MS 5
#define TURNS 10
#define NOTED 65536

enum { NEVER_USED, GONE, FIRST_ID };

struct entry {
	_Atomic uint64_t id;
	_Atomic bool connected;
	_Atomic int pool; /* above 0: between HELLO and mmap */
	_Atomic uint64_t pool_id;
	_Atomic(struct channel *) idle[IDLE];
	/* Commands that will soon be over: more than IDLE of them wait for each other. */
	_Atomic int busy;
	_Atomic uint32_t busy_generation;
	_Atomic uint32_t turn;
	_Atomic int waiting;
};

struct life {
	_Atomic uint32_t generation;
	_Atomic uint32_t pid;
};

static struct entry table[ENTRIES];
static _Atomic uint32_t noted[NOTED / 32];
static _Atomic uint32_t generations;
static struct life without_page;
static struct life *_Atomic life_page;

/* A page that is zeros again in a forked process, however it was forked. */
static struct life *life(void)
{
	struct life *page = atomic_load(&life_page);
	struct life *none = NULL;

	if (page)
		return page;
	page = real_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || madvise(page, 4096, MADV_WIPEONFORK) < 0) {
		if (page != MAP_FAILED)
			munmap(page, 4096);
		page = &without_page;
	}
	if (!atomic_compare_exchange_strong(&life_page, &none, page) && page != &without_page)
		munmap(page, 4096);
	return atomic_load(&life_page);
}

uint32_t generation(void)
{
	struct life *now = life();
	uint32_t number = atomic_load(&now->generation);

	if (now == &without_page && atomic_load(&now->pid) != sys_pid())
		number = 0;
	if (!number) {
		uint32_t before = atomic_load(&now->generation);
		number = atomic_fetch_add(&generations, 1) + 1;
		atomic_store(&now->pid, sys_pid());
		if (!atomic_compare_exchange_strong(&now->generation, &before, number))
			number = before;
	}
	return number;
}

uint64_t socket_id(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);
	struct stat status;

	if (syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0)
		return cookie + FIRST_ID;
	if (errno == ENOTSOCK || errno == EBADF)
		return 0;
	/* Before Linux 4.12. */
	if (sys_fstat(fd, &status) < 0 || !S_ISSOCK(status.st_mode))
		return 0;
	return ((uint64_t)status.st_ino | 1ULL << 63) + FIRST_ID;
}

static struct entry *find(uint64_t id)
{
	for (size_t i = 0; i < ENTRIES; i++) {
		struct entry *entry = &table[(id + i) % ENTRIES];
		uint64_t there = atomic_load(&entry->id);
		if (there == id)
			return entry;
		if (there == NEVER_USED)
			break;
	}
	return NULL;
}

static void drop_pool(struct entry *entry)
{
	int pool = atomic_exchange(&entry->pool, 0);

	if (pool > 0 && file_id(pool) == atomic_load(&entry->pool_id))
		sys_close(pool);
}

static void drop_idle(struct entry *entry)
{
	for (size_t i = 0; i < IDLE; i++) {
		struct channel *channel = atomic_exchange(&entry->idle[i], NULL);
		if (channel)
			channel_destroy(channel);
	}
}

static void drop(struct entry *entry, uint64_t id)
{
	drop_idle(entry);
	drop_pool(entry);
	atomic_compare_exchange_strong(&entry->id, &id, GONE);
}

/* Handles whose descriptors went without our seeing it: the bus has closed their channels. */
static void sweep(void)
{
	for (size_t at = 0; at < ENTRIES; at++) {
		struct entry *entry = &table[at];
		uint64_t id = atomic_load(&entry->id);
		if (id < FIRST_ID)
			continue;
		for (size_t i = 0; i < IDLE; i++) {
			struct channel *channel = atomic_exchange(&entry->idle[i], NULL);
			if (!channel)
				continue;
			if (channel->generation != generation() || !channel_is_sound(channel))
				channel_destroy(channel);
			else if (channel_has_ended(channel)) {
				channel_destroy(channel);
				drop(entry, id);
			} else
				channel_release(channel);
		}
	}
}

static struct entry *insert(uint64_t id)
{
	struct entry *entry = find(id);

	if (entry)
		return entry;
	for (size_t i = 0; i < ENTRIES; i++) {
		uint64_t there;
		entry = &table[(id + i) % ENTRIES];
		there = atomic_load(&entry->id);
		if (there < FIRST_ID && atomic_compare_exchange_strong(&entry->id, &there, id)) {
			atomic_store(&entry->connected, false);
			atomic_store(&entry->busy, 0);
			return entry;
		}
	}
	return NULL;
}

static void note(int fd)
{
	uint32_t bit = 1U << (fd % 32);

	if (fd < NOTED && !(atomic_load(&noted[fd / 32]) & bit))
		atomic_fetch_or(&noted[fd / 32], bit);
}

bool handle_noted(int fd)
{
	return fd >= 0 && fd < NOTED && atomic_load(&noted[fd / 32]) & 1U << (fd % 32);
}

void handle_opened(int fd, struct channel *first)
{
	sweep();
	note(fd);
	insert(first->id);
	channel_release(first);
}

/* A descriptor is about to be closed. Another one may lead to the handle: that finds its way. */
struct channel *handle_closing(int fd)
{
	int before = errno;
	struct channel *last = NULL;
	struct life *now = life();
	struct entry *entry;
	uint64_t id;

	/* After vfork() memory is the parent's still, and descriptors are not. */
	generation();
	if (atomic_load(&now->pid) == sys_pid()) {
		atomic_fetch_and(&noted[fd / 32], ~(1U << (fd % 32)));
		id = socket_id(fd);
		entry = id ? find(id) : NULL;
		for (size_t i = 0; entry && i < IDLE && !last; i++) {
			last = atomic_exchange(&entry->idle[i], NULL);
			if (last && (last->generation != generation() || !channel_is_sound(last))) {
				channel_destroy(last);
				last = NULL;
			}
		}
		if (entry)
			drop(entry, id);
	}
	errno = before;
	return last;
}

/* A socket that we know, or one that came to us from elsewhere and may be a handle. */
bool is_handle(int fd, uint64_t id)
{
	int value = 0;
	socklen_t size = sizeof(value);

	if (find(id))
		return true;
	if (syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &value, &size) < 0 || value != AF_UNIX)
		return false;
	size = sizeof(value);
	return syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &value, &size) == 0 &&
	       value == SOCK_SEQPACKET;
}

void handle_connected(uint64_t id, int pool)
{
	struct entry *entry = find(id);
	int none = 0;

	if (!entry) {
		sys_close(pool);
		return;
	}
	atomic_store(&entry->connected, true);
	pool = sys_fd_up(pool);
	atomic_store(&entry->pool_id, file_id(pool));
	if (!atomic_compare_exchange_strong(&entry->pool, &none, pool))
		sys_close(pool);
}

int handle_take_pool(uint64_t id)
{
	struct entry *entry = find(id);
	int pool = entry ? atomic_exchange(&entry->pool, 0) : 0;

	return pool > 0 && file_id(pool) == atomic_load(&entry->pool_id) ? pool : -1;
}

int handle_over(uint64_t id)
{
	struct entry *entry = find(id);

	return entry && !atomic_load(&entry->connected) ? ESHUTDOWN : ECONNRESET;
}

static struct channel *claim_idle(struct entry *entry, uint64_t id)
{
	for (size_t i = 0; i < IDLE; i++) {
		struct channel *channel = atomic_exchange(&entry->idle[i], NULL);
		if (!channel)
			continue;
		if (channel->id == id && channel->generation == generation() &&
		    channel_is_sound(channel)) {
			channel->fresh = false;
			return channel;
		}
		channel_destroy(channel);
	}
	return NULL;
}

/* Waits until a command on this handle is over; not for ever, it may be one that we interrupted. */
static void wait_for_turn(struct entry *entry)
{
	uint32_t turn = atomic_load(&entry->turn);
	struct timespec patience = {0, TURN_MS * 1000000L};

	atomic_fetch_add(&entry->waiting, 1);
	if (atomic_load(&entry->busy) >= IDLE)
		syscall(SYS_futex, &entry->turn, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, turn, &patience,
			NULL, 0);
	atomic_fetch_sub(&entry->waiting, 1);
}

/* One for a command; `waits`: one that may wait for somebody else, who must not be in the way. */
struct channel *channel_claim(int fd, uint64_t id, bool waits, int *error)
{
	struct entry *entry = find(id);
	bool known = entry != NULL;
	struct channel *channel = NULL;
	uint32_t now = generation();

	if (entry && atomic_load(&entry->busy_generation) != now) {
		atomic_store(&entry->busy_generation, now);
		atomic_store(&entry->busy, 0);
		atomic_store(&entry->waiting, 0);
	}
	for (int turns = 0; entry && !channel; turns++) {
		channel = claim_idle(entry, id);
		if (channel || waits || turns == TURNS || atomic_load(&entry->busy) < IDLE)
			break;
		wait_for_turn(entry);
	}
	if (!channel)
		channel = channel_new(fd, id, known, error);
	if (!channel) {
		if (!known && (*error == ENOTCONN || *error == ENOTTY))
			*error = NOT_OURS;
		else if (*error == EPIPE || *error == ECONNRESET || *error == ENOTCONN)
			*error = handle_over(id);
		return NULL;
	}
	if (channel->fresh) {
		entry = insert(id);
		note(fd);
	}
	channel->counted = entry && !waits;
	if (channel->counted)
		atomic_fetch_add(&entry->busy, 1);
	return channel;
}

void channel_release(struct channel *channel)
{
	struct entry *entry = find(channel->id);
	bool kept = false;

	if (entry && channel->counted)
		atomic_fetch_sub(&entry->busy, 1);
	channel->counted = false;
	for (size_t i = 0; entry && !channel->broken && !kept && i < IDLE; i++) {
		struct channel *none = NULL;
		kept = atomic_compare_exchange_strong(&entry->idle[i], &none, channel);
	}
	if (!kept)
		channel_destroy(channel);
	if (entry && atomic_load(&entry->waiting) > 0) {
		atomic_fetch_add(&entry->turn, 1);
		syscall(SYS_futex, &entry->turn, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
	}
}
