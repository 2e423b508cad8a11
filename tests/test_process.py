"""What only a real process shows: start-up, signals, closed and full outputs, library noise."""

import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexmem_cli import __version__
from indexmem_cli.cli import noise
from indexmem_cli.cli.app import app

TESTS = Path(__file__).parent
PROGRAM = [sys.executable, "-m", "indexmem_cli"]
_ENDLESS = {"FAKE_ENDLESS": "1", "FAKE_DELAY_S": "0.001"}
FAKE_PROGRAM = [sys.executable, str(TESTS / "fake_session.py")]


@pytest.fixture(autouse=True)
def _own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    # Set by many container images; it would hide what a full buffer does at exit.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.chdir(tmp_path)


def test_libraries_are_hushed_unless_verbose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    noise.hush_libraries(verbose=True)
    assert "TRANSFORMERS_VERBOSITY" not in os.environ
    code = (
        "import logging, warnings; from indexmem_cli.cli.noise import hush_libraries;"
        "hush_libraries({}); warnings.warn('w'); logging.getLogger('pypdf').warning('l')"
    )
    for verbose, num_lines in ((False, 0), (True, 2)):
        shown = subprocess.run(
            [sys.executable, "-c", code.format(verbose)], capture_output=True, text=True
        ).stderr
        assert len(shown.splitlines()) == num_lines, shown


@pytest.mark.parametrize(
    "args", [["--help"], ["ask", "--help"], ["--version"], ["-V"], ["ask", "--version"]]
)
def test_no_torch(args: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        "from indexmem_cli.__main__ import main\n"
        "heavy = {'torch', 'transformers', 'rich', 'indexmem_cli.session'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv[1:] = {args!r}\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if args == ["ask", "--version"]:  # not an option there; the error needs render
        assert "'torch'" not in result.stdout
    else:
        assert result.stdout.endswith("loaded: []\n"), result.stderr


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    expected = f"indexmem {__version__} (Python {python}, {sys.platform})\n"
    result = subprocess.run([*PROGRAM, flag], capture_output=True, text=True)
    for part in ("torch", "transformers", "tokenizers", "safetensors"):
        assert f"\n{part} {metadata.version(part)}\n" in result.stdout
    assert result.stdout.startswith(expected) and not result.stderr and not result.returncode
    assert CliRunner().invoke(app, [flag]).stdout == result.stdout


@pytest.mark.parametrize(("args", "limit_s"), [("--help", 0.3), ("--version", 0.1)])
def test_start_up(args: str, limit_s: float) -> None:
    """CPU time, so that a busy machine does not fail it; twice the limit, for a slow one."""
    used = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*PROGRAM, args], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(used) < 2 * limit_s


def test_threads_sleep_when_idle() -> None:
    """From Python too: torch asks once, when it is imported."""
    code = "import os, indexmem_cli; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert shown == "PASSIVE\n"


def test_interrupt() -> None:
    with _start_endless(["ask", "book.pdf", "Who?", "-q"]) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"word"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"interrupted\n")
    assert out.endswith(b" \n")


# Sends a signal from a line of Python of which it is known what becomes of an exception in it.
_AT_A_BAD_MOMENT = """
import signal, sys, threading, time
import fake_session

SENT = signal.Signals[sys.argv.pop(1)]
PLACE = sys.argv.pop(1)


class Dying:
    def __del__(self):
        signal.raise_signal(SENT)


def start_slowly(thread, start=threading.Thread.start):
    start(thread)
    time.sleep(0.2)


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "cannot_be_had":
            signal.raise_signal(SENT)


def watch(frame, event, arg):
    code = frame.f_code
    if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "cb":
        sys.setprofile(None)
        signal.raise_signal(SENT)


class Session(fake_session.FakeSession):
    def ask(self, *args, **options):
        if PLACE == "a callback of an import":
            sys.setprofile(watch)
            import tabnanny
        elif PLACE == "an import that may fail":
            sys.meta_path.insert(0, Missing())
            try:
                import cannot_be_had
            except BaseException:
                pass
        else:
            if PLACE == "a finaliser, its hook held up":
                threading.Thread.start = start_slowly
            Dying()
        yield from super().ask(*args, **options)


fake_session.FakeSession = Session
fake_session.run_program()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", -signal.SIGTERM)])
@pytest.mark.parametrize(
    "place",
    [
        "a callback of an import",
        "an import that may fail",
        "a finaliser",
        "a finaliser, its hook held up",
    ],
)
def test_no_signal_is_swallowed(name: str, code: int, place: str) -> None:
    """What is raised in these places, Python or a library drops."""
    result = subprocess.run(
        [sys.executable, "-c", _AT_A_BAD_MOMENT, name, place, "ask", "book.pdf", "Who?", "-q"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", **_ENDLESS},
        timeout=20,
    )
    told = "interrupted\n" if name == "SIGINT" else ""
    assert (result.returncode, result.stderr) == (code, told)


def test_a_second_signal_does_not_wait_for_imports(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time; print(1, flush=True); time.sleep(60)")
    code = "from indexmem_cli.signals import *\nwith signals_raised(): import endless"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"1"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", -signal.SIGTERM)])
def test_a_terminal_gets_its_cursor_back(name: str, code: int) -> None:
    terminal, inside = os.openpty()
    environment = {**os.environ, "FAKE_DELAY_S": "0.5", "TERM": "xterm"}
    command = [*FAKE_PROGRAM, "ask", "book.pdf", "Who?"]
    with subprocess.Popen(command, stdin=inside, stderr=inside, env=environment) as process:
        os.close(inside)
        shown = b""
        while b"Reading" not in shown:
            shown += os.read(terminal, 1000)
        process.send_signal(signal.Signals[name])
        with contextlib.suppress(OSError):  # the end, as a terminal tells it
            while piece := os.read(terminal, 1000):
                shown += piece
    os.close(terminal)
    assert process.returncode == code
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") >= 0, shown[-200:]


@pytest.mark.parametrize("args", [["-q"], []])
def test_closed_pipe(args: list[str]) -> None:
    with _start_endless(["ask", "book.pdf", "Who?", *args]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == (
            b"" if args else b"note: the archive is read in bfloat16\n"
        )


@pytest.mark.parametrize(
    "args", ["--version", "--help", "ask b Who? --json", "train base --data . --out o"]
)
def test_a_pipe_closed_from_the_start(args: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([*FAKE_PROGRAM, *args.split()], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 141
    assert b"rror" not in result.stderr and b"Traceback" not in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_narrow_encodings(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "FAKE_TEXT": "№ 5 – 文"}
    result = subprocess.run(
        [*FAKE_PROGRAM, "ask", "b", "Who?"], capture_output=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "№ 5 – 文".encode(encoding, "replace")


def test_closed_streams() -> None:
    command = " ".join([*FAKE_PROGRAM, "ask", "book.pdf", "Who?"])
    result = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True)
    assert (result.returncode, result.stdout) == (0, b"The mill passes to Ruth.\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*FAKE_PROGRAM, "ask", "b", "Who?", "-q"], stdout=full, stderr=subprocess.PIPE
        )
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: OSError: [Errno 28]")
    assert b"Traceback" not in result.stderr


def _start_endless(args: list[str]) -> subprocess.Popen[bytes]:
    """Start an answer that never ends."""
    return subprocess.Popen(
        [*FAKE_PROGRAM, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **_ENDLESS},
    )
