"""Makes the machine that tests/vm boots: Debian, with jitney as its system bus and user bus.

    python tests/vm/image.py [--wheel FILE] [DEST]

DEST (default: build/vm) gets root.img, vmlinuz and initrd.img, another kernel for AppArmor beside
(`newer`), and keeps what the next run need not do again: downloaded packages, and the file system's
tree. It needs root (packages are unpacked and configured in a chroot, in a mount namespace of its
own), debootstrap, mkfs.ext4 and a Debian mirror: the one that apt has. The wheel is the one that
`make` built, for the Python that Debian has; what jitney needs beside is fetched by pip.

Invariant: nothing is mounted outside of that namespace, no loop device is used, and nothing is
written outside of DEST.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import newer
from chroot import inside, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RELEASE = "bookworm"
WHEELS = "cp311"

PACKAGES = (
    # the machine
    "linux-image-amd64", "initramfs-tools", "udev", "kmod", "iproute2", "procps", "busybox",
    "systemd-sysv", "systemd-timesyncd", "libpam-systemd",
    # buses to compare with, whose files ours read; clients of other libraries
    "dbus", "dbus-user-session", "polkitd", "libglib2.0-bin",
    # jitney
    "python3", "python3-venv",
    # mediation
    "selinux-policy-default", "policycoreutils", "selinux-utils", "selinux-policy-dev", "make",
    "apparmor", "apparmor-utils", "auditd",
)  # fmt: skip

# Nothing to look at here, and slow.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
    "systemd-networkd-wait-online.service", "systemd-pstore.service",
)  # fmt: skip
ENABLED = ("vm-checks.service", "systemd-networkd.service", "serial-getty@ttyS2.service")
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
CONTEXTS = "/etc/selinux/default/contexts/files/file_contexts"


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the machine that tests/vm boots.")
    parser.add_argument("dest", nargs="?", type=Path, default=ROOT / "build/vm")
    parser.add_argument("--wheel", type=Path, help="jitney, for Debian's Python")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("image.py: this needs root, for debootstrap")
    for program in ("debootstrap", "mkfs.ext4", "unshare"):
        if shutil.which(program) is None:
            sys.exit(f"image.py: {program} is missing")
    wheel = given.wheel or built_wheel()
    dest = given.dest.resolve()
    tree = debian(dest)
    configure(tree)
    install_jitney(tree, wheel, dest / "wheels")
    mediate(tree, dest)
    without = newer.add(tree, dest, mirror())
    if without:
        print(f"image.py: no boot with AppArmor's mediation: {without}", flush=True)
    finish(tree, dest)
    print(f"JITNEY_VM_IMAGE={dest}")


def built_wheel() -> Path:
    """The wheel that make built last, if Debian's Python can use it."""
    found = ROOT.glob("build/wheels/*/jitney-*.whl")
    fitting = [wheel for wheel in found if WHEELS in wheel.name or "py3-none-any" in wheel.name]
    if not fitting:
        sys.exit(f"image.py: no wheel for {WHEELS} in build/wheels: make, or --wheel")
    return max(fitting, key=lambda wheel: wheel.stat().st_mtime)


def mirror() -> str:
    """Where apt has the first of its sources from."""
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(CREATED_BY)"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for line in lines:
        site, release, made_by = line.split(" ")
        if made_by == "Packages" and release == RELEASE:
            return site
    sys.exit(f"image.py: apt has no source for {RELEASE}")


