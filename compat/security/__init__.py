"""SELinux and AppArmor, as far as they have a say on the bus; see docs/confinement.md.

Invariant: a kernel without either costs one look at the file system when the bus starts. Only the
kernel's own files are used, by which their libraries do it as well: no library is needed, and none
that is missing or broken can end the bus.

`selinuxfs` and `apparmorfs` are the kernel's interfaces, `selinux` and `apparmor` what dbus-daemon
makes of the kernel's answers, `audit` where that is written down, `mediation` all of it together.
"""

from __future__ import annotations
