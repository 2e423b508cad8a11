"""Record a real session in a terminal as docs/pictures/session.svg: `make pictures`.

The commands are typed into a shell in tmux, which is a terminal; what is drawn is its screen after
the last of them. Nothing is written by hand. Needs tmux.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "pictures" / "session.svg"
BOOK = "examples/short-history-of-the-world.pdf"
COMMANDS = (
    f'indexmem ask {BOOK} "Which dynasty did Kublai Khan found?" --budget 1k',
    f'indexmem ask {BOOK} "Who was printing in Westminster in 1477?" --budget 1k',
    "indexmem memories list",
)
COLUMNS, ROWS = 110, 40
PROMPT = "$ "
TIMEOUT_S = 1800


def record(commands: tuple[str, ...], home: Path) -> str:
    """Type the commands into a terminal; return its screen, with colours as escape sequences."""
    tmux = ["tmux", "-S", str(home / "tmux"), "-f", "/dev/null"]

    def terminal(*arguments: str) -> str:
        return subprocess.run(
            [*tmux, *arguments], check=True, capture_output=True, text=True
        ).stdout

    environment = {
        "HOME": str(home),
        "INDEXMEM_HOME": str(home / "indexmem"),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PS1": PROMPT,
    }
    settings = [f"{name}={value}" for name, value in environment.items()]
    shell = ["env", "-i", "TERM=tmux-256color", "COLORTERM=truecolor", *settings]
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    terminal("new-session", "-d", *size, "-c", str(ROOT), *shell, "bash", "--norc", "--noprofile")
    try:
        for command in ("", *commands):
            terminal("send-keys", "-l", command)
            terminal("send-keys", "Enter")
            wait_for_prompt(lambda: terminal("capture-pane", "-p"))
            if not command:
                terminal("send-keys", "C-l")
                time.sleep(1)
        return terminal("capture-pane", "-p", "-e")
    finally:
        terminal("kill-server")


def wait_for_prompt(look) -> None:
    """Wait until the shell asks for the next command."""
    ends = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends:
        time.sleep(1)
        lines = look().rstrip("\n").splitlines()
        if lines and lines[-1].rstrip() == PROMPT.rstrip():
            return
    raise SystemExit("the command did not end")


def draw(screen: str) -> str:
    """Return the screen as SVG, which loads nothing from elsewhere."""
    lines = list(AnsiDecoder().decode(screen))
    while lines and lines[-1].plain.strip() in ("", PROMPT.strip()):
        lines.pop()
    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    console.print(Text("\n").join(lines))
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="indexmem", code_format=template, unique_id="session")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def main() -> None:
    """Record the session and write the picture."""
    with tempfile.TemporaryDirectory() as home:
        PICTURE.write_text(draw(record(COMMANDS, Path(home))), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
