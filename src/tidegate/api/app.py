"""The application: all routes behind one door.

Owns the assembly and the OpenAPI document. Nothing is started here: the gate is given, and the server that
listens is `tidegate.cli.serve`.

    Door → Counting → routes of `openai` and `native`
"""

from __future__ import annotations

from typing import Any, Final  # Any: an OpenAPI document is JSON of any shape

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

import tidegate
from tidegate.api import metrics, pages, refusals
from tidegate.api.door import Door, Rules
from tidegate.api.lobby import Lobby
from tidegate.api.native import enhance, gallery, guests, house, jobs, level, tag
from tidegate.api.openai import chat, completions, forms, images, models
from tidegate.runtime.settings import Settings

_ABOUT: Final = (
    "Images on one consumer GPU that never fail for lack of memory. Where keys are configured, send "
    "`Authorization: Bearer KEY`."
)


def application(lobby: Lobby) -> ASGIApp:
    """Everything, ready to be served."""
    app = routes()
    app.state.lobby = lobby
    app.state.metrics = metrics.registry_of(lobby.gate)
    door = Door(metrics.Counting(app, app.state.metrics), Rules.of(lobby.settings.listen))

    def follow(settings: Settings) -> None:
        door.rules = Rules.of(settings.listen)

    lobby.on_settings = follow
    return door


def routes() -> FastAPI:
    """The routes without the door, and with nothing behind them yet: enough for the OpenAPI document."""
    app = FastAPI(
        title="tidegate",
        version=tidegate.__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation,
        redirect_slashes=False,
    )
    openai = (models, chat, completions, images)
    for part in (*openai, jobs, gallery, enhance, tag, house, level, guests, metrics, pages):
        app.include_router(part.router)
    refusals.install(app)
    document = openapi_of(app)
    app.openapi = lambda: document  # type: ignore[method-assign]  # the way that FastAPI documents
    return app


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with what FastAPI cannot know put right."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    document["components"]["schemas"]["EditForm"] = forms.edit_form()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path.startswith("/v1/"):
                # This dialect has no 422: its envelope says 400.
                operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def _operation(route: APIRoute) -> str:
    return f"{'openai_' if route.path.startswith('/v1/') else ''}{route.name}"
