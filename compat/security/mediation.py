"""Mediation: the kernel's security modules on one bus, who is labelled what, and what changes.

Invariant: who has no label where one is needed does not get in. A bus without a security module has
no Mediation, and its core no guard.

`mediate()` looks at the kernel. Tests, for which there is no such kernel, replace `find()` in
`selinuxfs` and `apparmorfs`, and `Mediation.label_of`, which tells what a peer is labelled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jitney.broker.security import Guard

from ..errors import FAILED, DBusError
from . import apparmorfs, selinuxfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jitney.broker.bus import Bus
    from jitney.broker.connection import Connection

    from ..config import Plain
    from ..creds import Credentials
    from ..front import Front
    from .apparmor import AppArmor
    from .audit import Audit
    from .selinux import SELinux

REQUIRED = "AppArmor mediation required but not present"


def _kernel_label(creds: Credentials) -> bytes | None:
    return creds.label()


class Mediation:
    """`label_of(creds)`: what the kernel knows a peer by; `reload()`: has the bus read its
    configuration again."""

    label_of: Callable[[Any], bytes | None] = staticmethod(_kernel_label)

    def __init__(
        self,
        bus: Bus,
        front: Front,
        config: Plain,
        loop: Any,
        reload: Callable[[], None],
        selinux: selinuxfs.SELinuxFS | None,
        apparmor: apparmorfs.AppArmorFS | None,
    ) -> None:
        from .audit import Audit

        self.bus = bus
        self.front = front
        self.loop = loop
        self.reload_soon = reload
        self.selinux: SELinux | None = None
        self.apparmor: AppArmor | None = None
        self.audit: Audit = Audit(self._log, self._warn)
        if selinux is not None:
            self.selinux = self._use_selinux(selinux)
            self.selinux.associate(config.selinux_contexts)
        if apparmor is not None:
            self.apparmor = self._use_apparmor(apparmor, config.type)
        modules = [module for module in (self.selinux, self.apparmor) if module is not None]
        bus.guard = self.guard = Guard(modules)
        if selinux is not None and selinux.mapped is not None:
            self.guard.watch(selinux.mapped)
        if apparmor is not None and apparmor.revision is not None:
            loop.add_reader(apparmor.revision, self._revised)

    def _use_selinux(self, kernel: selinuxfs.SELinuxFS) -> SELinux:
        from .selinux import SELinux

        try:
            kernel.map()
            module = SELinux(kernel, self.audit, self.front.complaint, self._warn, self._loaded)
        except (OSError, ValueError) as error:
            raise DBusError(FAILED, f"Error getting context of bus: {_why(error)}") from error
        self.front.log("info", "SELinux support is enabled\n")
        return module

    def _use_apparmor(self, kernel: apparmorfs.AppArmorFS, type: str | None) -> AppArmor:
        from .apparmor import AppArmor

        try:
            module = AppArmor(kernel, self.audit, self.front.complaint, type)
        except OSError as error:
            raise DBusError(
                FAILED, f"Error getting AppArmor context of bus: {_why(error)}"
            ) from error
        kernel.watch()
        self.front.log("info", "AppArmor D-Bus mediation is enabled\n")
        if not kernel.may_be_asked():
            self._warn(
                f"AppArmor mediates D-Bus, and the bus may not write to {kernel.place}/.access: "
                "whoever is confined is refused"
            )
        return module

    # Whose connections are whose

    def admits(self, creds: Credentials) -> bool:
        """Whether whoever connects has the label that it needs; says so if not."""
        label = self.label_of(creds)
        problem = ""
        if label is None and self.selinux is not None:
            problem = "Failed to read an SELinux context from connection"
        elif self.apparmor is not None:
            why = os.strerror(92 if label is None else 22)  # ENOPROTOOPT, EINVAL
            if label is None or apparmorfs.parse_confinement(label) is None:
                problem = f"Failed to get AppArmor confinement information of socket peer: {why}"
        if problem:
            self._warn(f"Unable to set up new connection: {problem}")
        return not problem

    def enter(self, conn: Connection) -> None:
        """Tells the core whose messages this connection's are."""
        creds = conn.creds
        self.guard.enter(conn, self.label_of(creds) if creds is not None else None)

    def check_activate(self, conn: Connection, msg: Any, label: str | None) -> None:
        """Raises what keeps this message from starting a service."""
        for module in self.guard.modules:
            problem = module.activate(conn, msg, label)
            if problem is not None:
                raise problem

    # What changes

    def reload(self, config: Plain) -> None:
        """Takes over another configuration. Whether AppArmor mediates is decided once."""
        if self.selinux is not None:
            self.selinux.associate(config.selinux_contexts)

    def _loaded(self) -> None:
        # In the midst of a message: later.
        self.loop.call_soon(self.reload_soon)

    def _revised(self) -> None:
        assert self.apparmor is not None
        kernel = self.apparmor.kernel
        if not kernel.settle() and kernel.revision is not None:
            # It will not tell us of another: each message is asked about from now on.
            self.loop.remove_reader(kernel.revision)
            kernel.close()
        self.guard.flush()

    def close(self) -> None:
        self.guard.unwatch()
        if self.apparmor is not None and self.apparmor.kernel.revision is not None:
            self.loop.remove_reader(self.apparmor.kernel.revision)
            self.apparmor.kernel.close()
        self.audit.close()

    def _log(self, text: str) -> None:
        self.front.log("security", text)

    def _warn(self, text: str) -> None:
        self.front.log("warning", text)


def present(mode: str) -> apparmorfs.AppArmorFS | None:
    """What mediates by AppArmor in this `<apparmor mode=...>`, or None. DBusError where it must and
    nothing does."""
    if mode == "disabled":
        return None
    kernel = apparmorfs.find()
    if kernel is not None and not apparmorfs.labels_peers():
        kernel = None
    if kernel is None and mode == "required":
        raise DBusError(FAILED, REQUIRED)
    return kernel


def mediate(
    bus: Bus, front: Front, config: Plain, loop: Any, reload: Callable[[], None]
) -> Mediation | None:
    """What this machine's security modules have to say on a bus; None if nothing. DBusError."""
    selinux = selinuxfs.find()
    apparmor = present(config.apparmor)
    if selinux is None and apparmor is None:
        return None
    return Mediation(bus, front, config, loop, reload, selinux, apparmor)


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)
