"""Count the parts on the shelves of a small workshop."""

__version__ = "0.4.1"
