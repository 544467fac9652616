"""A chat model behind any OpenAI-compatible endpoint: messages and tools in, text and tool calls out.

Owns the client library, its retries, and the translation of its errors. The library is an optional extra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from atoll.agent.budget import Usage
from atoll.model.errors import AtollError

Message = Mapping[str, Any]
"""One message in the endpoint's JSON form."""


class ModelError(AtollError):
    """The model could not be asked, or its answer could not be understood."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model asks for. `arguments` is the JSON that it wrote, unparsed: it may be wrong."""

    id: str
    name: str
    arguments: str

    def parsed(self) -> dict[str, Any]:
        """Raises ValueError for what is not a JSON object."""
        found = json.loads(self.arguments or "{}")
        if not isinstance(found, dict):
            raise ValueError(f"the arguments are a JSON object, not {type(found).__name__}")
        return found


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a model."""

    id: str
    text: str
    calls: Sequence[ToolCall] = ()
    usage: Usage = field(default_factory=Usage)


class Chat(Protocol):
    """What the loop needs of a model."""

    def ask(self, messages: Sequence[Message], tools: Sequence[Message]) -> Reply:
        """Raises ModelError."""
        ...


class ChatModel:
    """A model by name at `base_url` (None: the library's default, or OPENAI_BASE_URL).

    `api_key` None takes OPENAI_API_KEY. `timeout_s` limits one attempt; busy and unreachable endpoints are tried again.
    Raises ModelError when the library is missing or there is no key.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 4,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ModelError("asking a model needs the package `openai`", hint="pip install 'atoll[agent]'") from error
        self.model = model
        self._errors = openai.OpenAIError
        self._options = dict(options or {})
        try:
            self._client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=retries)
        except openai.OpenAIError as error:
            raise ModelError(
                str(error), hint="set OPENAI_API_KEY, any word where the endpoint asks for none"
            ) from error

    def ask(self, messages: Sequence[Message], tools: Sequence[Message]) -> Reply:
        """Raises ModelError."""
        request: dict[str, Any] = {"model": self.model, "messages": list(messages), "tools": list(tools)}
        try:
            answer = self._client.chat.completions.create(**request, **self._options)
        except self._errors as error:
            raise ModelError(f"the model {self.model!r} did not answer: {error}") from error
        try:
            return _reply(answer)
        except (AttributeError, IndexError, TypeError) as error:
            raise ModelError(f"the model {self.model!r} answered what is no chat completion: {error}") from error


def _reply(answer: Any) -> Reply:
    message = answer.choices[0].message
    calls = tuple(
        ToolCall(str(call.id), str(call.function.name), str(call.function.arguments))
        for call in message.tool_calls or ()
        if call.type == "function"
    )
    used = answer.usage
    usage = Usage(int(used.prompt_tokens or 0), int(used.completion_tokens or 0)) if used is not None else Usage()
    return Reply(str(answer.id), str(message.content or ""), calls, usage)
