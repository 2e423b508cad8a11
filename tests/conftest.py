"""What every test gets: a home of its own, no network, and on request a tiny model."""

import logging
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# torch reads this when it is imported: idle threads must sleep, the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if not Path("/dev/nvidiactl").exists():
    # Triton reads this when it is imported: without a device its kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Whoever runs the tests in the background hands down an ignored Ctrl-C, also to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(process: subprocess.Popen[Any], kind: type[BaseException] | None, *_: object) -> None:
    """Leave a process's `with`; after a failure inside, nothing else would end the process."""
    if kind is not None:
        process.kill()
    leave(process, kind, *_)


leave = subprocess.Popen.__exit__
subprocess.Popen.__exit__ = _end  # type: ignore[method-assign]

# The same examples in every run, and no time limit that a busy machine could break.
settings.register_profile("indexmem", deadline=None, database=None, derandomize=True)
settings.load_profile("indexmem")

CHAT_TEMPLATE = (
    "{%- for message in messages if message.role in ('user', 'assistant') -%}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_TOKENIZER_TEXT = ("the quick brown fox jumps over the lazy dog and the mill passes to Ruth",) * 8
_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def _hub_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the hub's cache out of the user's home; its client reads this once, on import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test an empty home, and take back what commands change in the process."""
    before = dict(os.environ)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for kind in ("CACHE", "CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
    for name in before:
        if name.startswith("INDEXMEM_") or name in ("HF_HUB_OFFLINE", "VISUAL", "EDITOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INDEXMEM_HOME", str(home / "indexmem"))
    yield
    os.environ.clear()
    os.environ.update(before)
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail any test that opens a connection to another machine."""

    def guard(name: str) -> Any:
        connect = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and address[0] not in _LOCAL_HOSTS:
                pytest.fail(f"the test opened a connection to {address}")
            return connect(self, address)

        return guarded

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guard(name))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a seeded Qwen3 of 2 layers, hidden 32, head 16, window 256, with its tokenizer.

    Weights are random: only its arithmetic can be tested, not its answers.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say of themselves is not under test
        tokenizer = _make_tokenizer()
        _make_model(len(tokenizer), tokenizer.eos_token_id).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _make_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 300 tokens with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|end|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_TOKENIZER_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=specials[1:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
    )


def _make_model(vocab_size: int, eos_token_id: int) -> Any:
    """Return the model in float32, the same in every run."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).float().eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Load the tokenizer of the model that is used by default."""
    from indexmem_cli.checkpoint import find_checkpoint
    from indexmem_cli.config import DEFAULT_MODEL
    from indexmem_cli.tokens import load_tokenizer

    return load_tokenizer(find_checkpoint(DEFAULT_MODEL, offline=True).path)


@pytest.fixture
def book(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Write a file of the test module's `TEXT`."""
    path = tmp_path / "book.txt"
    path.write_text(request.module.TEXT)
    return path


@pytest.fixture
def parsed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files apart in this process, for tests that look or reach into the parsers."""
    from indexmem_cli.documents import formats

    monkeypatch.setattr(formats, "ParsedApart", formats.open_parsed)


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a session without model or documents where the commands find theirs."""
    from fake_session import FakeSession

    import indexmem_cli

    session = FakeSession()
    for name in ("session", "inspecting"):
        monkeypatch.setitem(sys.modules, f"indexmem_cli.{name}", session)
        monkeypatch.setattr(indexmem_cli, name, session, raising=False)
    return session
