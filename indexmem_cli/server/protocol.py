"""The OpenAI chat-completions protocol: requests in, completions, chunks and errors out."""

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexmem_cli.config import AnswerConfig
from indexmem_cli.errors import ConfigError, DocumentError, IndexMemError, OutOfMemory
from indexmem_cli.events import Answer
from indexmem_cli.server.shelf import UnknownMemory
from indexmem_cli.server.worker import Overloaded

LONG_QUESTION_CHARS = 2000
"""A last message longer than this is a text, and its last paragraph the question."""
# What would change the answer and cannot be done is refused, not ignored.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, [], ""),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "top_p": (None, 1),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "response_format": (None, {"type": "text"}),
}


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str = ""


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """The message as plain text.

        Raises:
            ConfigError: it holds something else, such as an image.
        """
        if not isinstance(self.content, list):
            return self.content or ""
        for part in self.content:
            if part.type != "text":
                raise ConfigError(f"messages of type {part.type!r} cannot be read", "send text")
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions; `memories` and `progress` are ours."""

    model_config = ConfigDict(extra="allow")
    messages: list[Message] = Field(min_length=1)
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    memories: list[str] = Field(default_factory=list)
    """Ids of documents to answer from."""
    progress: bool = False
    """Stream chunks without choices that say how far reading has come."""

    def answer_config(self, default: AnswerConfig) -> AnswerConfig:
        """Return how to answer.

        Raises:
            ConfigError: something is asked for that cannot be done.
        """
        for name, values in _ONLY.items():
            if (asked := (self.model_extra or {}).get(name)) not in values:
                raise ConfigError(f"{name}={json.dumps(asked)} is not supported", "leave it out")
        limits = (self.max_completion_tokens, self.max_tokens, default.max_tokens)
        longest = next(limit for limit in limits if limit is not None)
        heat = default.temperature if self.temperature is None else self.temperature
        return AnswerConfig(longest, heat, default.seed if self.seed is None else self.seed)

    def split(self) -> tuple[str, str]:
        """Return the text to read and the question to answer of it.

        The last message is the question, everything before it is text. A long last message is text
        too, up to its last paragraph.

        Raises:
            ConfigError: the last message is empty, or not the user's.
        """
        *earlier, last = self.messages
        question = last.text.strip()
        if last.role != "user" or not question:
            raise ConfigError("the last message must be a question of the user's")
        turns = [(message.role, message.text.strip()) for message in earlier]
        text = "\n\n".join(f"{role}: {said}" for role, said in turns if said)
        if len(question) > LONG_QUESTION_CHARS:
            body, gap, question = question.rpartition("\n\n")
            if not gap or len(question) > LONG_QUESTION_CHARS:
                raise ConfigError(
                    "the last message is long and has no question in a paragraph of its own",
                    "put the question after an empty line, or in a message of its own",
                )
            text = f"{text}\n\n{body}" if text else body
        return text, question


@dataclass
class Completion:
    """One answer on its way out, in the protocol's form."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer, usage: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None}
        choice["finish_reason"] = _finish_reason(answer)
        body = self._body("chat.completion", [choice])
        return body | {"usage": usage, "indexmem": details(answer)}

    def chunk(
        self,
        delta: dict[str, Any] | None = None,
        answer: Answer | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        """A piece of a stream; without a delta it has no choice."""
        choices = []
        if delta is not None:
            reason = _finish_reason(answer) if answer else None
            choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        if answer is not None:
            extra["indexmem"] = details(answer)
        return self._body("chat.completion.chunk", choices) | extra

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def details(answer: Answer) -> dict[str, Any]:
    """What the protocol has no field for: sources, coverage, memory, timing."""
    document = answer.as_json()
    del document["answer"]
    return document


def count_usage(answer: Answer, question_tokens: int, answer_tokens: int) -> dict[str, Any]:
    """Tokens of a request; cached ones were read for an earlier request and not again."""
    prompt = answer.memory.full_kv_tokens + question_tokens
    cached = sum(memory.tokens_reused for memory in answer.memories)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt + answer_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def describe_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body of a failure."""
    status, kind, code = 500, "server_error", None
    match error:
        case UnknownMemory():
            status, kind, code = 404, "invalid_request_error", "memory_not_found"
        case Overloaded():
            status, code = 503, "overloaded"
        case OutOfMemory():
            status, code = 503, "out_of_memory"
        case ConfigError() | DocumentError():
            status, kind = 400, "invalid_request_error"
            code = "unreadable_document" if isinstance(error, DocumentError) else None
    if not isinstance(error, IndexMemError):
        return status, error_body("the server failed; its log says why", kind, code)
    hint = f" ({error.hint})" if error.hint else ""
    return status, error_body(f"{error.message}{hint}", kind, code)


def error_body(
    message: str, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error in the protocol's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _finish_reason(answer: Answer) -> Literal["stop", "length"]:
    return "length" if answer.stop == "length" else "stop"
