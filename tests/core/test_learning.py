"""What stages are expected to cost: a prior, at the rate that was measured, or what was measured itself."""

from __future__ import annotations

from dataclasses import replace

from tidegate.core.arbiter import Arbiter
from tidegate.core.catalog import Catalog, FootprintKey, SizeKey
from tidegate.core.house import CardDescriptor, House, ImageModel
from tidegate.core.planner.option import Footprint
from tidegate.core.planner.prices import Work
from tidegate.core.policy import Policy
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import Execution, Placement, Stage

CARD = Execution(Placement.CARD)
CPU = Execution(Placement.CPU)
FOOTPRINT = Footprint(2 * GIB, 2 * GIB, 1640 * MIB)


def work(side: int, steps: int = 20) -> Work:
    return Work(latent_height=side, latent_width=side, steps_count=steps)


def knowing(catalog: Catalog, *sizes: SizeKey) -> Catalog:
    """The catalog with footprints of these."""
    for size in sizes:
        key = FootprintKey(size.model, size.stage, size.latent_height, size.latent_width, (CARD, CPU))
        catalog.learn_footprints(key, (FOOTPRINT, FOOTPRINT))
    return catalog


def costs(catalog: Catalog, size: SizeKey, *, steps: int = 20) -> tuple[int, int]:
    """Expected milliseconds on the card and on the CPU."""
    options = catalog.options_of(size, work(size.latent_height, steps))
    assert options is not None
    return options[0].run_ms, options[1].run_ms


SMALL = SizeKey("a", Stage.DENOISE, 32, 32)
LARGE = SizeKey("a", Stage.DENOISE, 64, 64)
OTHER = SizeKey("b", Stage.DENOISE, 64, 64)


def test_a_measured_time_counts_by_the_step() -> None:
    catalog = knowing(Catalog(), SMALL)
    catalog.learn_stage_ms(SMALL, CARD, work=work(32, 2), load_ms=0, run_ms=900)
    assert costs(catalog, SMALL, steps=2)[0] == 900
    assert costs(catalog, SMALL, steps=20)[0] == 9_000


def test_what_was_measured_at_one_size_sets_the_rate_of_the_others() -> None:
    catalog = knowing(Catalog(), SMALL, LARGE, OTHER)
    prior_small, prior_large = costs(catalog, SMALL)[0], costs(catalog, LARGE)[0]
    cpu_before = costs(catalog, LARGE)[1]
    catalog.learn_stage_ms(SMALL, CARD, work=work(32), load_ms=0, run_ms=prior_small * 3)
    assert abs(costs(catalog, LARGE)[0] - prior_large * 3) <= prior_large // 50
    assert costs(catalog, OTHER) == costs(catalog, LARGE), (
        "a model that never ran is taken for like the others"
    )
    assert costs(catalog, LARGE)[1] == cpu_before, "the CPU has a rate of its own"
    catalog.learn_stage_ms(OTHER, CARD, work=work(64), load_ms=0, run_ms=prior_large * 9)
    assert abs(costs(catalog, LARGE)[0] - prior_large * 3) <= prior_large // 50, "each model has its own rate"


def test_a_virtual_card_is_as_slow_as_the_cpu_and_a_tiny_decoder_is_quick() -> None:
    size = SizeKey("a", Stage.DECODE, 64, 64)
    fast, slow = knowing(Catalog(), size), knowing(Catalog(is_card_slow=True), size)
    assert costs(slow, size)[0] == costs(slow, size)[1] == costs(fast, size)[1]
    # Decoding 512 x 512 pixels was seen to take 70 s on two cores.
    assert 35_000 < costs(fast, size)[1] < 140_000
    tiny = replace(FOOTPRINT, weights_bytes=2 * MIB)
    key = FootprintKey("a", Stage.DECODE, 64, 64, (CARD, CPU))
    slow.learn_footprints(key, (tiny, tiny))
    assert costs(slow, size)[0] * 10 < costs(fast, size)[1]


def test_a_new_core_on_the_same_card_knows_what_the_old_one_measured() -> None:
    ram = CardDescriptor(name="ram", total_bytes=8 * GIB)
    card = CardDescriptor(name="gpu0", total_bytes=8 * GIB)
    house = House(ram=ram, cards=(card,), image_models=(ImageModel(name="a"),))
    old = Arbiter(house)
    knowing(old.state.catalog, SMALL)
    old.state.catalog.learn_stage_ms(SMALL, CARD, work=work(32), load_ms=77, run_ms=5_000)
    again = Arbiter.restored(old.snapshot())
    assert again.state.catalog == old.state.catalog, "a snapshot keeps it"
    new = Arbiter(replace(house, image_models=()), Policy(jobs_max=3))
    new.inherit(old)
    assert not new.state.catalog.options, "what models need is asked for again"
    assert costs(knowing(new.state.catalog, SMALL), SMALL)[0] == 5_000
    elsewhere = Arbiter(replace(house, cards=(replace(card, total_bytes=GIB),)))
    elsewhere.inherit(old)
    assert not elsewhere.state.catalog.rates, "another card is another machine"
