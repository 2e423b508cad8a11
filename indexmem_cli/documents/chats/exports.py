"""Chats exported as JSON, read as a stream. The kind is told by the keys at the beginning."""

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats import assistants, messengers
from indexmem_cli.documents.chats.messages import Message, Reader
from indexmem_cli.documents.passages import ByteSource, Damaged

MAX_RECORD_BYTES = 64_000_000
"""A longer message or conversation is refused; it would stand in memory as a whole."""

_MAX_AROUND_CHARS = 500
_MAX_DEPTH = 200
_MAX_KEY_CHARS = 100
_HEX = b"0123456789abcdefABCDEF"
_CONTROL = re.compile(rb"(?<!\\)((?:\\\\)*)\\x([0-9A-Fa-f]{2})")


class _Format(NamedTuple):
    kind: str
    known_by: str
    """Prefixes that all occur at the beginning of a file; `item` is an element of a list."""
    record: str
    """Prefix of what is converted at a time."""
    convert: Callable[[dict[str, Any], dict[str, Any]], Iterable[Message]]
    """From a record, and from the values that stand around it, by prefix."""


_FORMATS = (
    _Format("chatgpt", "item.mapping", "item", assistants.from_chatgpt),
    _Format("chatgpt", "mapping current_node", "", assistants.from_chatgpt),
    _Format("claude", "item.chat_messages", "item", assistants.from_claude),
    _Format("claude", "chat_messages uuid", "", assistants.from_claude),
    _Format("discord", "guild.id channel.id messages", "messages.item", messengers.from_discord),
    _Format("telegram", "chats.list", "chats.list.item.messages.item", messengers.from_telegram),
    _Format("telegram", "messages.item.from_id", "messages.item", messengers.from_telegram),
    _Format("telegram", "messages.item.date_unixtime", "messages.item", messengers.from_telegram),
    _Format(
        "facebook",
        "messages.item.sender_name messages.item.timestamp_ms",
        "",
        messengers.from_facebook,
    ),
    _Format("slack", "item.ts item.type item.text", "item", messengers.from_slack_file),
    _Format("roles", "messages.item.role", "messages.item", assistants.from_roles),
    _Format("roles", "item.messages.item.role", "item.messages.item", assistants.from_roles),
    _Format("roles", "item.role item.content", "item", assistants.from_roles),
    _Format("roles", "role content", "", assistants.from_roles),
)


def detect_export(head: bytes) -> tuple[str, Reader] | None:
    """Return the kind of a chat and how it is read, if the beginning of a file is of one."""
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
        return None
    prefixes: set[str] = set()
    # The head ends anywhere.
    with suppress(Damaged):
        prefixes.update(prefix for prefix, *_ in _events(_Repaired(io.BytesIO(head))))
    for known in _FORMATS:
        if prefixes.issuperset(known.known_by.split()):
            return known.kind, partial(_read, known)
    return None


def _read(known: _Format, stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    num_records = 0
    try:
        for record, around in read_records(stream, known.record):
            num_records += 1
            yield from known.convert(record, around)
    except (AttributeError, TypeError, KeyError) as error:
        raise Damaged(f"record {num_records} is not as {known.kind} writes it ({error})") from error


def read_records(
    stream: ByteSource, wanted: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the objects with the prefix `wanted`, and the short values before and around each.

    Raises:
        Damaged: the JSON is malformed or cut off, or an object is too large.
    """
    from ijson.common import ObjectBuilder

    limited = _Repaired(stream)
    around: dict[str, Any] = {}
    builder = None
    for prefix, event, value in _events(limited):
        if builder is None and prefix == wanted and event == "start_map":
            builder = ObjectBuilder()
        if builder is not None:
            builder.event(event, value)
            if prefix == wanted and event == "end_map":
                yield builder.value, around
                limited.num_records += 1
                builder, limited.unused_bytes = None, 0
        elif event == "start_map":
            inner = prefix + "."
            around = {key: old for key, old in around.items() if not key.startswith(inner)}
        elif event in ("string", "number") and len(str(value)) <= _MAX_AROUND_CHARS:
            around[prefix] = value


def _events(stream: "_Repaired") -> Iterator[tuple[str, str, Any]]:
    """Yield prefix, event and value, as `ijson.parse` does, which has no limit of depth.

    Raises:
        Damaged: the JSON is malformed, cut off or nested too deeply.
    """
    import ijson

    path: list[str] = []
    try:
        for event, value in ijson.basic_parse(stream, use_float=True, multiple_values=True):
            if event == "map_key":
                path.pop()
                yield ".".join(path), event, value
                path.append(value[:_MAX_KEY_CHARS])
                continue
            if event in ("end_map", "end_array"):
                path.pop()
            yield ".".join(path), event, value
            if event in ("start_map", "start_array"):
                path.append("item")
            if len(path) > _MAX_DEPTH:
                raise Damaged("the JSON is nested too deeply")
    except ijson.JSONError as error:
        after = f"after {stream.num_records:,} records"
        if isinstance(error, ijson.IncompleteJSONError) and stream.is_at_end:
            raise Damaged(f"the JSON is cut off {after}") from error
        reason = str(error).split("\n")[0].strip()
        raise Damaged(f"the JSON is malformed {after} ({reason})") from error


class _Repaired:
    r"""A stream of JSON with a limit on what is read for one record.

    Telegram writes control characters as `\x1f`, which JSON does not know; they become `\u001f`.
    """

    def __init__(self, stream: ByteSource) -> None:
        self._stream = stream
        self._held = b""
        self._is_first = True
        self.is_at_end = False
        self.num_records = 0
        self.unused_bytes = 0
        """Read since the last record."""

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""  # as the parser asks, to learn that these are bytes
        block = self._stream.read(size)
        self.is_at_end = not block
        self.unused_bytes += len(block)
        if self.unused_bytes > MAX_RECORD_BYTES:
            raise Damaged("a record in it is too large", reason="too large")
        data = self._held + block
        if self._is_first:
            self._is_first = False
            data = data.removeprefix(codecs.BOM_UTF8)
        end = len(data)
        if block:  # an escape may go on in the next block
            before = data[:-1] if data[-1:] in _HEX and data[-2:-1] == b"x" else data
            before = before.removesuffix(b"x")
            start = len(before.rstrip(b"\\"))
            end = start if start < len(before) else end
        self._held = data[end:]
        repaired = _CONTROL.sub(rb"\1\\u00\2", data[:end])
        return repaired if repaired or not block else self.read(size)
