"""What AppArmor needs to mediate D-Bus, and Debian 12 has not: a kernel and a compiler of profiles.

Later kernels of Debian's say that they mediate D-Bus (`features/dbus/mask`), and know who connected
(SO_PEERSEC), but they answer only of profiles that mediate networks by `network_v9`, which
apparmor_parser knows since 5.0. All else of the machine stays as it is.

Invariant: the machine boots without them as before: the kernel's modules are beside the other's,
and the compiler, with its libraries, is in /opt/apparmor, where nobody finds it by chance. What is
downloaded is kept. A mirror that has no such packages costs the boot that needs them, and no more.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from chroot import inside, run

SUITE = "sid"
KERNEL = "linux-image-cloud-amd64"
PARTS = re.compile(r"^ *Depends: (linux-(?:image|base|binary|modules)-[0-9]\S*)$", re.MULTILINE)
PARSER = ("apparmor", "libapparmor1", "libc6", "libgcc-s1", "libstdc++6", "libzstd1")
PLACE = "opt/apparmor"
LIBRARIES = "usr/lib/x86_64-linux-gnu"

APT = """\
Dir::Etc::SourceList "/{place}/apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "/{place}/apt/lists";
Dir::State::Status "/dev/null";
Dir::Cache "/{place}/apt/cache";
APT::Sandbox::User "root";
"""
WRAPPER = """\
#!/bin/sh
# apparmor_parser of a later Debian, with its own C library.
here=/{place} lib=/{place}/{libraries}
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$here/usr/sbin/apparmor_parser" \\
    --base "$here/etc/apparmor.d" --config-file "$here/etc/apparmor/parser.conf" "$@"
"""


def add(tree: Path, dest: Path, mirror: str) -> str:
    """Puts both into the tree, and vmlinuz-newer and initrd-newer.img into DEST. Empty if that was
    done, else why not."""
    for name in ("vmlinuz-newer", "initrd-newer.img"):
        (dest / name).unlink(missing_ok=True)
    try:
        packages = fetched(tree, dest / "newer", mirror)
    except SystemExit as problem:
        shutil.rmtree(tree / PLACE, ignore_errors=True)
        return " ".join(str(problem).split("\n")[-3:])
    place = tree / PLACE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for package in packages:
        run("dpkg-deb", "-x", package, tree if package.name.startswith("linux-") else place)
    parser = place / "parser"
    parser.write_text(WRAPPER.format(place=PLACE, libraries=LIBRARIES))
    parser.chmod(0o755)
    inside(tree, f"/{PLACE}/parser", "--version")
    image = next(name for name in (p.name for p in packages) if name.startswith("linux-image-"))
    version = image.split("_")[0].removeprefix("linux-image-")
    modules = tree / "usr/lib/modules" / version
    shutil.copy(modules / "config", tree / f"boot/config-{version}")
    inside(tree, "depmod", version)
    inside(tree, "mkinitramfs", "-o", "/boot/initrd-newer.img", version)
    shutil.copy(modules / "vmlinuz", dest / "vmlinuz-newer")
    shutil.move(tree / "boot/initrd-newer.img", dest / "initrd-newer.img")
    print(f"image.py: {image} and AppArmor's parser of {SUITE}", flush=True)
    return ""


def fetched(tree: Path, kept: Path, mirror: str) -> list[Path]:
    """The packages, of what was kept or of the mirror."""
    stamp, wanted = kept / "of", f"{SUITE} {mirror} {KERNEL} {' '.join(PARSER)}"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(kept, ignore_errors=True)
        folder = tree / PLACE / "apt"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial", "packages"):
            (folder / name).mkdir(parents=True)
        keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (folder / "sources.list").write_text(f"deb [signed-by={keys}] {mirror} {SUITE} main\n")
        # A mirror that stands still is one where apt was told so.
        stands = run("apt-config", "dump", "Acquire::Check-Valid-Until")
        (folder / "apt.conf").write_text(APT.format(place=PLACE) + stands)
        apt = ("env", "-C", f"/{PLACE}/apt/packages", f"APT_CONFIG=/{PLACE}/apt/apt.conf")
        inside(tree, *apt, "apt-get", "-qq", "update")
        said = inside(tree, *apt, "apt-cache", "depends", "--recurse", "--important", KERNEL)
        parts = sorted(set(PARTS.findall(said)))
        inside(tree, *apt, "apt-get", "-qq", "download", *parts, *PARSER)
        shutil.copytree(folder / "packages", kept)
        stamp.write_text(wanted)
    return sorted(kept.glob("*.deb"))
