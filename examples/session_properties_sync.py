"""Examining session properties: the blocking example of ADK's older guide, with another import.

In the guide the import reads `from google.adk.sessions import InMemorySessionService, Session`.
"""

from threadline.sync import InMemorySessionService, Session

# Create a simple session to examine its properties
temp_service = InMemorySessionService()
example_session: Session = temp_service.create_session(
    app_name="my_app",
    user_id="example_user",
    state={"initial_key": "initial_value"},  # State can be initialized
)

print("--- Examining Session Properties ---")
print(f"ID (`id`):                {example_session.id}")
print(f"Application Name (`app_name`): {example_session.app_name}")
print(f"User ID (`user_id`):         {example_session.user_id}")
# Note: Only shows initial state here
print(f"State (`state`):           {example_session.state}")
print(f"Events (`events`):         {example_session.events}")  # Initially empty
print(f"Last Update (`last_update_time`): {example_session.last_update_time:.2f}")
print("---------------------------------")

# Clean up (optional for this example)
temp_service = temp_service.delete_session(
    app_name=example_session.app_name,
    user_id=example_session.user_id,
    session_id=example_session.id,
)
print("The final status of temp_service - ", temp_service)
