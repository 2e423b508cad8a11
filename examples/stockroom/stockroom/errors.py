"""What can go wrong, each with the exit code that the command line returns."""


class StockroomError(Exception):
    exit_code = 1


class NotEnoughStock(StockroomError):
    """More was asked for than lies on the shelf."""

    exit_code = 3

    def __init__(self, part: str, wanted: int, available: int):
        super().__init__(f"{part}: {wanted} wanted, {available} on the shelf")
        self.available = available


class BadEntry(StockroomError):
    """A ledger line or a command holds something that cannot be right."""

    exit_code = 4
