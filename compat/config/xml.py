"""XML: from the bytes of a file to elements, attributes and text.

Invariant: only the bytes given are read. No external entity or DTD is ever fetched, no document
expands to more than a file may be long, and each event carries its line.

The parser is expat, as in dbus-daemon, so the two agree on what is well-formed.
"""

from __future__ import annotations

import codecs
import pyexpat
import re
from typing import Protocol

from .errors import ConfigError

# dbus-daemon reads no longer file; entities shall not get round that.
MAX_SIZE = 1024 * 1024

_REFERENCE = re.compile("&([^;&#\\s]+);")


class Sink(Protocol):
    """Who is told what is in the document, in document order; may raise ConfigError."""

    def start(self, name: str, attributes: dict[str, str], line: int) -> None: ...

    def text(self, text: str, line: int) -> None:
        """All text between two tags, if there is any; the line is that of the first word."""

    def end(self, name: str) -> None: ...

    def skipped(self, name: str, line: int) -> None:
        """A reference to an entity that is defined elsewhere stands for nothing."""


def parse(data: bytes, file: str, sink: Sink) -> None:
    """Tells `sink` what is in `data`. Raises ConfigError for XML that is not well-formed."""
    parser = pyexpat.ParserCreate("UTF-8")
    _Events(parser, data, file, sink)
    try:
        parser.Parse(data, True)
    except pyexpat.ExpatError as error:
        reason = pyexpat.ErrorString(error.code)
        raise _malformed(file, error.lineno, error.offset, str(reason)) from None


def _malformed(file: str, line: int, column: int, reason: str) -> ConfigError:
    return ConfigError(file, line, f"Error in file {file}, line {line}, column {column}: {reason}")


class _Events:
    """Gathers expat's pieces of text into one, as dbus-daemon does, and watches the entities."""

    def __init__(self, parser: pyexpat.XMLParserType, data: bytes, file: str, sink: Sink) -> None:
        self.parser = parser
        self.data = data
        self.file = file
        self.sink = sink
        self.pieces: list[str] = []
        self.text_line = 0
        self.entities: dict[str, str] = {}
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.EntityDeclHandler = self.entity
        parser.EndDoctypeDeclHandler = self.end_doctype
        parser.SkippedEntityHandler = self.skipped
        parser.ExternalEntityRefHandler = self.external

    def flush(self) -> None:
        if self.pieces:
            text = "".join(self.pieces)
            line = self.text_line
            self.pieces.clear()
            self.text_line = 0
            self.sink.text(text, line)

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.flush()
        self.sink.start(name, attributes, self.parser.CurrentLineNumber)

    def end(self, name: str) -> None:
        self.flush()
        self.sink.end(name)

    def characters(self, piece: str) -> None:
        self.pieces.append(piece)
        if not self.text_line and not piece.isspace():
            self.text_line = self.parser.CurrentLineNumber

    def entity(
        self,
        name: str,
        is_parameter: bool,
        value: str | None,
        base: str | None,
        system_id: str,
        public_id: str | None,
        notation: str | None,
    ) -> None:
        # The first declaration of a name is the one that counts. Parameter entities and external
        # ones expand to nothing, since nobody told expat to read them.
        if value is not None and not is_parameter:
            self.entities.setdefault(name, value)

    def end_doctype(self) -> None:
        # Expat has a guard of its own against entities that multiply, but only since 2.4.0.
        if self.entities and self.expanded() > MAX_SIZE:
            raise _malformed(
                self.file,
                self.parser.CurrentLineNumber,
                self.parser.CurrentColumnNumber,
                "limit on input amplification factor (from DTD and entities) breached",
            )

    def expanded(self) -> int:
        """An upper bound of the document's size with all entities expanded, in characters."""
        sizes: dict[str, int] = {}

        def size(name: str, depth: int) -> int:
            if name not in self.entities:
                return 1
            if depth > 100:  # nobody nests so deep
                return MAX_SIZE
            if name not in sizes:
                sizes[name] = 0  # met again below: a circle, which expat refuses where it is used
                value = self.entities[name]
                inside = sum(size(inner, depth + 1) for inner in _REFERENCE.findall(value))
                sizes[name] = len(value) + inside + 1
            return sizes[name]

        document = _readable(self.data)
        return len(document) + sum(size(name, 0) for name in _REFERENCE.findall(document))

    def skipped(self, name: str, is_parameter: bool) -> None:
        if not is_parameter:
            self.sink.skipped(name, self.parser.CurrentLineNumber)

    def external(
        self, context: str, base: str | None, system_id: str | None, public_id: str | None
    ) -> int:
        # expat would step over it silently; so do we, but we say so.
        self.sink.skipped(context.rpartition("\f")[2], self.parser.CurrentLineNumber)
        return 1


def _readable(data: bytes) -> str:
    """The document as text, good enough to count references in it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8", "replace")
