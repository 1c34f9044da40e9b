"""A clerk of a small library: looks books up, lends them, and remembers who has what."""

from typing import Any

from google.adk.agents import LlmAgent
from google.adk.tools import ToolContext

from .scripted_model import ScriptedModel

# A real model is one line: MODEL = "gemini-2.5-flash" (and GOOGLE_API_KEY in the environment).
MODEL = ScriptedModel()

BOOKS = {"dune": 2, "emma": 1, "ulysses": 0}


def look_up(title: str) -> dict[str, Any]:
    """Says how many copies of a book the library owns.

    Args:
        title: The title of the book.
    """
    return {"title": title, "copies": BOOKS.get(title.lower(), 0)}


def lend(title: str, tool_context: ToolContext) -> dict[str, Any]:
    """Lends a book to the user, if a copy is in.

    Args:
        title: The title of the book.
    """
    state = tool_context.state
    lent = state.get("app:lent", {})
    if lent.get(title.lower(), 0) >= BOOKS.get(title.lower(), 0):
        return {"title": title, "lent": False}
    # Shared by all users of the app, by all sessions of the user, by this session, and by this turn.
    state["app:lent"] = lent | {title.lower(): lent.get(title.lower(), 0) + 1}
    state["user:books"] = [*state.get("user:books", []), title]
    state["last_title"] = title
    state["temp:counter"] = "north"
    return {"title": title, "lent": True}


root_agent = LlmAgent(
    name="librarian",
    model=MODEL,
    description="Lends books.",
    instruction="You lend books. The user has: {user:books?}. Look a book up before you lend it.",
    tools=[look_up, lend],
)
