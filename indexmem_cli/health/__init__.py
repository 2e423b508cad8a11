"""What `doctor` looks at: each check says what it found, and what to do where that is not well."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from indexmem_cli.errors import IndexMemError, first_line
from indexmem_cli.health import files, system
from indexmem_cli.health.finding import Finding

__all__ = ["Finding", "examine", "mend"]


def examine(model: str | None = None) -> Iterator[Finding]:
    """Run every check, in order; one that breaks is a failure of its own.

    Args:
        model: the model to look at; None takes the one that is set.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("program", system.check_program),
        ("settings", system.check_settings),
        ("torch", system.check_torch),
        ("gpu", system.check_gpu),
        ("kernels", system.check_kernels),
        ("quantisation", system.check_quantisation),
        ("memory", system.check_memory),
        ("data", system.check_data),
        ("disk", system.check_disk),
        ("model", lambda: files.check_model(model or files.model_in_force())),
        ("downloads", files.check_downloads),
        ("memories", files.check_memories),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 (a doctor must not die of the illness)
            yield Finding(name, "failure", f"{type(error).__name__}: {first_line(error)}")


def mend(finding: Finding) -> Finding:
    """Mend what can be mended, and say what was done."""
    if finding.fix is None or finding.status == "ok":
        return finding
    try:
        return replace(finding, status="ok", fixed=finding.fix(), advice=None)
    except (OSError, IndexMemError) as error:
        return replace(finding, advice=f"could not be mended: {error}")
