"""The journal: read back as it was written, a replay is the same core, damage and a full disk are told."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tidegate.core import events as ev
from tidegate.core.arbiter import Arbiter
from tidegate.core.effects import Predict, StartWorker
from tidegate.core.house import RAM, CardDescriptor, House, ImageModel
from tidegate.core.image.job import JobPhase
from tidegate.core.planner.option import Footprint
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Component, Execution, Placement, Stage, relay
from tidegate.runtime.journal import codec, schema
from tidegate.runtime.journal import records as rec
from tidegate.runtime.journal.journal import FILE, Journal
from tidegate.runtime.journal.records import Checkpoint, Ticket
from tidegate.runtime.replay import replayed
from tidegate.wire.messages import ImageRequest

HOUSE = House(
    ram=CardDescriptor(name=RAM, total_bytes=16 * GIB),
    cards=(CardDescriptor(name="VCARD0", total_bytes=3 * GIB),),
    image_models=(ImageModel(name="tiny", weights_bytes=dict.fromkeys(Component, 100 * MIB)),),
)
DAMAGES_COUNT = 200
TICKET = Ticket(request=ImageRequest(prompt="a boat"), model="tiny")


def first_events() -> list[ev.Event]:
    """A job comes in, and the memory is looked at."""
    submitted = ev.JobSubmitted(
        at_ms=10, job="j-0", model="tiny", latent_height=8, latent_width=8, steps_count=2,
        stages=relay(from_image=False),
    )  # fmt: skip
    return [
        ev.PoolObserved(at_ms=1, pool=RAM, taken_ms=1, used_bytes=GIB),
        ev.PoolObserved(at_ms=2, pool="VCARD0", taken_ms=2, used_bytes=0),
        submitted,
    ]


def play(arbiter: Arbiter, event: ev.Event, at_ms: int) -> list[ev.Event]:
    """Handle an event and answer its effects as a house without trouble does."""
    answers: list[ev.Event] = []
    for effect in arbiter.handle(event):
        match effect:
            case StartWorker():
                answers.append(
                    ev.WorkerReady(at_ms=at_ms, worker=effect.worker, incarnation=effect.incarnation)
                )
            case Predict():
                footprints = tuple(Footprint(100 * MIB, 0, 90 * MIB) for _ in effect.key.executions)
                answers.append(
                    ev.FootprintPredicted(
                        at_ms=at_ms,
                        worker=effect.worker,
                        incarnation=effect.incarnation,
                        key=effect.key,
                        footprints=footprints,
                    )
                )
            case _:
                pass
    return answers


def history() -> list[ev.Event]:
    """Everything that happens until the first stage runs."""
    arbiter, waiting, told = Arbiter(HOUSE), first_events(), []
    while waiting:
        told.append(waiting.pop(0))
        waiting += play(arbiter, told[-1], 20 + len(told))
    assert arbiter.state.jobs["j-0"].phase is JobPhase.ENCODE
    return told


@contextmanager
def writing(folder: Path, problems: list[str]) -> Iterator[Journal]:
    journal = Journal(folder, on_problem=problems.append)
    found = journal.open()
    journal.begin(Arbiter(HOUSE), is_fresh=not found.last_number)
    try:
        yield journal
    finally:
        journal.close()


def read_back(folder: Path) -> codec.Arbiter:
    journal = Journal(folder, on_problem=print)
    found = journal.open()
    arbiter = codec.arbiter_of(found.snapshot)
    for event in found.events:
        arbiter.handle(event)
    journal.close()
    return arbiter


def test_a_replay_of_the_journal_is_the_same_core(tmp_path: Path) -> None:
    live = Arbiter(HOUSE)
    problems: list[str] = []
    with writing(tmp_path, problems) as journal:
        for event in history():
            live.handle(event)
            journal.append(event)
    assert read_back(tmp_path).snapshot() == live.snapshot()
    assert not problems


def test_a_replay_gives_the_same_effects() -> None:
    first, second = Arbiter(HOUSE), Arbiter(HOUSE)
    for event in history():
        again = codec.event_of(type(event).__name__, codec.event_bytes(event))
        assert again == event
        assert second.handle(again) == first.handle(event)


def test_a_restart_without_a_goodbye_goes_on_from_snapshot_and_events(tmp_path: Path) -> None:
    async def scene() -> Arbiter:
        live = Arbiter(HOUSE)
        journal = Journal(tmp_path, on_problem=print)
        journal.open()
        journal.begin(Arbiter(HOUSE), is_fresh=True)
        for event in history():
            live.handle(event)
            await journal.commit(event)
        # What a killed server leaves: no last snapshot.
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in tmp_path.glob(f"{FILE}*"):
            (copy / path.name).write_bytes(path.read_bytes())
        journal.close()
        return live

    live = asyncio.run(scene())
    assert read_back(tmp_path / "copy").snapshot() == live.snapshot()


def test_jobs_checkpoints_and_ends_are_read_back(tmp_path: Path) -> None:
    kept = Checkpoint(stage=Stage.ENCODE, sha256="ab", engine_build="b", execution=Execution(Placement.CARD))
    with writing(tmp_path, []) as journal:
        journal.append(None, rec.job_accepted("j", TICKET, key="k", at_ms=5, images=("j-0", "j-1")))
        journal.append(None, [rec.stage_kept("j-0", kept)])
        journal.append(None, [rec.image_ended("j-1", outcome="failed", code="worker", message="No.")])
    journal = Journal(tmp_path, on_problem=print)
    job = journal.open().jobs["j"]
    journal.close()
    assert (job.key, job.ticket, [image.name for image in job.images]) == ("k", TICKET, ["j-0", "j-1"])
    assert job.images[0].checkpoints == {Stage.ENCODE: kept}
    assert (job.images[1].outcome, job.images[1].message) == ("failed", "No.")


@pytest.mark.parametrize("damage", ["garbage", "cut"])
def test_a_damaged_journal_is_put_aside_and_told(tmp_path: Path, damage: str) -> None:
    with writing(tmp_path, []) as journal:
        journal.append(None, rec.job_accepted("j", TICKET, key="", at_ms=5, images=("j-0",)))
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"no database" * 500 if damage == "garbage" else data[: len(data) // 2])
    journal = Journal(tmp_path, on_problem=print)
    found = journal.open()
    journal.close()
    assert not found.jobs
    assert "was damaged" in found.problems[0]
    assert list(tmp_path.glob(f"{FILE}.damaged-*"))


def test_a_damaged_row_costs_itself_and_no_other(tmp_path: Path) -> None:
    kept = Checkpoint(stage=Stage.ENCODE, sha256="ab", engine_build="b", execution=Execution(Placement.CARD))
    with writing(tmp_path, []) as journal:
        for job in ("good", "bad"):
            journal.append(None, rec.job_accepted(job, TICKET, key="", at_ms=5, images=(f"{job}-0",)))
        journal.append(None, [rec.stage_kept("good-0", kept)])
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("UPDATE jobs SET ticket = x'0102' WHERE id = 'bad'")
    connection.execute("UPDATE snapshots SET data = substr(data, 1, 20) || x'00' || substr(data, 22)")
    connection.commit()
    connection.close()
    journal = Journal(tmp_path, on_problem=print)
    found = journal.open()
    journal.close()
    assert set(found.jobs) == {"good"}
    assert found.jobs["good"].images[0].checkpoints == {Stage.ENCODE: kept}
    assert "1 rows of the journal are damaged" in found.problems[0]
    with pytest.raises(codec.Misread, match="checksum"):
        codec.arbiter_of(found.snapshot)


def overwritten(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 40)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def test_whatever_bytes_are_damaged_the_journal_is_read_or_put_aside(tmp_path: Path) -> None:
    """Seed 5 is a damaged name in the schema: SQLite quotes it, and Python cannot decode the message."""
    with writing(tmp_path, []) as journal:
        for event in history():
            journal.append(event)
        for number in range(40):
            images = (f"j{number}-0",)
            journal.append(None, rec.job_accepted(f"j{number}", TICKET, key="k", at_ms=5, images=images))
    whole = (tmp_path / FILE).read_bytes()
    told_count = 0
    for seed in range(DAMAGES_COUNT):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / FILE).write_bytes(chance.choice((overwritten, cut))(whole, chance))
        journal = Journal(folder, on_problem=print)
        try:
            told_count += bool(journal.open().problems)
        except schema.TooNew:
            told_count += 1  # the number of the version was hit; that is a refusal with a reason
        finally:
            journal.close()
    print(f"{told_count} of {DAMAGES_COUNT} damages were noticed; the others hit nothing that is used")
    assert told_count > DAMAGES_COUNT // 2


def test_a_full_disk_is_told_and_healed(tmp_path: Path) -> None:
    """The limit on a file's size is a disk that is full; SQLite sees the same error."""
    problems: list[str] = []

    async def scene() -> None:
        with writing(tmp_path, problems) as journal:
            await journal.commit(None, rec.job_accepted("a", TICKET, key="", at_ms=1, images=("a-0",)))
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
            try:
                large = Ticket(request=ImageRequest(prompt="x" * 200_000), model="tiny")
                await journal.commit(None, rec.job_accepted("b", large, key="", at_ms=2, images=("b-0",)))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert "cannot be written" in problems[0]
            await journal.commit(None, ())
            assert problems[-1] == ""

    asyncio.run(scene())
    journal = Journal(tmp_path, on_problem=print)
    assert set(journal.open().jobs) == {"a", "b"}
    journal.close()


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    schema.opened(tmp_path / FILE).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(schema.TooNew, match="newer tidegate"):
        Journal(tmp_path, on_problem=print).open()


