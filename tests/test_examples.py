"""ADK's guide runs after changing only the import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

PROPERTIES = r"""--- Examining Session Properties ---
ID \(`id`\):                [0-9a-f-]{36}
Application Name \(`app_name`\): my_app
User ID \(`user_id`\):         example_user
State \(`state`\):           \{'initial_key': 'initial_value'\}
Events \(`events`\):         \[\]
Last Update \(`last_update_time`\): \d{10}\.\d\d
---------------------------------
The final status of temp_service -  None
"""
DATABASE = """Found again:  True
The user:     Remember that I like window seats.
The state:    {'seat': 'window'}
"""


def run_example(name: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=directory,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["session_properties.py", "session_properties_sync.py"])
def test_the_session_properties_example_prints_what_the_guide_says(
    name: str, tmp_path: Path
) -> None:
    assert re.fullmatch(PROPERTIES, run_example(name, tmp_path))


def test_both_spellings_of_the_url_are_one_file(tmp_path: Path) -> None:
    assert run_example("database_session.py", tmp_path) == DATABASE
    assert [path.name for path in tmp_path.iterdir()] == ["my_agent_data.db"]


def test_the_two_versions_differ_in_the_import_and_in_waiting() -> None:
    def body(name: str) -> list[str]:
        _, _, code = (EXAMPLES / name).read_text(encoding="utf-8").partition('"""\n\n')
        lines = (line.strip().replace("await ", "") for line in code.splitlines())
        skipped = ("import", "from", "async def", "asyncio.run")
        return [line for line in lines if line and not line.startswith(skipped)]

    assert body("session_properties.py") == body("session_properties_sync.py")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_run_by_a_test(path: Path) -> None:
    assert f'"{path.name}"' in Path(__file__).read_text(encoding="utf-8")
