"""One movement of parts, as it stands on one line of the ledger."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from stockroom.errors import BadEntry

PART_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
MAX_QUANTITY = 10_000  # a larger number has always been a typing mistake


@dataclass(frozen=True)
class Entry:
    """`quantity` is positive for a delivery and negative for a withdrawal."""

    part: str
    quantity: int
    by: str
    at: str
    shelf: str = ""
    note: str = ""

    def __post_init__(self):
        if not PART_NAME.fullmatch(self.part):
            raise BadEntry(f"part name {self.part!r}: small letters, digits and hyphens only")
        if self.quantity == 0 or abs(self.quantity) > MAX_QUANTITY:
            raise BadEntry(f"quantity {self.quantity}: from 1 to {MAX_QUANTITY}")
        if not self.by:
            raise BadEntry("every movement needs the name of the person who made it")

    def to_line(self) -> str:
        filled = {key: value for key, value in asdict(self).items() if value != ""}
        return json.dumps(filled, ensure_ascii=False)


def parse_line(line: str, number: int) -> Entry:
    """Read one ledger line; `number` is for the message.

    Raises: BadEntry.
    """
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise BadEntry(f"ledger line {number}: {error}") from error


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