def test_no_more_events_are_kept_than_wished_and_a_core_can_be_replayed_from_the_oldest(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, on_problem=print, events_count_max=1_000)
    found = journal.open()
    journal.begin(Arbiter(HOUSE), is_fresh=True)
    for at_ms in range(1, 3_001):
        journal.append(ev.Told(at_ms=at_ms, sequence=at_ms))
    journal.close()
    assert not found.last_number
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
        (first,) = connection.execute("SELECT min(number) FROM snapshots").fetchone()
        (oldest,) = connection.execute("SELECT min(number) FROM events").fetchone()
    assert 0 < events <= 1_000
    assert oldest == first + 1
    assert read_back(tmp_path).state.told_sequence == 3_000


def test_a_replay_goes_on_from_the_new_core_after_a_reload(tmp_path: Path) -> None:
    """A reloaded house is another core: it begins with its snapshot, and not where the old one was."""
    wider = Arbiter(dataclasses.replace(HOUSE, image_models=()))
    journal = Journal(tmp_path, on_problem=print)
    journal.open()
    journal.begin(Arbiter(HOUSE), is_fresh=True)
    asyncio.run(journal.commit(None))
    for at_ms in range(1, 4):
        journal.append(ev.Told(at_ms=at_ms, sequence=at_ms))
    asyncio.run(journal.commit(None))
    journal.rebase(wider)
    asyncio.run(journal.commit(None))
    journal.append(ev.Told(at_ms=9, sequence=9))
    journal.close()
    steps = list(replayed(tmp_path))
    assert [step.at_ms for step in steps] == [1, 2, 3, 9]
    assert [step.agrees for step in steps] == [None, None, None, True]
    assert read_back(tmp_path).state.house == wider.state.house
