"""What a run may spend and has spent: tokens as the endpoint counts them, money by prices that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens sent to and got from a model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits, None for none. `price_in` and `price_out` are money for a million tokens, in the unit of `max_cost`."""

    max_tokens: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.price_in <= 0 and self.price_out <= 0:
            raise ValueError("a limit on cost needs prices for tokens: without them everything is free")

    def cost(self, usage: Usage) -> float:
        """Money spent."""
        return (usage.prompt_tokens * self.price_in + usage.completion_tokens * self.price_out) / 1e6

    def exceeded(self, usage: Usage) -> str:
        """Which limit is reached, in words; "" for none. Asked before each call: the last one may go beyond."""
        if self.max_tokens is not None and usage.tokens >= self.max_tokens:
            return f"{usage.tokens} of {self.max_tokens} tokens are spent"
        if self.max_cost is not None and self.cost(usage) >= self.max_cost:
            return f"{self.cost(usage):.4f} of {self.max_cost:g} are spent"
        return ""


def metrics(usage: Usage, budget: Budget) -> dict[str, Any]:
    """A run's spending so far, in OpenHands' form of an event's `llm_metrics`."""
    return {
        "accumulated_cost": budget.cost(usage),
        "accumulated_token_usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        },
    }


def usage_of_metrics(data: Any) -> Usage:
    """The reverse of `metrics`; nothing for what is not one."""
    tokens = data.get("accumulated_token_usage") if isinstance(data, dict) else None
    if not isinstance(tokens, dict):
        return Usage()
    numbers = [tokens.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(number if isinstance(number, int) else 0 for number in numbers))
