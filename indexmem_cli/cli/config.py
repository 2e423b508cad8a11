"""`indexmem config`: the settings in force, where each comes from, and the user's file."""

import os
import shlex
import shutil
import subprocess
import sys
from typing import Any

import typer

from indexmem_cli import settings
from indexmem_cli.cli import options
from indexmem_cli.config import DEFAULT_MODEL, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.errors import ConfigError, IndexMemError, reason

config = typer.Typer(rich_markup_mode=None)


def defaults_from_file(command: Any, args: list[str]) -> dict[str, Any]:
    """Return what the user's file says of a command's options.

    In the form that Typer takes: for a group, one level for the subcommand that `args` begin with.
    The file is only opened for commands that have such options.
    """
    subcommand = getattr(command, "commands", {}).get(args[0] if args else "")
    if subcommand is not None:
        return {args[0]: defaults_from_file(subcommand, args[1:])}
    by_variable = {v: each.parameter for each in settings.SETTINGS.values() for v in each.variables}
    wanted = {
        parameter.name: by_variable[variable]
        for parameter in command.params
        for variable in _variables(parameter)
        if variable in by_variable
    }
    given = settings.read_settings() if wanted else {}
    return {name: given[key] for name, key in wanted.items() if key in given}


def _variables(parameter: Any) -> list[str]:
    """Environment variables of an option: those that have a setting's are set by it."""
    named = parameter.envvar or []
    return [named] if isinstance(named, str) else list(named)


@config.callback()
def _config() -> None:
    """Show and change the settings that hold for every command.

    A flag beats an INDEXMEM_... variable, that beats your file, that beats the default. Your file
    is the only one: none is read from the folders you ask about.

    \b
    Examples:
      indexmem config show
      indexmem config edit
    """


@config.command()
def path() -> None:
    """Print where your file is, or would be.

    \b
    Examples:
      indexmem config path
      cp "$(indexmem config path)" config-backup.toml
    """
    typer.echo(settings.config_path())


@config.command()
def show(
    context: typer.Context,
    *,
    model: options.Model = DEFAULT_MODEL,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    kv_dtype: options.KvDtype = ModelConfig.kv_dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    policy: options.Policy = MemoryConfig.policy,
    span: options.Span = MemoryConfig.span_tokens,
    answer_from: options.AnswerFrom = None,
    rerank: options.Rerank = MemoryConfig.rerank,
    recall_from: options.RecallFrom = None,
    latent: options.Latent = MemoryConfig.latent,
    max_tokens: options.MaxTokens = AnswerConfig.max_tokens,
    temperature: options.Temperature = AnswerConfig.temperature,
    seed: options.Seed = AnswerConfig.seed,
    as_json: options.Json = False,
) -> None:
    """Show every setting, its value, and where that comes from.

    Flags are taken as the other commands would take them.

    \b
    Examples:
      indexmem config show
      indexmem config show --budget 8k --json
    """
    how = (budget, chunk, policy, span, seed, answer_from)
    options.memory_config(*how, recall_from=recall_from, latent=latent, rerank=rerank)
    options.model_config(model, quant, dtype, device, offline, kv_dtype)
    AnswerConfig(max_tokens, temperature, seed)
    from indexmem_cli.render import show_json, show_settings

    rows = [_describe(context, setting) for setting in settings.SETTINGS.values()]
    file = settings.config_path()
    if as_json:
        show_json({"schema": 1, "file": str(file), "exists": file.exists(), "settings": rows})
    else:
        show_settings(rows, str(file), file.exists())


@config.command()
def edit() -> None:
    """Open your file in $VISUAL or $EDITOR, made from a template if there is none.

    \b
    Examples:
      indexmem config edit
      EDITOR="code --wait" indexmem config edit
    """
    editor = _editor()
    try:
        file = settings.create_config()
    except OSError as error:
        raise IndexMemError(
            f"{settings.config_path()} cannot be made: {reason(error)}", "set INDEXMEM_HOME"
        ) from error
    try:
        status = subprocess.run([*editor, str(file)], check=False).returncode
    except OSError as error:
        raise ConfigError(
            f"the editor {editor[0]!r} cannot be started: {reason(error)}",
            f"set EDITOR, or open {file}",
        ) from error
    if status:
        raise IndexMemError(f"the editor {editor[0]!r} ended with exit code {status}")
    settings.read_settings()


def _describe(context: typer.Context, setting: settings.Setting) -> dict[str, Any]:
    """Return name, value and origin of one setting as the command line left it."""
    source = context.get_parameter_source(setting.parameter)
    origin = source.name.lower() if source else "default"
    origin = {"commandline": "flag", "default_map": "file"}.get(origin, origin)
    row = {
        "name": setting.name,
        "value": context.params[setting.parameter],
        "origin": origin,
        "if_unset": setting.if_unset or None,
    }
    if origin == "environment":
        row["variable"] = next(name for name in setting.variables if os.environ.get(name))
    return row


def _editor() -> list[str]:
    """Return the user's editor as a command.

    Raises:
        ConfigError: there is none, or no terminal to show it in.
    """
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if named:
        return shlex.split(named)
    found = next(filter(shutil.which, ("nano", "vim", "vi")), None)
    if found is None or not (sys.stdin and sys.stdin.isatty()):
        raise ConfigError(
            "no editor: neither VISUAL nor EDITOR is set",
            f"EDITOR=nano indexmem config edit, or open {settings.config_path()}",
        )
    return [found]
