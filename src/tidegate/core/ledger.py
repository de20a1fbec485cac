"""The ledger: who holds how many bytes of which pool, charged until they are seen to be free.

Owns the leases and the pools, and the three rules of sight by which freed bytes count as free:
1. per process: a sample taken after the claim shows the holder with no more than its other leases;
2. per card: the used sum, without what is surely ours, is not above the foreign use that was last sure;
3. own ledger: never while the process lives; what it says it freed stays its own, to be used again by itself.
The end of a process frees everything of it. To ask, to escalate and to grant is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tidegate.core.events import PoolObserved
from tidegate.core.house import RAM, Sight
from tidegate.core.lease import Lease, LeasePhase
from tidegate.core.pool import Pool
from tidegate.core.stage import Execution

ARENA = "arena"  # With own ledger: bytes that a process freed by its own word, and may use again.
RESIDUE = "residue"  # What a process keeps for good after freeing.


@dataclass(slots=True, kw_only=True)
class Ledger:
    """All leases and all pools."""

    pools: dict[str, Pool]
    holders: dict[str, list[Lease]] = field(default_factory=dict)
    next_number: int = 1

    # --- reading ---

    def leases(self) -> Iterator[Lease]:
        """Go through every lease, in a fixed order."""
        for held in self.holders.values():
            yield from held

    def of(self, holder: str) -> tuple[Lease, ...]:
        """The leases of one holder."""
        return tuple(self.holders.get(holder, ()))

    def find(self, holder: str, part: str) -> Lease | None:
        """The charged lease of a part; there is at most one that is not releasing."""
        for lease in self.holders.get(holder, ()):
            if lease.part == part and lease.phase in (LeasePhase.GRANTED, LeasePhase.HELD):
                return lease
        return None

    def is_releasing(self, holder: str) -> bool:
        """Whether the holder has bytes that were asked back and not seen yet."""
        return any(lease.phase is LeasePhase.RELEASING for lease in self.holders.get(holder, ()))

    def room(self, card: str, *, card_bytes: int, ram_bytes: int) -> bool:
        """Whether these bytes are free now, headroom respected; reservations of others are not given away."""
        ram = self.pools[RAM]
        if ram_bytes and (ram.is_stale or ram.free_bytes - ram.headroom_bytes < ram_bytes):
            return False
        if not card or not card_bytes:
            return True
        pool = self.pools[card]
        return not pool.is_stale and pool.free_bytes - pool.headroom_bytes >= card_bytes

    # --- changing ---

    def reserve(
        self,
        holder: str,
        part: str,
        *,
        incarnation: int,
        card: str,
        card_bytes: int,
        ram_bytes: int,
        at_ms: int,
        execution: Execution | None = None,
    ) -> Lease:
        """Promise bytes that need not be free yet."""
        assert card_bytes >= 0 and ram_bytes >= 0, "leases are not negative"
        lease = Lease(
            number=self.next_number,
            holder=holder,
            incarnation=incarnation,
            part=part,
            card=card if card_bytes else "",
            card_bytes=card_bytes,
            ram_bytes=ram_bytes,
            execution=execution,
            used_ms=at_ms,
        )
        self.next_number += 1
        self.holders.setdefault(holder, []).append(lease)
        self._add(lease, reserved=1)
        return lease

    def grant(self, lease: Lease, *, incarnation: int, at_ms: int) -> None:
        """Turn a promise into a charge; the caller has made sure that the bytes are free."""
        lease.to(LeasePhase.GRANTED)
        lease.granted_ms = at_ms
        lease.incarnation = incarnation
        self._add(lease, reserved=-1, charged=1)

    def hold(self, lease: Lease, *, at_ms: int) -> None:
        """Note that the bytes were said to be allocated."""
        if lease.phase is LeasePhase.GRANTED:
            lease.to(LeasePhase.HELD)
            lease.held_since_ms = at_ms
        lease.used_ms = at_ms

    def shrink(self, lease: Lease, *, ram_bytes: int) -> None:
        """Note that the holder needs less RAM for this than was foreseen."""
        assert lease.is_charged and 0 <= ram_bytes <= lease.ram_bytes, "a charged lease only shrinks"
        self._add(lease, charged=-1)
        lease.ram_bytes = ram_bytes
        self._add(lease, charged=1)

    def ask(self, lease: Lease) -> None:
        """Ask for the bytes of a lease; they stay charged."""
        lease.to(LeasePhase.RELEASING)

    def claim(self, lease: Lease, *, at_ms: int) -> None:
        """Note that the holder says it freed the bytes."""
        if lease.phase is not LeasePhase.RELEASING:
            self.ask(lease)
        lease.claimed_ms = at_ms
        if lease.card and self.pools[lease.card].sight is Sight.OWN_LEDGER:
            self._keep_as(lease, ARENA, amount_bytes=lease.card_bytes, at_ms=at_ms)
        if not lease.card_bytes and not lease.ram_bytes:
            self.end(lease)

    def end(self, lease: Lease) -> None:
        """Take the lease off the books, whatever its phase."""
        if lease.phase is LeasePhase.RESERVED:
            self._add(lease, reserved=-1)
        else:
            self._add(lease, charged=-1)
        lease.to(LeasePhase.ENDED)
        held = self.holders[lease.holder]
        held.remove(lease)
        if not held:
            del self.holders[lease.holder]

    def gone(self, holder: str) -> None:
        """The holder's process ended: all of its leases end, reservations for its next life excepted."""
        for lease in self.of(holder):
            if lease.is_charged and not lease.is_standing:
                if lease.card and self.pools[lease.card].sight is Sight.PER_CARD:
                    self.pools[lease.card].is_stale = True
                self.end(lease)
        for pool in self.pools.values():
            pool.over.pop(holder, None)
            pool.seen.pop(holder, None)

    def forget(self, holder: str) -> None:
        """A guest's lease ended: what was seen of it is foreign until a sample says otherwise."""
        for lease in self.of(holder):
            self.end(lease)
        for pool in self.pools.values():
            pool.over.pop(holder, None)
            pool.foreign_bytes += pool.seen.pop(holder, 0)

    def settle_residue(self, holder: str, *, residue_max_bytes: int, at_ms: int) -> int:
        """Count what is left of a release as residue for good, when it is little; return the bytes kept."""
        left = [
            lease
            for lease in self.of(holder)
            if lease.phase is LeasePhase.RELEASING and lease.claimed_ms >= 0
        ]
        kept_bytes = sum(lease.card_bytes for lease in left)
        if not left or kept_bytes > residue_max_bytes or any(lease.ram_bytes for lease in left):
            return 0
        for lease in left:
            self._keep_as(lease, RESIDUE, amount_bytes=lease.card_bytes, at_ms=at_ms)
            self.end(lease)
        return kept_bytes

    # --- seeing ---

    def observe(self, event: PoolObserved) -> tuple[str, ...]:
        """Take in a sample; name the holders of which something was seen to be free."""
        pool = self.pools[event.pool]
        if event.taken_ms <= pool.taken_ms:
            return ()
        pool.taken_ms = event.taken_ms
        pool.is_stale = False
        match pool.sight:
            case Sight.PER_PROCESS:
                return self._observe_processes(pool, event)
            case Sight.PER_CARD:
                return self._observe_sum(pool, event)
            case Sight.OWN_LEDGER:
                return ()

    def _observe_processes(self, pool: Pool, event: PoolObserved) -> tuple[str, ...]:
        known = {
            holding.holder: holding.amount_bytes
            for holding in event.holders
            if holding.holder in self.holders
        }
        pool.seen = known
        pool.foreign_bytes = max(0, event.used_bytes - sum(known.values()))
        freed = tuple(
            holder
            for holder in tuple(self.holders)
            if self._credit(pool, holder, seen_bytes=known.get(holder, 0), taken_ms=event.taken_ms)
        )
        pool.over = {}
        for holder, seen_bytes in known.items():
            # What was granted after the sample was taken cannot explain what the sample shows.
            known_then = [lease for lease in self.of(holder) if 0 <= lease.granted_ms < event.taken_ms]
            over = seen_bytes - sum(self._bytes(pool, lease) for lease in known_then)
            if over > 0:
                pool.over[holder] = over
        return freed

    def _observe_sum(self, pool: Pool, event: PoolObserved) -> tuple[str, ...]:
        here = [lease for lease in self.leases() if lease.card == pool.name and lease.is_charged]
        held = [
            lease for lease in here if lease.phase is LeasePhase.HELD and lease.held_since_ms < event.taken_ms
        ]
        sure = sum(lease.card_bytes for lease in held)
        # Bytes that were asked back may or may not be gone, so they count as foreign beside their own charge:
        # too much rather than too little.
        pool.foreign_bytes = max(0, event.used_bytes - sure)
        if len(held) == len(here):
            pool.foreign_quiet_bytes = pool.foreign_bytes
        freed = []
        for holder in tuple(self.holders):
            asked = [lease for lease in self.of(holder) if lease.card == pool.name]
            asked = [lease for lease in asked if self._is_claimed(lease, event.taken_ms)]
            if asked and pool.foreign_bytes <= pool.foreign_quiet_bytes:
                freed.append(holder)
                for lease in asked:
                    self._shrink(pool, lease, to_bytes=0)
        return tuple(freed)

    def _credit(self, pool: Pool, holder: str, *, seen_bytes: int, taken_ms: int) -> bool:
        """Take off the holder's claimed leases whatever the sample does not show any more."""
        claimed = [lease for lease in self.of(holder) if self._is_claimed(lease, taken_ms)]
        claimed = [lease for lease in claimed if self._bytes(pool, lease)]
        if not claimed:
            return False
        sure = sum(
            self._bytes(pool, lease)
            for lease in self.of(holder)
            if lease.phase is LeasePhase.HELD and lease.held_since_ms < taken_ms
        )
        left = max(0, seen_bytes - sure)
        for lease in claimed:
            kept = min(left, self._bytes(pool, lease))
            left -= kept
            self._shrink(pool, lease, to_bytes=kept)
        return True

    def _is_claimed(self, lease: Lease, taken_ms: int) -> bool:
        return lease.phase is LeasePhase.RELEASING and 0 <= lease.claimed_ms < taken_ms

    def _bytes(self, pool: Pool, lease: Lease) -> int:
        if pool.name == RAM:
            return lease.ram_bytes
        return lease.card_bytes if lease.card == pool.name else 0

    def _shrink(self, pool: Pool, lease: Lease, *, to_bytes: int) -> None:
        self._add(lease, charged=-1)
        if pool.name == RAM:
            lease.ram_bytes = to_bytes
        else:
            lease.card_bytes = to_bytes
        self._add(lease, charged=1)
        if not lease.card_bytes and not lease.ram_bytes:
            self.end(lease)

    def _keep_as(self, lease: Lease, part: str, *, amount_bytes: int, at_ms: int) -> None:
        """Move card bytes of a lease to another part of the same holder, which holds them on."""
        kept = self.find(lease.holder, part)
        if kept is None:
            kept = self.reserve(
                lease.holder,
                part,
                incarnation=lease.incarnation,
                card=lease.card,
                card_bytes=amount_bytes,
                ram_bytes=0,
                at_ms=at_ms,
            )
            self.grant(kept, incarnation=lease.incarnation, at_ms=at_ms)
            self.hold(kept, at_ms=at_ms)
        else:
            self.pools[kept.card].charged_bytes += amount_bytes
            kept.card_bytes += amount_bytes
        self.pools[lease.card].charged_bytes -= amount_bytes
        lease.card_bytes -= amount_bytes

    def take_from_arena(self, holder: str, amount_bytes: int) -> int:
        """With own ledger: let the holder use again what it freed itself; return how much that was."""
        arena = self.find(holder, ARENA)
        if arena is None:
            return 0
        taken = min(arena.card_bytes, amount_bytes)
        self.pools[arena.card].charged_bytes -= taken
        arena.card_bytes -= taken
        if not arena.card_bytes:
            self.end(arena)
        return taken

    def _add(self, lease: Lease, *, charged: int = 0, reserved: int = 0) -> None:
        for pool, amount_bytes in ((lease.card, lease.card_bytes), (RAM, lease.ram_bytes)):
            if pool and amount_bytes:
                self.pools[pool].charged_bytes += charged * amount_bytes
                self.pools[pool].reserved_bytes += reserved * amount_bytes
