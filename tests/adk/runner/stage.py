"""A stage: one session service with a script playing on it, and all that was seen of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from google.adk.agents import LlmAgent
from google.adk.apps.app import App
from google.adk.artifacts import InMemoryArtifactService
from google.adk.events.event import Event
from google.adk.runners import Runner

from tests.adk.scripted import Normaliser, Recorder, ScriptedLlm, ordered, run

Maker = Callable[[str], Any]

# What google-adk says of itself while a runner works.
QUIET = [
    pytest.mark.filterwarnings("ignore:.*EXPERIMENTAL.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Agent is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `plugins` argument is deprecated:DeprecationWarning"),
]
both = pytest.mark.parametrize("implementation", ["stock", "ours"])


@dataclass
class Stage:
    """One service with a script playing on it."""

    service: Recorder
    fresh: Callable[[], Any]
    app: str
    user: str = "ann"
    artifacts: InMemoryArtifactService = field(default_factory=InMemoryArtifactService)
    models: list[ScriptedLlm] = field(default_factory=list)
    yielded: list[list[Event]] = field(default_factory=list)

    def model(self, *replies: Any, **options: Any) -> ScriptedLlm:
        self.models.append(ScriptedLlm(*replies, **options))
        return self.models[-1]

    def agent(self, name: str, *replies: Any, **options: Any) -> LlmAgent:
        return LlmAgent(name=name, model=self.model(*replies), **options)

    def runner(self, root: Any, *, auto_create_session: bool = False, **options: Any) -> Runner:
        app = App(name=self.app, root_agent=root, **options)
        return Runner(
            app=app,
            session_service=self.service,
            artifact_service=self.artifacts,
            auto_create_session=auto_create_session,
        )

    async def create(self, session: str, **state: Any) -> None:
        await self.service.create_session(
            app_name=self.app, user_id=self.user, session_id=session, state=state
        )

    async def load(self, session: str) -> Any:
        found = await self.service.inner.get_session(app_name=self.app, user_id=self.user, session_id=session)
        assert found is not None
        return found

    async def turn(self, runner: Runner, session: str, said: Any, **options: Any) -> list[Event]:
        events = await run(runner, session, said, **options)
        self.yielded.append(events)
        return events

    async def left(self) -> dict[str, Any]:
        """Returns all that the script left behind, read by a service that was not there."""
        normal = Normaliser()
        reader = self.fresh()
        listed = await reader.list_sessions(app_name=self.app, user_id=self.user)
        sessions = []
        for name in sorted(session.id for session in listed.sessions):
            session = await reader.get_session(app_name=self.app, user_id=self.user, session_id=name)
            # The column has microseconds, the event a float's worth.
            assert session.last_update_time == pytest.approx(session.events[-1].timestamp, abs=1e-6, rel=0)
            sessions.append({"state": session.state, "events": ordered(session.events)})
        left = {
            "yielded": normal([ordered(events) for events in self.yielded]),
            "asked": normal([model.asked for model in self.models]),
            "sessions": normal(sessions),
            "calls": [name for name, _ in self.service.calls],
        }
        await reader.close()
        return left


def stage(make: Maker, who: str, app: str | None = None, user: str = "ann") -> Stage:
    """Returns a stage on stock's service or on ours."""
    # The shared states of an app outlive its sessions: no two tests have the same app.
    return Stage(Recorder(make(who)), lambda: make(who), app or f"app_{uuid4().hex}", user)


def names(s: Stage) -> list[str]:
    """Returns the names of the calls of the service since the last time."""
    return [name for name, _ in s.service.taken()]
