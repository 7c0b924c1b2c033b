/* A service and its user on sd-bus, for test_sd_bus.py: `sdbus ADDRESS serve|use NAME`.
 *
 * Invariant: nothing here knows which kind of bus it is on. What the user has seen is what it
 * prints, a line for each thing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#define INTERFACE "com.example.I"
#define LONG (1 << 20)

static int check(int r, const char *what)
{
	if (r < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(-r));
		exit(1);
	}
	return r;
}

static int filled(const char *text)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		check(-errno, "pipe");
	if (write(ends[1], text, strlen(text)) < 0)
		check(-errno, "write");
	close(ends[1]);
	return ends[0];
}

/* The service */

static int gone;

static int on_repeat(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *text;
	char *out;
	uint32_t n;
	int r = sd_bus_message_read(m, "su", &text, &n);

	if (r < 0)
		return r;
	if (n > 1000 || !(out = calloc(n + 1, strlen(text) + 1)))
		return -ENOMEM;
	while (n--)
		strcat(out, text);
	r = sd_bus_reply_method_return(m, "s", out);
	free(out);
	return r;
}

static int on_refuse(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return sd_bus_error_set(error, "com.example.Error.No", "Never");
}

static int on_length(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *text;
	int r = sd_bus_message_read(m, "s", &text);

	return r < 0 ? r : sd_bus_reply_method_return(m, "u", (uint32_t)strlen(text));
}

static int on_who(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	sd_bus_creds *creds;
	uid_t uid;
	pid_t pid;
	int r = sd_bus_query_sender_creds(m, SD_BUS_CREDS_EUID | SD_BUS_CREDS_PID, &creds);

	if (r < 0)
		return r;
	if ((r = sd_bus_creds_get_euid(creds, &uid)) >= 0 && (r = sd_bus_creds_get_pid(creds, &pid)) >= 0)
		r = sd_bus_reply_method_return(m, "uu", (uint32_t)uid, (uint32_t)pid);
	sd_bus_creds_unref(creds);
	return r;
}

static int on_take(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	char text[100];
	ssize_t n;
	int fd, r = sd_bus_message_read(m, "h", &fd);

	if (r < 0)
		return r;
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return -errno;
	text[n] = 0;
	return sd_bus_reply_method_return(m, "s", text);
}

static int on_give(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	int fd = filled("given"), r = sd_bus_reply_method_return(m, "h", fd);

	close(fd);
	return r;
}

static int on_poke(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	int r = sd_bus_emit_signal(sd_bus_message_get_bus(m), "/a", INTERFACE, "Poked", "s", "ouch");

	return r < 0 ? r : sd_bus_reply_method_return(m, "");
}

static int on_quit(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	gone = 1;
	return sd_bus_reply_method_return(m, "");
}

static const sd_bus_vtable table[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("Repeat", "su", "s", on_repeat, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Refuse", "", "", on_refuse, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Length", "s", "u", on_length, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Who", "", "uu", on_who, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Take", "h", "s", on_take, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Give", "", "h", on_give, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Poke", "", "", on_poke, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Quit", "", "", on_quit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_SIGNAL("Poked", "s", 0),
	SD_BUS_VTABLE_END
};

static void round_of(sd_bus *bus)
{
	if (check(sd_bus_process(bus, NULL), "process") == 0)
		check(sd_bus_wait(bus, UINT64_MAX), "wait");
}

static void serve(sd_bus *bus, const char *name)
{
	check(sd_bus_add_object_vtable(bus, NULL, "/a", INTERFACE, table, NULL), "vtable");
	check(sd_bus_request_name(bus, name, 0), "name");
	puts("ready");
	while (!gone)
		round_of(bus);
}

/* The user */

static int heard, changed;

static int on_poked(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *text;

	check(sd_bus_message_read(m, "s", &text), "signal");
	printf("heard %s\n", text);
	heard = 1;
	return 0;
}

static int on_changed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *name, *old, *new;

	check(sd_bus_message_read(m, "sss", &name, &old, &new), "signal");
	printf("changed %s %s %s\n", name, *old ? "owner" : "nobody", *new ? "owner" : "nobody");
	changed = 1;
	return 0;
}

