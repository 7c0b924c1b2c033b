"""`jitney check-config`: mistakes in configuration files, found before a bus reads them.

Invariant: what makes a bus refuse its configuration is an error and status 1; what it would only
log is a warning, and what it would not even notice is a lint, and both are status 0 unless
`--strict` was given. Findings are on standard output, one a line. Nothing is changed or created.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from .activation import desktop
from .config import ConfigError, load
from .config.lint import TAGS, Finding, of_file, of_policy
from .config.loader import read_file
from .config.users import UserDatabase
from .config.written import WrittenFile, read

FOUND = 1

# Warnings of the loader that are lints here: a package's users need not be there when it is built.
_UNKNOWN = {
    "Unknown username": "jitney-unknown-user",
    "Unknown group": "jitney-unknown-group",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.list_tags:
        for tag, about in TAGS.items():
            print(f"{tag}\n    {about}")
        return 0
    if not options.files:
        parser.error("which file?")
    for tag in options.ignore:
        if tag not in TAGS:
            parser.error(f"there is no tag {tag}; see --list-tags")
    found = [finding for path in options.files for finding in check(path, options.fragment)]
    found = [finding for finding in found if finding.tag not in options.ignore]
    if options.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        for finding in found:
            print(_shown(finding))
    bad = found if options.strict else [each for each in found if each.kind == "error"]
    return FOUND if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jitney check-config",
        description="Checks configuration files of a bus, with all that they include; fragments, "
        "such as packages put into system.d; and .service files. Status 1: errors were found.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument(
        "--fragment", action="store_true",
        help="a part of a configuration, even if it says where to listen or what to include",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true", help="status 1 for warnings and lints as well"
    )
    parser.add_argument(
        "--ignore", metavar="TAG", action="append", default=[], help="not this; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.add_argument("--list-tags", action="store_true", help="what there is to be found")
    return parser


def check(path: str, fragment: bool = False) -> list[Finding]:
    """What there is to say about a file and all that it includes, file by file."""
    if path.endswith(".service"):
        return list(_check_service(path))
    try:
        main_file = read(read_file(path, 0, path), path)
        fragment = fragment or main_file.is_fragment
        config = load(path, create_dirs=False, whole=not fragment)
    except ConfigError as error:
        return [Finding(error.file, error.line, "error", None, error.text)]
    found = [_warning(each.file, each.line, each.text) for each in config.warnings]
    dropped_in = {os.path.normpath(folder) for folder in config.include_dirs}
    for name in dict.fromkeys(config.files):
        try:
            file = read(read_file(name, 0, name), name)
        except ConfigError as error:  # it was there a moment ago
            found.append(Finding(error.file, error.line, "warning", None, error.text))
            continue
        found += _check_file(file, fragment if name == path else None, dropped_in)
    found += of_policy(config)
    order = {name: place for place, name in enumerate(config.files)}
    return sorted(found, key=lambda each: (order.get(each.file, len(order)), each.line))


def _check_file(file: WrittenFile, fragment: bool | None, dropped_in: set[str]) -> list[Finding]:
    """`fragment`: whether the main file is taken for one; None for all other files."""
    if fragment is None:
        # Whoever includes a file by its name may well leave the addresses to it.
        in_directory = os.path.normpath(os.path.dirname(file.path)) in dropped_in
        return list(of_file(file, packaged=file.is_fragment, fragment=in_directory))
    return list(of_file(file, packaged=fragment, fragment=fragment))


def _warning(file: str, line: int, text: str) -> Finding:
    for start, tag in _UNKNOWN.items():
        if text.startswith(start):
            return Finding(file, line, "lint", tag, f"{text}: what it allows is forgotten")
    return Finding(file, line, "warning", None, text)


# Service files


def _check_service(path: str) -> list[Finding]:
    def lint(tag: str, text: str) -> Finding:
        return Finding(path, 0, "lint", tag, text)

    try:
        service = desktop.load(path)
    except OSError as error:
        return [Finding(path, 0, "error", None, f"cannot be read: {error.strerror}")]
    except desktop.DesktopFileError as error:
        return [Finding(path, 0, "error", None, str(error))]
    from jitney.broker.syntax import is_bus_name

    found = []
    name = service.name.decode()
    if not is_bus_name(service.name) or name.startswith(":"):
        found.append(lint("jitney-bad-name", f'"{name}" is no name that a service can own'))
    elif os.path.basename(path) != f"{name}.service":
        system = "system-services" in os.path.abspath(path).split("/")
        tag = "dbus-system-service-wrong-name" if system else "dbus-session-service-wrong-name"
        found.append(lint(tag, f"a service file for {name} is to be named {name}.service"))
    if service.user is not None and not UserDatabase().user(service.user).known:
        found.append(lint("jitney-unknown-user", f'Unknown username "{service.user}"'))
    return found


def _shown(finding: Finding) -> str:
    where = f"{finding.file}:{finding.line}" if finding.line else finding.file
    # A path may be any bytes; a terminal takes text.
    text = f"{where}: {finding.tag or finding.kind}: {finding.text}"
    return os.fsencode(text).decode("utf-8", "replace")
