"""What `doctor` shows."""

from typing import Protocol

from rich.text import Text

from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console

_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "failure": ("FAIL", "bold red")}


class Finding(Protocol):
    """What a check found."""

    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def advice(self) -> str | None: ...
    @property
    def fixed(self) -> str | None: ...


def show_finding(finding: Finding) -> None:
    """Print one finding, and what to do where it is not well."""
    console = open_console(stderr=False)
    mark, style = _MARKS[finding.status]
    detail = finding.fixed or finding.detail
    line = Text.assemble((f"{mark:5}", style), f"{finding.name:13}", safe_line(detail))
    console.print(line)
    if finding.advice:
        console.print(Text(f"{'':18}try: {safe_line(finding.advice)}"))