static void told(const char *member, sd_bus_error *error)
{
	printf("%s: %s: %s\n", member, error->name, error->message);
	sd_bus_error_free(error);
}

/* The reply, or NULL if it was an error, which is printed. */
#define CALL(name, member, ...) ({ \
	sd_bus_error error_ = SD_BUS_ERROR_NULL; \
	sd_bus_message *reply_ = NULL; \
	if (sd_bus_call_method(bus, name, "/a", INTERFACE, member, &error_, &reply_, __VA_ARGS__) < 0) \
		told(member, &error_); \
	reply_; })

static void repeat(sd_bus *bus, const char *name)
{
	sd_bus_message *reply = CALL(name, "Repeat", "su", "ab", (uint32_t)3);
	const char *text;

	if (!reply)
		return;
	check(sd_bus_message_read(reply, "s", &text), "read");
	printf("Repeat: %s\n", text);
	sd_bus_message_unref(reply);
}

static void use(sd_bus *bus, const char *name)
{
	char rule[500], bytes[100], *text;
	const char *said;
	uint32_t length, uid, pid;
	sd_bus_message *reply;
	ssize_t n;
	int fd;

	snprintf(rule, sizeof(rule), "type='signal',sender='%s',interface='%s',member='Poked'", name, INTERFACE);
	check(sd_bus_add_match(bus, NULL, rule, on_poked, NULL), "match");
	snprintf(rule, sizeof(rule),
		 "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='%s'", name);
	check(sd_bus_add_match(bus, NULL, rule, on_changed, NULL), "match");

	repeat(bus, name);
	sd_bus_message_unref(CALL(name, "Refuse", ""));
	sd_bus_message_unref(CALL(name, "Unknown", ""));
	repeat(bus, "com.example.Nobody");

	if (!(text = malloc(LONG + 1)))
		check(-ENOMEM, "malloc");
	memset(text, 'x', LONG);
	text[LONG] = 0;
	if ((reply = CALL(name, "Length", "s", text))) {
		check(sd_bus_message_read(reply, "u", &length), "read");
		printf("Length: %" PRIu32 "\n", length);
		sd_bus_message_unref(reply);
	}
	free(text);

	if ((reply = CALL(name, "Who", ""))) {
		check(sd_bus_message_read(reply, "uu", &uid, &pid), "read");
		printf("Who: %s %s\n", uid == geteuid() ? "me" : "another",
		       pid == (uint32_t)getpid() ? "me" : "another");
		sd_bus_message_unref(reply);
	}

	fd = filled("taken");
	if ((reply = CALL(name, "Take", "h", fd))) {
		check(sd_bus_message_read(reply, "s", &said), "read");
		printf("Take: %s\n", said);
		sd_bus_message_unref(reply);
	}
	close(fd);

	if ((reply = CALL(name, "Give", ""))) {
		check(sd_bus_message_read(reply, "h", &fd), "read");
		n = read(fd, bytes, sizeof(bytes));
		printf("Give: %.*s\n", n < 0 ? 1 : (int)n, n < 0 ? "-" : bytes);
		sd_bus_message_unref(reply);
	}

	sd_bus_message_unref(CALL(name, "Poke", ""));
	while (!heard)
		round_of(bus);
	sd_bus_message_unref(CALL(name, "Quit", ""));
	while (!changed)
		round_of(bus);
	repeat(bus, name);
}

int main(int argc, char **argv)
{
	sd_bus *bus;

	if (argc != 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	check(sd_bus_new(&bus), "bus");
	check(sd_bus_set_address(bus, argv[1]), "address");
	check(sd_bus_set_bus_client(bus, 1), "client");
	check(sd_bus_negotiate_fds(bus, 1), "fds");
	check(sd_bus_start(bus), "start");
	if (strcmp(argv[2], "serve") == 0)
		serve(bus, argv[3]);
	else
		use(bus, argv[3]);
	check(sd_bus_flush(bus), "flush");
	sd_bus_unref(bus);
	return 0;
}
