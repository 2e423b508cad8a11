import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from stockroom.cli import main
from stockroom.entries import Entry
from stockroom.errors import BadEntry, NotEnoughStock
from stockroom.ledger import Ledger


class LedgerTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "ledger.jsonl"
        self.ledger = Ledger(self.path)

    def add(self, part, quantity, **more):
        self.ledger.append(Entry(part, quantity, "ines", "2024-05-02T08:00:00+00:00", **more))

    def test_stock_is_the_sum_of_movements(self):
        self.add("bolt-m6", 200, shelf="B2")
        self.add("bolt-m6", -150)
        stock = self.ledger.stock()["bolt-m6"]
        self.assertEqual((stock.quantity, stock.shelf, stock.is_low), (50, "B2", True))

    def test_nothing_is_taken_that_is_not_there(self):
        self.add("glue-epoxy", 3)
        with self.assertRaises(NotEnoughStock):
            self.add("glue-epoxy", -4)
        self.assertEqual(self.ledger.stock()["glue-epoxy"].quantity, 3)

    def test_impossible_entries_are_refused(self):
        for part, quantity in [("Bolt", 1), ("bolt-m6", 0), ("bolt-m6", 10_001)]:
            with self.subTest(part=part, quantity=quantity), self.assertRaises(BadEntry):
                self.add(part, quantity)

    def test_a_broken_line_is_named(self):
        self.path.write_text("not json\n", encoding="utf-8")
        with self.assertRaisesRegex(BadEntry, "line 1"):
            self.ledger.stock()

    def test_commands(self):
        environment = mock.patch.dict(os.environ, {"STOCKROOM_LEDGER": str(self.path)})
        output = io.StringIO()
        with environment, contextlib.redirect_stdout(output):
            self.assertEqual(main(["receive", "washer-m6", "30", "--by", "omar"]), 0)
            self.assertEqual(main(["count", "--csv"]), 0)
        self.assertIn("washer-m6;30;?;25", output.getvalue())
