"""Mail: single messages (eml) and mailboxes (mbox), parsed by the standard library."""

import codecs
import email
import re
from collections.abc import Iterator
from datetime import datetime
from email.message import EmailMessage, MIMEPart
from email.policy import default as modern

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.chats.messages import Message
from indexmem_cli.documents.passages import ByteSource, Damaged, read_whole
from indexmem_cli.documents.web import text_of_html
from indexmem_cli.documents.wrapped import unwrap

MAX_MAIL_BYTES = 50_000_000
"""A longer mail of a mailbox is refused; its attachments would fill the memory."""

_FIELD = re.compile(r"[!-9;-~]{1,60}:(?:[ \t].*|$)")
_MAIL_FIELDS = {"from", "to", "subject", "date", "message-id", "received", "mime-version", "cc"}
_MIN_FIELDS = 2
_BOUNDARY = re.compile(rb"From [^\r\n]*\d{4}\r?\n|From \S+@\S+[^\r\n]*\r?\n|From - [^\r\n]*\r?\n")
_QUOTED_BOUNDARY = re.compile(rb"^>(>*From )", re.MULTILINE)


def detect_mail(head: str) -> str | None:
    """Return `mbox` or `email` if a text begins with the header of a mail."""
    lines = head.split("\n")
    is_box = _BOUNDARY.fullmatch((lines[0] + "\n").encode("utf-8", "replace")) is not None
    known: set[str] = set()
    for line in lines[is_box:]:
        if line[:1] in (" ", "\t") and known:
            continue  # a folded field
        if not _FIELD.fullmatch(line.rstrip("\r")):
            break
        known.add(line.split(":", 1)[0].lower())
    if len(known & _MAIL_FIELDS) < _MIN_FIELDS:
        return None
    return "mbox" if is_box else "email"


def read_mail(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the one message of a file."""
    data = read_whole(stream, MAX_MAIL_BYTES, "the mail")
    if config.encoding or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode(config.encoding or "utf-16", "replace").encode()
    yield parse_mail(data.removeprefix(codecs.BOM_UTF8))


def read_mbox(stream: ByteSource, config: ReadConfig) -> Iterator[Message]:
    """Yield the messages of a mailbox one by one.

    The standard library's `mailbox` needs a path and indexes the whole file; this needs a stream.
    """
    lines: list[bytes] = []
    size, after_blank = 0, True
    for line in _lines(stream):
        if after_blank and _BOUNDARY.match(line):
            if lines:
                yield parse_mail(_QUOTED_BOUNDARY.sub(rb"\1", b"".join(lines)))
            lines, size = [], 0
            continue
        size += len(line)
        if size > MAX_MAIL_BYTES:
            raise Damaged("a mail in it is too large", reason="too large")
        lines.append(line)
        after_blank = not line.strip()
    if lines:
        yield parse_mail(_QUOTED_BOUNDARY.sub(rb"\1", b"".join(lines)))


def parse_mail(data: bytes) -> Message:
    """Take sender, date, subject, receivers and the text of a mail; name its attachments."""
    mail = email.message_from_bytes(data, policy=modern)
    author, subject = _field(mail, "from"), _field(mail, "subject")
    told = (("To", _field(mail, "to")), ("Cc", _field(mail, "cc")), ("Subject", subject))
    head = [f"{name}: {value}" for name, value in told if value]
    names = [f"[{part.get_filename()}]" for part in mail.iter_attachments() if part.get_filename()]
    return Message(
        "\n".join([*head, _body(mail), *names]),
        author,
        _date(mail),
        channel=subject,
        reply_to=_field(mail, "in-reply-to"),
        id=_field(mail, "message-id"),
    )


def _payload(part: MIMEPart) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _body(mail: EmailMessage) -> str:
    """Return the plain text of a mail, else the text of its HTML."""
    part = mail.get_body(("plain", "html"))
    if part is None:
        return ""
    if part.get_content_type() == "text/html":
        return text_of_html(_payload(part), part.get_content_charset())
    charset = part.get_content_charset() or "utf-8"
    payload = _payload(part)
    try:
        text = payload.decode(charset, "replace")
    except LookupError:  # a character set that does not exist
        text = payload.decode("utf-8", "replace")
    return unwrap(text.replace("\r\n", "\n"))


def _field(mail: EmailMessage, name: str) -> str | None:
    # The parser of the standard library raises errors of several types on broken fields.
    try:
        value = mail[name]
    except Exception:
        return None
    return " ".join(str(value).split()) or None if value is not None else None


def _date(mail: EmailMessage) -> datetime | None:
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(_field(mail, "date") or "").replace(tzinfo=None)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _lines(stream: ByteSource) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        if len(rest) > MAX_MAIL_BYTES:
            raise Damaged("a mail in it is too large", reason="too large")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest
