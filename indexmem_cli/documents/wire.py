"""Frames between the program and the process that parses for it: JSON or bytes, never pickles."""

import json
import struct
from typing import IO, Any

MAX_FRAME_BYTES = 1 << 26
"""A longer frame is the work of a process that went wrong."""

_HEAD = struct.Struct("<?I")  # whether it is JSON, and its length


class Wire:
    """Both directions of a connection."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, frame: dict[str, Any] | bytes) -> None:
        """Send one frame.

        Raises:
            OSError: nobody listens any more.
        """
        is_json = not isinstance(frame, bytes)
        content = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        self._outgoing.write(_HEAD.pack(is_json, len(content)) + content)
        self._outgoing.flush()

    def receive(self) -> dict[str, Any] | bytes | None:
        """Wait for a frame; None where there will be none any more, or nothing that is one."""
        head = self._incoming.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        is_json, length = _HEAD.unpack(head)
        content = self._incoming.read(length) if length <= MAX_FRAME_BYTES else b""
        if len(content) < length:
            return None
        if not is_json:
            return content
        try:
            frame = json.loads(content)
        except ValueError:
            return None
        return frame if isinstance(frame, dict) else None
