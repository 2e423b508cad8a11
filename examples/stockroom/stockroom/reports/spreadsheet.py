"""The stock as CSV, semicolon separated: the workshop's spreadsheet expects it so."""

import csv
import io
from collections.abc import Iterable

from stockroom.ledger import Stock


def to_csv(stocks: Iterable[Stock]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=";", lineterminator="\n")
    writer.writerow(["part", "quantity", "shelf", "reorder_level"])
    for stock in stocks:
        writer.writerow([stock.part, stock.quantity, stock.shelf, stock.reorder_level])
    return buffer.getvalue()
