"""Draft: a configuration while its files are being read.

Invariant: a file is read into a draft of its own, which its includer takes over only if all of it
was good. So a bad file that may be skipped leaves no trace but a warning.
"""

from __future__ import annotations

from .model import Config, ConfigWarning, Listen, Policy, ServiceDir

# Every <limit> there is; True: its value must fit C's int. The last four are about app containers,
# an unfinished interface that dbus-daemon knows limits for, but nothing that they could limit.
LIMITS = {
    "max_incoming_bytes": False,
    "max_incoming_unix_fds": False,
    "max_outgoing_bytes": False,
    "max_outgoing_unix_fds": False,
    "max_message_size": False,
    "max_message_unix_fds": False,
    "service_start_timeout": True,
    "auth_timeout": True,
    "pending_fd_timeout": True,
    "reply_timeout": True,
    "max_completed_connections": True,
    "max_incomplete_connections": True,
    "max_connections_per_user": True,
    "max_pending_service_starts": True,
    "max_names_per_connection": True,
    "max_match_rules_per_connection": True,
    "max_replies_per_connection": True,
    "max_containers": True,
    "max_containers_per_user": True,
    "max_container_metadata_bytes": True,
    "max_connections_per_container": True,
}


class Draft:
    """The fields of `Config`, to be filled in."""

    def __init__(self) -> None:
        self.type: str | None = None
        self.user: str | None = None
        self.pidfile: str | None = None
        self.servicehelper: str | None = None
        self.apparmor: str | None = None
        self.fork = False
        self.keep_umask = False
        self.syslog = False
        self.allow_anonymous = False
        self.listen: list[Listen] = []
        self.auth: list[str] = []
        self.service_dirs: dict[str, ServiceDir] = {}
        self.include_dirs: list[str] = []
        self.files: list[str] = []
        self.limit_values: dict[str, int] = {}
        self.policies: list[Policy] = []
        self.selinux_contexts: dict[str, str] = {}
        self.warnings: list[ConfigWarning] = []

    def warn(self, file: str, line: int, text: str) -> None:
        self.warnings.append(ConfigWarning(file=file, line=line, text=text))

    def add_service_dir(self, new: ServiceDir) -> None:
        """Appends a directory. One that is there already keeps its place and loses its special
        treatment, if it had any: it is an ordinary directory to somebody."""
        old = self.service_dirs.get(new.path)
        if old is not None:
            new = old.model_copy(
                update={"watched": old.watched or new.watched, "strict": old.strict and new.strict}
            )
        self.service_dirs[new.path] = new

    def take_over(self, included: Draft) -> None:
        """What an included file says, as if it stood here."""
        self.type = _latest(included.type, self.type)
        self.user = _latest(included.user, self.user)
        self.pidfile = _latest(included.pidfile, self.pidfile)
        self.servicehelper = _latest(included.servicehelper, self.servicehelper)
        self.apparmor = _latest(included.apparmor, self.apparmor)
        self.fork |= included.fork
        self.keep_umask |= included.keep_umask
        self.allow_anonymous |= included.allow_anonymous
        # Not `syslog`: dbus-daemon heeds it in the main file only.
        self.listen += included.listen
        self.auth += included.auth
        for directory in included.service_dirs.values():
            self.add_service_dir(directory)
        self.include_dirs += included.include_dirs
        self.files += included.files
        self.limit_values |= included.limit_values
        self.policies += included.policies
        self.selinux_contexts |= included.selinux_contexts
        self.warnings += included.warnings

    def finish(self) -> Config:
        return Config.model_validate(
            {
                "type": self.type,
                "user": self.user,
                "fork": self.fork,
                "keep_umask": self.keep_umask,
                "syslog": self.syslog,
                "allow_anonymous": self.allow_anonymous,
                "pidfile": self.pidfile,
                "servicehelper": self.servicehelper,
                "listen": tuple(self.listen),
                "auth": tuple(self.auth),
                "service_dirs": tuple(self.service_dirs.values()),
                "include_dirs": tuple(self.include_dirs),
                "files": tuple(self.files),
                "limit_values": self.limit_values,
                "policies": tuple(self.policies),
                "apparmor": self.apparmor or "enabled",
                "selinux_contexts": self.selinux_contexts,
                "warnings": tuple(self.warnings),
            }
        )


def _latest(new: str | None, old: str | None) -> str | None:
    return old if new is None else new
