"""`indexmem doctor`: whether everything is in place, and mending what can be mended."""

from typing import Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries


def doctor(
    *,
    examined: Annotated[
        str | None,
        typer.Option("-m", "--model", metavar="MODEL", help="Look at this model, not the default."),
    ] = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Mend what can be mended; a damaged model is fetched again."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Look whether everything is in place: GPU, libraries, disk, model, memories, settings.

    Exits with 1 if something keeps the program from its work. Opens no network connection, but
    with --fix.

    \b
    Examples:
      indexmem doctor
      indexmem doctor --fix --json
    """
    hush_libraries(False)
    from indexmem_cli import health
    from indexmem_cli.render import show_finding, show_json

    findings = []
    for finding in health.examine(examined):
        findings.append(health.mend(finding) if fix else finding)
        if not as_json:
            show_finding(findings[-1])
    well = all(finding.status != "failure" for finding in findings)
    if as_json:
        rows = [finding.as_json() for finding in findings]
        show_json({"schema": 1, "healthy": well, "findings": rows})
    if not well:
        raise typer.Exit(1)
