"""Where the program starts: what must happen before anything heavy is imported."""

import atexit
import contextlib
import os
import signal
import sys
import threading

from indexmem_cli.signals import Terminated, signals_raised


def main() -> None:
    """Run the command line and leave with its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `2>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (lives to the end)
        # A terminal that cannot show a character shows `?`; it must never end the program.
        getattr(sys, name).reconfigure(errors="replace")
    if sys.argv[1:] in (["--version"], ["-V"]):
        from indexmem_cli.cli.version import version_lines

        with contextlib.suppress(BrokenPipeError):  # which the whole program knows how to tell
            print(version_lines(), flush=True)
            return
    codes: list[int] = []
    atexit.register(_leave, codes)  # before all others, so it runs after them
    try:
        _run()
    except SystemExit as leaving:
        if isinstance(leaving.code, int):
            codes.append(leaving.code)
        raise


def _run() -> None:
    try:
        with signals_raised():
            from indexmem_cli.cli.app import app
            from indexmem_cli.startup import import_early

            app(prog_name="indexmem", obj=import_early)
    except KeyboardInterrupt:  # while importing; app.py handles every later one
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        signal.raise_signal(signal.SIGTERM)


def _leave(codes: list[int]) -> None:
    """End the process with its exit code, when all that is to be done at the end is done.

    Where torch was imported, Python would take another second to look through all objects.
    """
    if codes and ("torch" in sys.modules or threading.active_count() > 1):
        with contextlib.suppress(OSError):  # Python finds the same fault, and tells it
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])


if __name__ == "__main__":
    main()
