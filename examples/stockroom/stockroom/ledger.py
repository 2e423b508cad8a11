"""The ledger file: append movements, and work out the stock from them."""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from stockroom.entries import Entry, parse_line
from stockroom.errors import NotEnoughStock

DEFAULT_REORDER_LEVEL = 25
REORDER_LEVELS = {"blade-hacksaw": 6, "glue-epoxy": 4, "bolt-m6": 80}


@dataclass
class Stock:
    part: str
    quantity: int = 0
    shelf: str = "?"

    @property
    def reorder_level(self) -> int:
        return REORDER_LEVELS.get(self.part, DEFAULT_REORDER_LEVEL)

    @property
    def is_low(self) -> bool:
        return self.quantity < self.reorder_level


class Ledger:
    def __init__(self, path: Path):
        self.path = path

    def entries(self) -> list[Entry]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [parse_line(line, i) for i, line in enumerate(lines, 1) if line.strip()]

    def stock(self) -> dict[str, Stock]:
        """Add up all movements; a part keeps the shelf of its latest delivery."""
        found: dict[str, Stock] = defaultdict(lambda: Stock(""))
        for entry in self.entries():
            stock = found[entry.part]
            stock.part = entry.part
            stock.quantity += entry.quantity
            stock.shelf = entry.shelf or stock.shelf
        return dict(sorted(found.items()))

    def append(self, entry: Entry) -> None:
        """Write one movement and force it to the disk before returning.

        Raises: NotEnoughStock, when a withdrawal would leave less than nothing.
        """
        if entry.quantity < 0:
            stock = self.stock().get(entry.part, Stock(entry.part))
            if stock.quantity + entry.quantity < 0:
                raise NotEnoughStock(entry.part, -entry.quantity, stock.quantity)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(entry.to_line() + "\n")
            file.flush()
            os.fsync(file.fileno())
