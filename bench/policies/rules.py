"""Rules: whom a rival sends away before it loads or uses a model.

Owns the four rules; what becomes of their answers is `rivals.py`.
"""

from __future__ import annotations

from policies.rivals import Rival, Tenant


class UnloadFirst:
    """Language models are ended before every image."""

    ends_processes = False

    def to_go(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """For an image model all others; for a language model whoever computes or does not fit beside it."""
        others = rival.present(wanted)
        if wanted.is_image:
            return others
        fits = rival.fits(wanted, beside=others)
        return [other for other in others if other.serving and other.is_image] if fits else others

    def before_image(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """All language models."""
        return [other for other in rival.present(wanted) if not other.is_image]


class Exclusive:
    """Whoever is served has the card alone."""

    ends_processes = True

    def to_go(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """All others."""
        return rival.present(wanted)

    def before_image(self, rival: Rival, wanted: Tenant) -> list[Tenant]:  # noqa: ARG002 - the other rules ask for it
        """Nobody else is there."""
        return []


class LeastRecent:
    """At most so many models are loaded; nobody counts bytes."""

    ends_processes = False
    loaded_max = 2

    def to_go(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """The least recently used one, when there are as many as may be."""
        others = rival.present(wanted)
        return others[: max(0, len(others) + 1 - self.loaded_max)]

    def before_image(self, rival: Rival, wanted: Tenant) -> list[Tenant]:  # noqa: ARG002 - the other rules ask for it
        """Nobody: it is loaded."""
        return []


class Greedy:
    """Bytes are counted, and the largest goes first."""

    ends_processes = False

    def to_go(self, rival: Rival, wanted: Tenant) -> list[Tenant]:
        """The largest, until there is room."""
        stay = sorted(rival.present(wanted), key=lambda other: (other.size_bytes, other.name))
        gone: list[Tenant] = []
        while stay and not rival.fits(wanted, beside=stay):
            gone.append(stay.pop())
        return gone

    def before_image(self, rival: Rival, wanted: Tenant) -> list[Tenant]:  # noqa: ARG002 - the other rules ask for it
        """Nobody: it was counted when it was loaded."""
        return []
