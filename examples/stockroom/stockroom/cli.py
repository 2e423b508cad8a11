"""The command line: parse, do one thing, print."""

import argparse
import os
import sys
from pathlib import Path

from stockroom.entries import Entry, now
from stockroom.errors import StockroomError
from stockroom.ledger import Ledger
from stockroom.reports import show_history, show_stock, to_csv


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stockroom", description="Count the workshop's parts.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("receive", "take"):
        command = commands.add_parser(name)
        command.add_argument("part")
        command.add_argument("quantity", type=int)
        command.add_argument("--by", default=os.environ.get("USER", ""))
        command.add_argument("--shelf", default="")
        command.add_argument("--note", default="")
    count = commands.add_parser("count")
    count.add_argument("--csv", action="store_true")
    commands.add_parser("low")
    commands.add_parser("history").add_argument("part")
    return parser


def run(options: argparse.Namespace, ledger: Ledger) -> str:
    if options.command in ("receive", "take"):
        sign = 1 if options.command == "receive" else -1
        quantity = sign * options.quantity
        entry = Entry(options.part, quantity, options.by, now(), options.shelf, options.note)
        ledger.append(entry)
        return f"{options.part}: {ledger.stock()[options.part].quantity} on the shelf"
    if options.command == "history":
        return show_history(entry for entry in ledger.entries() if entry.part == options.part)
    stocks = list(ledger.stock().values())
    if options.command == "low":
        return show_stock(stock for stock in stocks if stock.is_low)
    return to_csv(stocks).rstrip() if options.csv else show_stock(stocks)


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    ledger = Ledger(Path(os.environ.get("STOCKROOM_LEDGER", "ledger.jsonl")))
    try:
        print(run(options, ledger))
    except StockroomError as error:
        print(f"stockroom: {error}", file=sys.stderr)
        return error.exit_code
    return 0
