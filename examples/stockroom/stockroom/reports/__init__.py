"""Ledger contents as text for people and as CSV for spreadsheets."""

from stockroom.reports.spreadsheet import to_csv
from stockroom.reports.text import show_history, show_stock

__all__ = ["show_history", "show_stock", "to_csv"]
