"""Where the program starts: what must happen before anything heavy is imported."""

import os
import signal
import sys

from indexmem_cli.signals import Terminated, signals_raised


def main() -> None:
    """Run the command line and leave with its exit code."""
    # torch reads this once, on import: idle threads must sleep, not spin on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `2>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (lives to the end)
        # A terminal that cannot show a character shows `?`; it must never end the program.
        getattr(sys, name).reconfigure(errors="replace")
    if sys.argv[1:] in (["--version"], ["-V"]):
        from indexmem_cli.cli.version import version_lines

        print(version_lines())
        return
    try:
        with signals_raised():
            from indexmem_cli.cli.app import app

            app(prog_name="indexmem")
    except KeyboardInterrupt:  # while importing; app.py handles every later one
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
