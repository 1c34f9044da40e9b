"""Records the conversation that `tiered-sessions demo` serves.

Runs google-adk's real Runner over three agents: a coordinator that hands over to an orders desk and
a returns desk, with tool calls, their results, and state in all four scopes. Only the model is
scripted, so no account is needed and each recording tells the same story. What is written down is
each event exactly as the Runner handed it to `append_event`, before any service touched it.

    pip install "tiered-sessions[adk]"
    python examples/record_conversation.py tiered_sessions/cli/data/conversation.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.events import Event
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService, Session
from google.adk.tools import ToolContext
from google.genai import types

APP_NAME = "outdoor_shop"
USER_ID = "mira"
START_STATE = {"app:currency": "EUR", "user:name": "Mira", "channel": "web"}

ORDERS = {
    "A-1042": {"status": "shipped", "carrier": "Nordpost", "eta": "Thursday", "total": 189.9},
    "A-0977": {"status": "delivered", "item": "trail shoes, size 41", "total": 129.0},
}
STOCK = {"two-person tent": 4, "trail shoes, size 42": 2, "head torch": 0}


def find_order(order_id: str, tool_context: ToolContext) -> dict[str, Any]:
    """Looks an order up and remembers it as the one being talked about."""
    tool_context.state["current_order"] = order_id
    tool_context.state["temp:lookup"] = "orders table"
    return ORDERS.get(order_id, {"error": "no such order"})


def check_stock(item: str, tool_context: ToolContext) -> dict[str, Any]:
    """Says how many pieces are in stock and counts the look-ups of all customers."""
    tool_context.state["app:stock_checks"] = tool_context.state.get("app:stock_checks", 0) + 1
    return {"item": item, "in_stock": STOCK.get(item, 0)}


def remember(preference: str, value: str, tool_context: ToolContext) -> dict[str, str]:
    """Keeps a preference with the customer, for every later session."""
    tool_context.state[f"user:{preference}"] = value
    return {"remembered": preference}


def open_return(order_id: str, reason: str, tool_context: ToolContext) -> dict[str, Any]:
    """Opens a return and notes it in the session."""
    ticket = {"ticket": "R-311", "order": order_id, "reason": reason, "label_sent": True}
    tool_context.state["returns"] = [*tool_context.state.get("returns", []), ticket]
    tool_context.state["app:open_returns"] = tool_context.state.get("app:open_returns", 0) + 1
    return ticket


def call(name: str, **arguments: Any) -> types.Part:
    return types.Part(function_call=types.FunctionCall(name=name, args=arguments))


def hand_to(agent: str) -> types.Part:
    return call("transfer_to_agent", agent_name=agent)


def say(text: str) -> types.Part:
    return types.Part(text=text)


# One entry a turn: what the customer writes, then the model's answers in the order it is asked.
# A list of parts is one answer with several tool calls.
CONVERSATION: list[tuple[str, list[types.Part | list[types.Part]]]] = [
    ("Hello, is anybody there?", [say("Hello Mira! This is the outdoor shop. How can I help?")]),
    (
        "Where is my order A-1042?",
        [
            hand_to("orders"),
            call("find_order", order_id="A-1042"),
            say("A-1042 is on its way with Nordpost and should arrive on Thursday."),
        ],
    ),
    (
        "Good. From now on please send parcels to the pick-up point Harbour 3.",
        [
            call("remember", preference="pickup_point", value="Harbour 3"),
            say("Noted: parcels go to Harbour 3 from now on."),
        ],
    ),
    (
        "Do you have the two-person tent and a head torch in stock?",
        [
            [call("check_stock", item="two-person tent"), call("check_stock", item="head torch")],
            say("Four tents are in stock. The head torch is sold out at the moment."),
        ],
    ),
    (
        "The shoes from A-0977 are too small. Can I send them back?",
        [
            hand_to("coordinator"),
            hand_to("returns"),
            call("find_order", order_id="A-0977"),
            say("Of course. Shall I open a return because of the size?"),
        ],
    ),
    (
        "Yes please.",
        [
            call("open_return", order_id="A-0977", reason="too small"),
            say("Return R-311 is open and the label is in your mailbox."),
        ],
    ),
    ("How long do I have?", [say("Thirty days from today, and the label is free of charge.")]),
    (
        "Is size 42 available?",
        [
            hand_to("coordinator"),
            hand_to("orders"),
            call("check_stock", item="trail shoes, size 42"),
            say("Yes, two pairs of size 42 are left."),
        ],
    ),
    (
        "Please remember that 42 is my size.",
        [call("remember", preference="shoe_size", value="42"), say("Done: your shoe size is 42.")],
    ),
    ("Will the price be the same?", [say("Yes: 129.00 EUR, as before.")]),
    (
        "And A-1042, any change?",
        [
            call("find_order", order_id="A-1042"),
            say("No change: shipped, with you on Thursday."),
        ],
    ),
    ("Could you write in Danish next time? Grüße aus København 🏕️", [
        call("remember", preference="language", value="da"),
        say("Selvfølgelig! Næste gang skriver vi på dansk. 🏕️"),
    ]),
    (
        "Once more about the return: do I get the money or a voucher?",
        [
            hand_to("coordinator"),
            hand_to("returns"),
            say("The money: 129.00 EUR, on the card you paid with."),
        ],
    ),
    ("Thank you, that is all.", [say("You are welcome, Mira. Enjoy the tour!")]),
]


class ScriptedModel(BaseLlm):
    """Answers from a list, in order, whichever agent asks."""

    answers: list[types.Part | list[types.Part]]

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        answer = self.answers.pop(0)
        parts = answer if isinstance(answer, list) else [answer]
        asked = sum(len(content.model_dump_json()) for content in llm_request.contents)
        usage = types.GenerateContentResponseUsageMetadata(
            prompt_token_count=asked // 4,
            candidates_token_count=12 * len(parts),
            total_token_count=asked // 4 + 12 * len(parts),
        )
        yield LlmResponse(content=types.Content(role="model", parts=parts), usage_metadata=usage)


class RecordingSessionService(InMemorySessionService):
    """Writes each event down as it arrives, temp: state included."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[dict[str, Any]] = []

    async def append_event(self, session: Session, event: Event) -> Event:
        if not event.partial:
            self.recorded.append(event.model_dump(mode="json", exclude_none=True))
        return await super().append_event(session, event)


