"""Tables for a terminal."""

from collections.abc import Iterable

from stockroom.entries import Entry
from stockroom.ledger import Stock


def show_stock(stocks: Iterable[Stock]) -> str:
    rows = [("PART", "COUNT", "SHELF", "")]
    for stock in stocks:
        warning = f"order again (below {stock.reorder_level})" if stock.is_low else ""
        rows.append((stock.part, str(stock.quantity), stock.shelf, warning))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = []
    for part, count, shelf, warning in rows:
        cells = part.ljust(widths[0]), count.rjust(widths[1]), shelf.ljust(widths[2]), warning
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def show_history(entries: Iterable[Entry]) -> str:
    lines = []
    for entry in entries:
        verb = "received" if entry.quantity > 0 else "took"
        note = f" ({entry.note})" if entry.note else ""
        lines.append(f"{entry.at}  {entry.by} {verb} {abs(entry.quantity)} {entry.part}{note}")
    return "\n".join(lines) or "no movement yet"
