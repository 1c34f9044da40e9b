"""A model without a network: it looks for a few words and answers from a script."""

import re
from collections.abc import AsyncGenerator

from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.genai import types


class ScriptedModel(BaseLlm):
    """Understands `have <title>`, `lend <title>` and `what did I say`."""

    model: str = "scripted"

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        """Answers the newest content of the request."""
        reply = _reply(llm_request.contents)
        if isinstance(reply, types.Part):
            yield LlmResponse(content=types.Content(role="model", parts=[reply]))
            return
        if stream:
            for word in reply.split(" "):
                chunk = types.Content(role="model", parts=[types.Part(text=word + " ")])
                yield LlmResponse(content=chunk, partial=True)
        yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=reply)]))


def _reply(contents: list[types.Content]) -> str | types.Part:
    newest = (contents[-1].parts or [types.Part()])[-1]
    if newest.function_response is not None:
        return _tell(newest.function_response)
    text = newest.text or ""
    if match := re.search(r"\b(have|lend)\b(?: me)? (\w+)", text, re.IGNORECASE):
        tool = "lend" if match[1].lower() == "lend" else "look_up"
        return types.Part(function_call=types.FunctionCall(name=tool, args={"title": match[2]}))
    if "what did i say" in text.lower():
        said = [c.parts[0].text for c in contents[:-1] if c.role == "user" and c.parts and c.parts[0].text]
        return "You said: " + "; ".join(said) if said else "Nothing yet."
    return "Ask me: do you have Dune? Or: lend me Emma. Or: what did I say?"


def _tell(response: types.FunctionResponse) -> str:
    told = response.response or {}
    if response.name == "lend":
        return f"{told['title']} is yours." if told["lent"] else f"{told['title']} is not in."
    return f"We own {told['copies']} of {told['title']}."
