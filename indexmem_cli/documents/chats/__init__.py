"""Chat logs, mail and transcripts of any program, as messages of one form."""

from indexmem_cli.documents.chats.exports import detect_export
from indexmem_cli.documents.chats.irc import detect_irc, read_irc, read_weechat
from indexmem_cli.documents.chats.mail import detect_mail, read_mail, read_mbox
from indexmem_cli.documents.chats.messages import Reader
from indexmem_cli.documents.chats.phone import detect_phone, read_phone
from indexmem_cli.documents.chats.subtitles import detect_subtitles, read_subtitles

_READERS: dict[str, Reader] = {
    "vtt": read_subtitles,
    "srt": read_subtitles,
    "mbox": read_mbox,
    "email": read_mail,
    "whatsapp": read_phone,
    "signal": read_phone,
    "irc": read_irc,
    "weechat": read_weechat,
}


def detect_messages(head: bytes, text: str) -> tuple[str, Reader] | None:
    """Tell by the beginning of a file whether it holds messages: their kind, and how to read them.

    Args:
        head: its first bytes.
        text: the same as text, without the last line if that may go on.
    """
    lines = text.split("\n")
    kind = detect_subtitles(lines) or detect_mail(text) or detect_phone(lines) or detect_irc(lines)
    return (kind, _READERS[kind]) if kind else detect_export(head)
