"""A session service behind HTTP; `app.create_app` makes it."""

from threadline.errors import MissingExtraError

try:
    import starlette as _  # noqa: F401 - every module here needs it
except ModuleNotFoundError as error:
    raise MissingExtraError("A server needs its extra: pip install 'threadline[server]'") from error
