"""The official Python client, driven by lines of JSON: a call comes in, its outcome goes out.

    python client.py http://127.0.0.1:8000 ENGINE [express]

Times are seconds and events are ADK's JSON, as in client.mjs, the JavaScript client's twin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import agentplatform
from google.adk.events import Event
from google.adk.sessions import VertexAiSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.oauth2.credentials import Credentials

APP = "1234567890"


class Sessions(VertexAiSessionService):
    """ADK's service at another address: this method is one of two places to say so."""

    url = ""

    def _build_api_client(self):
        return agentplatform.Client(
            project=self._project,
            location=self._location,
            credentials=Credentials(token=os.environ["KEY"]),
            http_options={"base_url": self.url},
        ).aio


class ExpressSessions(VertexAiSessionService):
    """The same in express mode, where the other place is."""

    url = ""

    def _api_client_http_options_override(self):
        return {"base_url": self.url}


def told(session) -> dict[str, Any]:
    return {
        "id": session.id,
        "userId": session.user_id,
        "state": session.state,
        "lastUpdateTime": session.last_update_time,
        "events": [
            event.model_dump(mode="json", by_alias=True, exclude_none=True)
            for event in session.events
        ],
    }


async def answer(service, call: dict[str, Any]) -> Any:
    name, user, id = call["call"], call.get("userId"), call.get("sessionId")
    whose = {"app_name": APP, "user_id": user, "session_id": id}
    if name == "create":
        options = {"ttl": call["ttl"]} if "ttl" in call else {}
        made = await service.create_session(**whose, state=call.get("state"), **options)
        return told(made)
    if name == "get":
        config = GetSessionConfig(
            after_timestamp=call.get("afterTimestamp"), num_recent_events=call.get("recent")
        )
        found = await service.get_session(**whose, config=config)
        return None if found is None else told(found)
    if name == "list":
        listed = await service.list_sessions(app_name=APP, user_id=user)
        return [told(session) for session in listed.sessions]
    if name == "append":
        session = await service.get_session(**whose, config=GetSessionConfig(num_recent_events=0))
        for event in call["events"]:
            await service.append_event(session, Event.model_validate(event))
        return session.state
    if name == "delete":
        return await service.delete_session(**whose)
    raise ValueError(name)


async def main(url: str, engine: str, mode: str = "") -> None:
    Sessions.url = ExpressSessions.url = url
    service = (
        ExpressSessions(agent_engine_id=engine, express_mode_api_key=os.environ["KEY"])
        if mode == "express"
        else Sessions("my-project", "us-central1", engine)
    )
    for line in iter(sys.stdin.readline, ""):
        try:
            outcome = {"answer": await answer(service, json.loads(line))}
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