def debian(dest: Path) -> Path:
    """The tree with all packages; they are added to one that has some of them."""
    tree, stamp, cache = dest / "tree", dest / "tree.of", dest / "packages"
    wanted = f"{RELEASE} {mirror()}\n" + " ".join(PACKAGES)
    there = stamp.read_text() if stamp.exists() else ""
    if there == wanted:
        return tree
    stamp.unlink(missing_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    os.chmod(dest, 0o755)
    if there.splitlines()[:1] != wanted.splitlines()[:1]:
        shutil.rmtree(tree, ignore_errors=True)
        print(f"image.py: {RELEASE} of {mirror()}", flush=True)
        run("debootstrap", "--variant=minbase", f"--cache-dir={cache}", RELEASE, tree, mirror())
    # Nothing is to be started by being installed.
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    overlay(tree)
    archives = tree / "var/cache/apt/archives"
    for package in cache.glob("*.deb"):
        shutil.copy(package, archives)
    print(f"image.py: {len(PACKAGES)} packages, and what they need", flush=True)
    inside(tree, "apt-get", "update", "-qq")
    inside(
        tree, "apt-get", "install", "-qq", "--no-install-recommends", "-o",
        "Dpkg::Options::=--force-unsafe-io", "-o", "Dpkg::Options::=--force-confold", *PACKAGES,
    )  # fmt: skip
    for package in archives.glob("*.deb"):
        if not (cache / package.name).exists():
            shutil.copy(package, cache)
        package.unlink()
    policy.unlink()
    for folder in NOT_NEEDED:
        shutil.rmtree(tree / folder)
        (tree / folder).mkdir()
    stamp.write_text(wanted)
    return tree


def overlay(tree: Path) -> None:
    """Our files, as root's."""
    source = HERE / "overlay"
    for path in sorted(source.rglob("*")):
        copy = tree / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            copy.mkdir(exist_ok=True)
        else:
            copy.unlink(missing_ok=True)
            shutil.copy(path, copy, follow_symlinks=False)
            os.chown(copy, 0, 0, follow_symlinks=False)


def configure(tree: Path) -> None:
    """Users, and which units there are."""
    overlay(tree)
    if "rider:" not in (tree / "etc/passwd").read_text():
        inside(tree, "useradd", "--uid=1000", "--shell=/bin/bash", "rider")
    for path in (tree / "home/rider", *(tree / "home/rider").iterdir()):
        os.chown(path, 1000, 1000)
    # Compiling profiles takes long: ours alone.
    for profile in (tree / "etc/apparmor.d").iterdir():
        disabled = tree / "etc/apparmor.d/disable" / profile.name
        if profile.is_file() and profile.name != "vm" and not disabled.is_symlink():
            disabled.symlink_to(f"../{profile.name}")
    # Not the first boot of a machine, which asks and makes things.
    (tree / "etc/machine-id").write_text(uuid.uuid5(uuid.NAMESPACE_DNS, "vm.jitney").hex + "\n")
    inside(tree, "systemctl", "--quiet", "mask", *MASKED)
    inside(tree, "systemctl", "--quiet", "enable", *ENABLED)
    inside(tree, "systemctl", "--quiet", "set-default", "multi-user.target")


def mediate(tree: Path, dest: Path) -> None:
    """SELinux's policy: our module for the bus, and the domains of the checks."""
    ours, folder = ROOT / "compat/data/selinux", tree / "tmp/policy"
    stamp = dest / "policy.of"
    files = (HERE / "vm.cil", *sorted(ours.iterdir()), dest / "tree.of")
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ours, folder)
    shutil.copy(HERE / "vm.cil", folder)
    build = ["make", "-C", "/tmp/policy", "-f", "/usr/share/selinux/devel/Makefile", "jitney.pp"]
    inside(tree, *build)
    modules = ["/tmp/policy/jitney.pp", "/tmp/policy/vm.cil"]
    inside(tree, "semodule", "-s", "default", "-n", "-i", *modules)
    shutil.rmtree(folder)
    stamp.write_text(wanted)


def install_jitney(tree: Path, wheel: Path, wheels: Path) -> None:
    """jitney in /opt/jitney, as docs/install.md says, and as both buses."""
    print(f"image.py: {wheel.name}", flush=True)
    wheels.mkdir(exist_ok=True)
    for old in wheels.glob("jitney-*.whl"):
        old.unlink()
    shutil.copy(wheel, wheels)
    # For the Python in there, not for the one that runs this.
    run(sys.executable, "-m", "pip", "--quiet", "download", "--dest", wheels,
        "--find-links", wheels, "--only-binary=:all:", "--python-version=3.11",
        "--implementation=cp", "--platform=manylinux2014_x86_64", "--platform=linux_x86_64",
        wheels / wheel.name)  # fmt: skip
    for old in (tree / "opt/jitney", tree / "tmp/wheels"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(wheels, tree / "tmp/wheels")
    inside(tree, "python3", "-m", "venv", "/opt/jitney")
    inside(tree, "/opt/jitney/bin/pip", "--quiet", "install", "--no-index",
           "--find-links=/tmp/wheels", f"/tmp/wheels/{wheel.name}")  # fmt: skip
    shutil.rmtree(tree / "tmp/wheels")
    inside(tree, "/opt/jitney/bin/python", "-m", "compileall", "-q", "/opt/jitney/lib")
    inside(tree, "/opt/jitney/bin/jitney", "install", "--system")
    inside(tree, "/opt/jitney/bin/jitney", "install", "--user", "--global")
    with_fields(tree)


def with_fields(tree: Path) -> None:
    """The system bus logs to the journal with fields: a change of one's own, in a drop-in."""
    unit = (tree / "etc/systemd/system/jitney.service").read_text()
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    drop_in = tree / "etc/systemd/system/jitney.service.d/fields.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nExecStart=\n{start} --log-format=journal\n")


def finish(tree: Path, dest: Path) -> None:
    """The labels of SELinux, a small initrd, and the file system as one file."""
    inside(tree, "setfiles", "-F", "-e", "/proc", CONTEXTS, "/")
    kernel = max((tree / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    shutil.copy(kernel, dest / "vmlinuz")
    shutil.copy(tree / f"boot/initrd.img-{version}", dest / "initrd.img")
    image = dest / "root.img"
    image.unlink(missing_ok=True)
    used = subprocess.run(["du", "-sxm", tree], check=True, capture_output=True, text=True).stdout
    size = int(used.split()[0]) * 5 // 4 + 300
    print(f"image.py: {image}, {size} MB", flush=True)
    run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-d", tree, image, f"{size}M")


if __name__ == "__main__":
    main()
