"""Agents that say what they are told to: google-adk's own, with a model that is a script."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from google.adk.agents import LlmAgent, ParallelAgent, SequentialAgent
from google.adk.apps.app import App
from google.adk.models import BaseLlm, LlmResponse
from google.adk.models.base_llm_connection import BaseLlmConnection
from google.adk.tools import LongRunningFunctionTool, ToolContext
from google.adk.workflow import Workflow
from google.genai import types
from pydantic import Field, PrivateAttr


def said(text: str) -> LlmResponse:
    """Return an answer as a model gives it, with what it cost."""
    return LlmResponse(
        content=types.Content(role="model", parts=[types.Part(text=text)]),
        finish_reason=types.FinishReason.STOP,
        usage_metadata=types.GenerateContentResponseUsageMetadata(
            prompt_token_count=10, candidates_token_count=len(text), total_token_count=99
        ),
        model_version="script-1",
    )


def called(name: str, **arguments: Any) -> LlmResponse:
    """Return a model's call of a function, with the signature of its thoughts."""
    part = types.Part(
        function_call=types.FunctionCall(name=name, args=arguments),
        thought_signature=b"\xff\xfesigned",
    )
    return LlmResponse(content=types.Content(role="model", parts=[part]))


class Script(BaseLlm):
    """A model that gives its answers in order, and begins again after the last."""

    model: str = "script"
    answers: list[LlmResponse]
    requests: list[list[types.Content]] = Field(default_factory=list)
    """What it was asked, each time."""
    _given: int = PrivateAttr(default=0)

    async def generate_content_async(
        self, llm_request: Any, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        self.requests.append([one.model_copy(deep=True) for one in llm_request.contents])
        answer = self.answers[self._given % len(self.answers)]
        self._given += 1
        yield answer.model_copy(deep=True)

    @contextlib.asynccontextmanager
    async def connect(self, llm_request: Any) -> AsyncIterator[BaseLlmConnection]:
        yield LiveScript(self.answers)


class LiveScript(BaseLlmConnection):
    """A live model that answers once, to what it was told."""

    def __init__(self, answers: list[LlmResponse]) -> None:
        self.answers = answers
        self.was_told = asyncio.Event()

    async def send_history(self, history: list[types.Content]) -> None: ...

    async def send_content(self, content: types.Content) -> None:
        self.was_told.set()

    async def send_realtime(self, blob: Any) -> None: ...

    async def receive(self) -> AsyncGenerator[LlmResponse, None]:
        await self.was_told.wait()
        for answer in self.answers:
            yield answer.model_copy(deep=True)

    async def close(self) -> None: ...


def agent(name: str, *answers: LlmResponse, **options: Any) -> LlmAgent:
    return LlmAgent(name=name, model=Script(answers=[*answers]), **options)


def weather(city: str, tool_context: ToolContext) -> dict[str, Any]:
    """Tell the weather, and remember in every scope that it was asked for."""
    tool_context.state["last"] = {"city": city, "asked": [1, None]}
    tool_context.state["user:cities"] = [*tool_context.state.get("user:cities", []), city]
    tool_context.state["app:asked"] = tool_context.state.get("app:asked", 0) + 1
    tool_context.state["temp:raw"] = object()
    return {"sky": "blue", "celsius": 21.5}


def book(hotel: str) -> None:
    """Ask somebody to approve a booking; the answer comes later."""


def tool_agent() -> LlmAgent:
    return agent(
        "forecaster",
        called("weather", city="Paris"),
        said("Blue, 21.5 degrees."),
        tools=[weather],
        output_key="forecast",
    )


def sequence() -> SequentialAgent:
    writer = agent("writer", said("A draft."), output_key="temp:draft")
    editor = agent("editor", said("A text."), instruction="Edit {temp:draft}", output_key="text")
    return SequentialAgent(name="desk", sub_agents=[writer, editor])


def parallel() -> SequentialAgent:
    scouts = [agent(f"scout_{n}", said(f"Found {n}."), output_key=f"found_{n}") for n in range(3)]
    return SequentialAgent(
        name="party",
        sub_agents=[
            ParallelAgent(name="scouts", sub_agents=[*scouts]),
            agent("guide", said("Follow me."), output_key="way"),
        ],
    )


def workflow() -> Workflow:
    def shout(node_input: str) -> str:
        return node_input.upper()

    def count(node_input: str) -> dict[str, Any]:
        return {"letters": len(node_input)}

    return Workflow(name="mill", edges=[("START", shout, count)])


def booking_app(name: str) -> App:
    from google.adk.apps import ResumabilityConfig

    return App(
        name=name,
        root_agent=agent(
            "clerk",
            called("book", hotel="Ritz"),
            said("Booked."),
            tools=[LongRunningFunctionTool(book)],
        ),
        resumability_config=ResumabilityConfig(is_resumable=True),
    )
