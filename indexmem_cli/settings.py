"""What users set once: the settings, the file they stand in, and what may be written there.

A flag beats the environment, the environment beats the file, the file beats the default. There is
one file, the user's own: nothing is ever read from the folders that are asked about.
"""

import contextlib
import difflib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig, parse_budget, parse_size
from indexmem_cli.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """One thing that can be set: `--max-tokens`, INDEXMEM_MAX_TOKENS, or `max-tokens = 64`."""

    name: str
    """As in the file; with dashes in front it is the flag."""
    types: tuple[type, ...]
    """What a value in the file may be."""
    owner: type
    """The configuration that checks the value."""
    field: str
    example: Any
    if_unset: str = ""
    """Where there is no default, what is done instead."""
    parse: Callable[[Any], Any] = lambda value: value

    @property
    def parameter(self) -> str:
        """Name of the commands' parameter."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the environment variables, the strongest first."""
        own = f"INDEXMEM_{self.parameter.upper()}"
        return (own, "HF_HUB_OFFLINE") if self.name == "offline" else (own,)

    def check(self, value: Any) -> None:
        """Refuse what the configuration would refuse.

        Raises:
            ConfigError: the value has the wrong type, or is out of range.
        """
        # A bool is an int to Python, but `seed = true` is a mistake.
        if not isinstance(value, self.types) or (
            isinstance(value, bool) and bool not in self.types
        ):
            expected = " or ".join(_TYPE_NAMES[kind] for kind in self.types)
            raise ConfigError(f"{value!r} is not {expected}")
        self.owner(**{self.field: self.parse(value)})


def _size(value: Any) -> int:
    return parse_size(str(value))


def _budget(value: Any) -> int | str | None:
    return parse_budget(str(value))


_TYPE_NAMES = {str: "a text in quotes", int: "a whole number", float: "a number"}
_TYPE_NAMES[bool] = "true or false"
_SIZE = (str, int)
SETTINGS = {
    setting.parameter: setting
    for setting in (
        Setting("model", (str,), ModelConfig, "model", "Qwen/Qwen3-4B"),
        Setting("quant", (str,), ModelConfig, "quant", "nf4"),
        Setting("dtype", (str,), ModelConfig, "dtype", "bfloat16"),
        Setting("kv-dtype", (str,), ModelConfig, "kv_dtype", "int8"),
        Setting("device", (str,), ModelConfig, "device", "cpu"),
        Setting("offline", (bool,), ModelConfig, "offline", True),
        Setting(
            "budget",
            _SIZE,
            MemoryConfig,
            "budget_tokens",
            "8k",
            if_unset="4k, or what the model's window allows",
            parse=_budget,
        ),
        Setting(
            "chunk",
            _SIZE,
            MemoryConfig,
            "chunk_tokens",
            "1k",
            if_unset="a quarter of the model's window, at most 2k",
            parse=_size,
        ),
        Setting(
            "policy",
            (str,),
            MemoryConfig,
            "policy",
            "keydiff",
            if_unset="the model's adapter, else keydiff; with --focus the question",
        ),
        Setting("span", (int,), MemoryConfig, "span_tokens", 33),
        Setting(
            "answer-from",
            _SIZE,
            MemoryConfig,
            "answer_from_tokens",
            256,
            if_unset="what the model asks for, else all that is kept",
            parse=_size,
        ),
        Setting("rerank", (bool,), MemoryConfig, "rerank", False),
        Setting(
            "recall-from",
            (str,),
            MemoryConfig,
            "recall_from",
            "int8",
            if_unset="text; of a saved memory what it has",
        ),
        Setting("latent", (str,), MemoryConfig, "latent", "centroids"),
        Setting("max-tokens", (int,), AnswerConfig, "max_tokens", 64),
        Setting("temperature", (int, float), AnswerConfig, "temperature", 0.7),
        Setting("seed", (int,), AnswerConfig, "seed", 1),
    )
}
"""Every setting, by the name of the commands' parameter."""


def config_path() -> Path:
    """Return where the user's file is, or would be: INDEXMEM_HOME, or the platform's own place."""
    if home := os.environ.get("INDEXMEM_HOME"):
        return Path(home).expanduser() / "config.toml"
    from platformdirs import user_config_path

    return user_config_path("indexmem", appauthor=False) / "config.toml"


def read_settings() -> dict[str, Any]:
    """Return what the user's file says, by parameter; nothing where there is no file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    path = config_path()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}", "indexmem doctor") from error
    return _check(_parse(text, path), path)


def write_setting(parameter: str, value: Any) -> Path:
    """Set one value in the user's file; comments and all other lines stay. Returns the file.

    Raises:
        ConfigError: the file, or the value, is wrong.
        OSError: the file cannot be written.
    """
    import tomlkit

    path = config_path()
    read_settings()
    SETTINGS[parameter].check(value)
    document = tomlkit.parse(path.read_text(encoding="utf-8") if path.exists() else template())
    document[SETTINGS[parameter].name] = value
    _replace(path, tomlkit.dumps(document))
    return path


def create_config() -> Path:
    """Return the user's file, made from the template if there is none."""
    path = config_path()
    if not path.exists():
        _replace(path, template())
    return path


def template() -> str:
    """Return a file that sets nothing and shows everything that can be set."""
    import tomlkit

    lines = ["# Settings of indexmem. A flag or an INDEXMEM_... variable beats what stands here."]
    for setting in SETTINGS.values():
        lines.append(f"# {setting.name} = {tomlkit.item(setting.example).as_string()}")
    return "\n".join(lines) + "\n"


def _parse(text: str, path: Path) -> dict[str, Any]:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(text).unwrap()
    except TOMLKitError as error:
        raise ConfigError(f"{path} is not TOML: {error}", "indexmem config edit") from error


def _check(document: dict[str, Any], path: Path) -> dict[str, Any]:
    by_name = {setting.name: setting for setting in SETTINGS.values()}
    for name, value in document.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            raise ConfigError(
                f"{path}: unknown setting: {name!r}",
                f"did you mean {near[0]}?" if near else f"known: {', '.join(by_name)}",
            )
        try:
            by_name[name].check(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}: {error.message}", error.hint) from error
    return {by_name[name].parameter: value for name, value in document.items()}


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = path.resolve()  # a link, as of people who keep their settings elsewhere, stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".config-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
