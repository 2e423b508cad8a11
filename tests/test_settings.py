"""Settings: flag over environment over the user's file over default, and the file itself."""

import json
import os
import sys
from pathlib import Path

import pytest
from fake_session import FakeSession
from typer.main import get_command
from typer.testing import CliRunner, Result

from indexmem_cli import settings
from indexmem_cli.cli.app import app
from indexmem_cli.cli.config import defaults_from_file
from indexmem_cli.errors import ConfigError


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args, prog_name="indexmem")


def write_config(text: str) -> Path:
    path = settings.config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def shown(*args: str) -> dict[str, dict]:
    result = run("config", "show", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return {row["name"]: row for row in json.loads(result.stdout)["settings"]}


class TestPrecedence:
    def test_each_origin_beats_the_next(
        self, fake_session: FakeSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_config('budget = "1k"\npolicy = "keydiff"\nspan = 5\n')
        monkeypatch.setenv("INDEXMEM_BUDGET", "2k")
        monkeypatch.setenv("INDEXMEM_POLICY", "tova")
        run("ask", "book.pdf", "Who?", "--budget", "3k")
        [(_, given)] = fake_session.calls
        memory = given["memory"]
        assert (memory.budget_tokens, memory.policy, memory.span_tokens) == (3072, "tova", 5)
        assert memory.seed == 0

    def test_config_show_names_each_origin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write_config("span = 5\nseed = 7\n")
        monkeypatch.setenv("INDEXMEM_POLICY", "tova")
        monkeypatch.setenv("INDEXMEM_SEED", "8")
        rows = shown("--budget", "3k", "--seed", "9")
        found = {name: (rows[name]["value"], rows[name]["origin"]) for name in rows}
        assert found["budget"] == ("3k", "flag")
        assert found["seed"] == (9, "flag")
        assert found["policy"] == ("tova", "environment")
        assert found["span"] == (5, "file")
        assert found["quant"] == ("auto", "default")
        assert rows["policy"]["variable"] == "INDEXMEM_POLICY"

    def test_config_show_for_people(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_config("offline = true\n")
        monkeypatch.setenv("INDEXMEM_DTYPE", "float16")
        lines = run("config", "show", "--span", "3").stdout.splitlines()
        cells = {line.split()[0]: line.split()[1:] for line in lines}
        assert cells["span"] == ["3", "--span"]
        assert cells["dtype"] == ["float16", "INDEXMEM_DTYPE"]
        assert cells["offline"] == ["true", "file"]
        assert cells["device"] == ["auto", "default"]
        assert lines[-1] == f"file: {path}"

    def test_a_flag_turns_off_what_the_file_turns_on(self, fake_session: FakeSession) -> None:
        write_config("offline = true\n")
        run("ask", "book.pdf", "Who?")
        run("ask", "book.pdf", "Who?", "--no-offline")
        assert [call[1]["model"].offline for call in fake_session.calls] == [True, False]
        assert os.environ["HF_HUB_OFFLINE"] == "0"

    @pytest.mark.parametrize("name", settings.SETTINGS)
    def test_every_setting_has_its_option_its_variable_and_its_line(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting = settings.SETTINGS[name]
        options = {param.name: param for param in get_command(app).commands["ask"].params}
        assert f"--{setting.name}" in options[name].opts
        variables = options[name].envvar
        variables = (variables,) if isinstance(variables, str) else tuple(variables)
        assert variables == setting.variables
        settings.write_setting(name, setting.example)
        row = shown()[setting.name]
        assert (str(row["value"]), row["origin"]) == (str(setting.example), "file")

    def test_an_option_of_that_name_that_is_another_is_left_alone(self) -> None:
        write_config('seed = 7\nbudget = "auto"\n')
        commands = get_command(app)
        assert defaults_from_file(commands, ["bench", "speed"]) == {"bench": {"speed": {}}}
        assert defaults_from_file(commands, ["ask"]) == {"ask": {"seed": 7, "budget": "auto"}}

    @pytest.mark.parametrize("command", [["train", "adapter"], ["train", "budgets"]])
    def test_training_takes_the_model_of_the_file(self, command: list[str]) -> None:
        write_config('model = "Qwen/Qwen3-0.6B"\n')
        group, name = command
        found = defaults_from_file(get_command(app), command)
        assert found == {group: {name: {"model": "Qwen/Qwen3-0.6B"}}}

    def test_config_show_knows_every_setting(self) -> None:
        assert set(shown()) == {setting.name for setting in settings.SETTINGS.values()}

    def test_nothing_is_read_from_the_folder_that_is_asked_about(
        self, fake_session: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "service"
        names = ("config.toml", "indexmem.toml", ".indexmem.toml", "indexmem/config.toml")
        for name in (*names, ".config/indexmem/config.toml", ".indexmem/config.toml"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('model = "evil/model"\n')
        (folder / "pyproject.toml").write_text('[tool.indexmem]\nmodel = "evil/model"\n')
        (folder / ".env").write_text("INDEXMEM_MODEL=evil/model\n")
        monkeypatch.chdir(folder)
        assert run("ask", ".", "Who?").exit_code == 0
        assert fake_session.calls[0][1]["model"].model == "indexmem-mini"


class TestTheFile:
    @pytest.mark.parametrize(
        ("text", "message", "hint"),
        [
            ('bugdet = "1k"\n', "unknown setting: 'bugdet'", "did you mean budget?"),
            ("max_tokens = 9\n", "unknown setting: 'max_tokens'", "did you mean max-tokens?"),
            ("[ask]\nseed = 1\n", "unknown setting: 'ask'", "known: model, "),
            ('seed = "1"\n', "seed: '1' is not a whole number", ""),
            ("seed = true\n", "seed: True is not a whole number", ""),
            ("model = 3\n", "model: 3 is not a text in quotes", ""),
            ('budget = "4kb"\n', "budget: not a number of tokens: '4kb'", "write it as 4096"),
            ("span = 4\n", "span: span must be an odd number", ""),
            ('policy = "magic"\n', "policy: unknown policy: 'magic'", "choose one of"),
            ("temperature = nan\n", "temperature: temperature must be at least 0", ""),
            ("seed = \n", "is not TOML: ", "indexmem config edit"),
            ("seed = 1\nseed = 2\n", "is not TOML: ", "indexmem config edit"),
            ("\ud800", "cannot be read: not UTF-8 text", "indexmem doctor"),
        ],
    )
    def test_a_mistake_is_one_clear_error(
        self, text: str, message: str, hint: str, fake_session: FakeSession
    ) -> None:
        path = write_config("")
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        for command in (["ask", "book.pdf", "Who?"], ["inspect", "book.pdf"], ["config", "show"]):
            result = run(*command)
            assert result.exit_code == 2
            assert f"error: {path}" in result.stderr and message in result.stderr
            assert hint in result.stderr
        assert not fake_session.calls

    @pytest.mark.parametrize("command", ["config path", "ask --help", "config show -h", "--help"])
    def test_a_broken_file_breaks_nothing_that_does_not_need_it(self, command: str) -> None:
        write_config("nonsense")
        assert run(*command.split()).exit_code == 0

    def test_help_shows_the_programs_defaults(self) -> None:
        write_config("max-tokens = 9\n")
        assert "env var: INDEXMEM_MAX_TOKENS; default: 256" in " ".join(
            run("ask", "--help").stdout.split()
        )

    def test_path(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert run("config", "path").stdout == f"{settings.config_path()}\n"
        monkeypatch.delenv("INDEXMEM_HOME")
        # Elsewhere the platform has its own place.
        if sys.platform == "linux":
            assert settings.config_path() == tmp_path / "home/config/indexmem/config.toml"

    def test_writing_keeps_comments_and_other_lines(self) -> None:
        path = write_config('# mine\nspan = 5  # odd\n\nmodel = "a/b"\n')
        settings.write_setting("model", "c/d")
        settings.write_setting("max_tokens", 9)
        assert path.read_text() == '# mine\nspan = 5  # odd\n\nmodel = "c/d"\nmax-tokens = 9\n'
        assert [file.name for file in path.parent.iterdir()] == ["config.toml"]

    def test_writing_refuses_what_reading_would(self) -> None:
        path = write_config("span = 5\n")
        with pytest.raises(ConfigError):
            settings.write_setting("policy", "magic")
        assert path.read_text() == "span = 5\n"

    def test_writing_follows_a_link(self, tmp_path: Path) -> None:
        path = write_config("")
        mine = path.rename(tmp_path / "mine.toml")
        path.symlink_to(mine)
        settings.write_setting("seed", 3)
        assert path.is_symlink() and mine.read_text() == "seed = 3\n"

    def test_the_template_sets_nothing_and_is_whole_without_its_signs(self) -> None:
        text = settings.template()
        path = write_config(text)
        assert settings.read_settings() == {}
        path.write_text("\n".join(line[2:] for line in text.splitlines()[1:]))
        assert settings.read_settings().keys() == settings.SETTINGS.keys()


class TestEdit:
    def test_the_editor_gets_the_template(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code = "import sys, pathlib; f = pathlib.Path(sys.argv[1]); t = f.read_text();"
        code += "f.write_text(t + 'seed = 5')"
        monkeypatch.setenv("EDITOR", f'{sys.executable} -c "{code}"')
        assert run("config", "edit").exit_code == 0
        assert settings.read_settings() == {"seed": 5}
        assert "# budget = " in settings.config_path().read_text()

    def test_what_was_written_is_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write_config("seeds = 1")
        monkeypatch.setenv("EDITOR", "true")
        result = run("config", "edit")
        assert (result.exit_code, "did you mean seed?" in result.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("editor", "code", "message"),
        [
            ("no-such-editor", 2, "the editor 'no-such-editor' cannot be started: No such file"),
            ("false", 1, "the editor 'false' ended with exit code 1"),
            ("", 2, "no editor: neither VISUAL nor EDITOR is set"),
        ],
    )
    def test_failures(
        self, editor: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VISUAL", editor)
        result = run("config", "edit")
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