def shop(model: BaseLlm) -> LlmAgent:
    """Builds the three agents."""
    orders = LlmAgent(
        name="orders",
        model=model,
        description="Knows orders, parcels and stock.",
        instruction="You are the orders desk. Prices are in {app:currency}.",
        tools=[find_order, check_stock, remember],
        output_key="orders_answer",
    )
    returns = LlmAgent(
        name="returns",
        model=model,
        description="Takes goods back.",
        instruction="You are the returns desk. The customer is {user:name}.",
        tools=[find_order, open_return],
        output_key="returns_answer",
    )
    return LlmAgent(
        name="coordinator",
        model=model,
        description="Greets the customer and hands over to a desk.",
        instruction="Hand the customer over to the desk that knows the matter.",
        sub_agents=[orders, returns],
        output_key="temp:greeting",
    )


async def record() -> dict[str, Any]:
    """Runs the whole conversation and returns the recording."""
    model = ScriptedModel(model="scripted", answers=[])
    service = RecordingSessionService()
    session = await service.create_session(app_name=APP_NAME, user_id=USER_ID, state=dict(START_STATE))
    runner = Runner(app_name=APP_NAME, agent=shop(model), session_service=service)
    turns = []
    for text, answers in CONVERSATION:
        model.answers[:] = answers
        service.recorded = []
        message = types.Content(role="user", parts=[types.Part(text=text)])
        async for _ in runner.run_async(user_id=USER_ID, session_id=session.id, new_message=message):
            pass
        if model.answers:
            raise RuntimeError(f"{len(model.answers)} scripted answers were not asked for after {text!r}")
        turns.append(service.recorded)
    return {"app_name": APP_NAME, "state": START_STATE, "turns": turns}


def main() -> None:
    recording = asyncio.run(record())
    text = json.dumps(recording, ensure_ascii=False, separators=(",", ":")) + "\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
    events = sum(len(turn) for turn in recording["turns"])
    print(f"{len(recording['turns'])} turns, {events} events, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
