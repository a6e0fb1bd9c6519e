"""A session in a local SQLite file, under both spellings of its URL: they mean the same file.

In ADK's guide the import reads `from google.adk.sessions import DatabaseSessionService`.
"""

import asyncio

from threadline import DatabaseSessionService, Event


async def main() -> None:
    # The older guide's spelling.
    db_url = "sqlite:///./my_agent_data.db"
    session_service = DatabaseSessionService(db_url=db_url)
    session = await session_service.create_session(app_name="my_app", user_id="example_user")
    event = Event(
        author="user",
        content="Remember that I like window seats.",
        actions={"state_delta": {"seat": "window"}},
    )
    await session_service.append_event(session, event)
    await session_service.close()

    # The newer guide's spelling, which names an async driver.
    db_url = "sqlite+aiosqlite:///./my_agent_data.db"
    session_service = DatabaseSessionService(db_url=db_url)
    found = await session_service.get_session(
        app_name="my_app", user_id="example_user", session_id=session.id
    )
    await session_service.close()

    assert found is not None
    print(f"Found again:  {found.id == session.id}")
    print(f"The user:     {found.events[0].content.text}")
    print(f"The state:    {found.state}")


asyncio.run(main())
