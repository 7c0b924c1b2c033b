"""Written: what a configuration file says, word by word, before anybody understands it.

Invariant: attributes and texts are as they stand in the file, in its order, each with its line. A
file is read on its own: what it includes is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import xml


@dataclass(slots=True)
class WrittenRule:
    """`<allow>` or `<deny>`, and the `<policy>` that it stands in."""

    element: str
    attributes: dict[str, str]
    line: int
    policy: WrittenPolicy

    def __str__(self) -> str:
        written = "".join(f' {key}="{value}"' for key, value in self.attributes.items())
        return f"<{self.element}{written}/>"


@dataclass(slots=True)
class WrittenPolicy:
    """`<policy>`."""

    attributes: dict[str, str]
    line: int


@dataclass(slots=True)
class WrittenFile:
    """What is of interest in a file; `includes`: it has `<include>` or `<includedir>`."""

    path: str
    policies: list[WrittenPolicy] = field(default_factory=list)
    rules: list[WrittenRule] = field(default_factory=list)
    listens: list[int] = field(default_factory=list)
    """The lines of its `<listen>`."""
    includes: bool = False

    @property
    def is_fragment(self) -> bool:
        """Whether it is a part of a configuration and no bus could run with it alone."""
        return not self.listens and not self.includes


def read(data: bytes, path: str) -> WrittenFile:
    """What the bytes of a file say. Raises ConfigError for what is not XML."""
    sink = _Sink(path)
    xml.parse(data, path, sink)
    return sink.file


class _Sink:
    def __init__(self, path: str) -> None:
        self.file = WrittenFile(path)
        self.policy = WrittenPolicy({}, 0)

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        if name == "policy":
            self.policy = WrittenPolicy(attributes, line)
            self.file.policies.append(self.policy)
        elif name in ("allow", "deny"):
            self.file.rules.append(WrittenRule(name, attributes, line, self.policy))
        elif name == "listen":
            self.file.listens.append(line)
        elif name in ("include", "includedir"):
            self.file.includes = True

    def text(self, text: str, line: int) -> None:
        pass

    def end(self, name: str) -> None:
        pass

    def skipped(self, name: str, line: int) -> None:
        pass
