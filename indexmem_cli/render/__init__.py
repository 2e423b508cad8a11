"""Events → screen or JSON. The only package that imports rich.

Every untrusted string passes `safe_text`, and meets Rich as `Text`, never as markup.
"""

from indexmem_cli.render.answers import JsonRenderer, Renderer, View
from indexmem_cli.render.bench import (
    describe_value,
    markdown_measures,
    show_measures,
    tabulate_measures,
)
from indexmem_cli.render.explanation import draw_explanation
from indexmem_cli.render.health import show_finding
from indexmem_cli.render.inspection import show_inspection
from indexmem_cli.render.models import describe_download, show_model, show_models
from indexmem_cli.render.safe import safe_text
from indexmem_cli.render.screen import show_error, show_json, show_line, show_lines
from indexmem_cli.render.settings import show_settings
from indexmem_cli.render.wording import format_bytes, format_seconds

__all__ = [
    "JsonRenderer",
    "Renderer",
    "View",
    "describe_download",
    "describe_value",
    "draw_explanation",
    "format_bytes",
    "format_seconds",
    "markdown_measures",
    "safe_text",
    "show_error",
    "show_finding",
    "show_inspection",
    "show_json",
    "show_line",
    "show_lines",
    "show_measures",
    "show_model",
    "show_models",
    "show_settings",
    "tabulate_measures",
]
