"""The gate: everything that the outside may ask of a running server, and nothing else.

Owns the Gate protocol. The API, the CLI and tests use it; `tidegate.runtime.server` implements it. All
methods belong to the server's event loop. Refusals are the faults of `tidegate.core.faults`: an unknown name
is a ClientError with code `unknown_model`, `unknown_job`, `unknown_image`, `unknown_lease` or `unknown_ask`,
a full queue a CapacityError with code `busy` and `retry_after_ms`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from tidegate.runtime.asks import (
    AskHandle,
    AskOrder,
    DetokenWish,
    IntentKind,
    LevelWish,
    TokenView,
    TokenWish,
)
from tidegate.runtime.views import (
    EventItem,
    FeedItem,
    HealthView,
    ImageView,
    JobHandle,
    JobOrder,
    JobView,
    LeaseRequest,
    LeaseView,
    MetricsView,
    ModelView,
    PlanView,
    ReloadView,
    ResidencyView,
    VramView,
)
from tidegate.wire import asks


class Gate(Protocol):
    """The server as its clients see it."""

    # --- jobs

    async def submit(self, order: JobOrder) -> JobHandle:
        """Accept an order; when this returns, a crash does not lose it."""

    def job(self, job: str) -> JobView:
        """A job as it stands."""

    def jobs(self, *, count_max: int = 100) -> tuple[JobView, ...]:
        """The jobs known, the youngest first."""

    async def cancel(self, job: str) -> JobView:
        """Nobody wants it any more; what has ended stays ended."""

    async def ended(self, job: str) -> JobView:
        """Wait until the job has ended."""

    def result(self, job: str) -> tuple[str, ...]:
        """Ids of the images of a job that are done, in the order of their index."""

    def story(self, job: str) -> tuple[str, ...]:
        """What happened to a job, line by line."""

    def feed(self, job: str) -> AsyncIterator[FeedItem]:
        """Progress, previews and notices of a job from now on; ends after the item `end`."""

    async def plan(self, order: JobOrder) -> PlanView:
        """What would be done with an order now, without doing it."""

    # --- asks

    async def ask(self, order: AskOrder) -> AskHandle:
        """Take an ask in. When this returns its prompt was understood and counted, and it waits for its turn;
        a ClientError says what is wrong with it (`context_length_exceeded`, `bad_grammar`, `no_vision` ...).
        """

    def hear(self, ask: str) -> AsyncIterator[asks.Item]:
        """What comes of an ask, for the one who listens; the last item is Ended. Closing it before that
        cancels the ask.
        """

    async def cancel_ask(self, ask: str) -> None:
        """Nobody wants it any more; one that has ended, or was never known, is left as it is."""

    async def tokenize(self, wish: TokenWish) -> TokenView:
        """Take a text apart, whatever level the model has."""

    async def detokenize(self, wish: DetokenWish) -> str:
        """Put tokens together."""

    async def set_level(self, model: str, wish: LevelWish) -> ModelView:
        """Bring a language model to a level and keep it there, or give it back to the planner."""

    async def intent(self, kind: IntentKind, model: str = "") -> None:
        """Somebody will probably ask this language model something soon."""

    # --- images

    async def images(self, *, count_max: int = 100, before: str = "") -> tuple[ImageView, ...]:
        """Finished images, the youngest first, older than the image `before`."""

    async def image(self, image: str) -> ImageView:
        """The metadata of one image."""

    async def image_png(self, image: str) -> bytes:
        """The PNG file of one image."""

    async def delete_image(self, image: str) -> None:
        """Remove an image from gallery and disk."""

    # --- memory and models

    def vram(self) -> VramView:
        """Who holds what."""

    def models(self) -> tuple[ModelView, ...]:
        """The registry; refused files are listed with the reason."""

    async def load(self, model: str) -> ModelView:
        """Bring a model's files into the page cache and foresee its needs, so that its next image starts at
        once.
        """

    async def unload(self, model: str) -> ModelView:
        """Give back what a model holds and nobody is using."""

    def residency(self) -> ResidencyView:
        """What is warm here."""

    # --- guests

    async def negotiate(self, wish: LeaseRequest) -> LeaseView:
        """Ask for card memory; answers as soon as the core did."""

    async def lease(self, lease: str, *, wait_ms: int = 0) -> LeaseView:
        """A lease as it stands; with `wait_ms` as soon as it stands otherwise."""

    async def renew(self, lease: str, *, hold_ms: int) -> LeaseView:
        """Keep a lease for longer."""

    async def release(self, lease: str) -> None:
        """Give a lease back."""

    # --- the server

    def events(self, *, after: int = -1) -> AsyncIterator[EventItem]:
        """Events from now on (-1), or replayed from the one after this id; the replay is bounded."""

    def health(self) -> HealthView:
        """The server's own state."""

    def metrics(self) -> MetricsView:
        """Counters and gauges."""

    async def reload(self) -> ReloadView:
        """Read the registry again without losing jobs."""
