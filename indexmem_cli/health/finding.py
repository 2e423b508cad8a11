"""What one check found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    status: str
    """ok | warning | failure. Only a failure keeps the program from its work."""
    detail: str
    advice: str | None = None
    fix: Callable[[], str] | None = None
    """Mends it and says what was done."""
    fixed: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as plain JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "advice": self.advice,
            "can_fix": self.fix is not None,
            "fixed": self.fixed,
        }
