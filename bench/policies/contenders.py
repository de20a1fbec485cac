"""Contenders: the policies that are compared, each made for an instance.

Owns their names and how the arbiter is set up for a house. The rivals themselves are in `rivals.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.costs import Costs
from policies.instances import Instance
from policies.rivals import Rival, Rule
from policies.rules import Exclusive, Greedy, LeastRecent, UnloadFirst
from policies.world import CARD, PROCESS_BYTES
from policies.world import Policy as Contender

from tidegate.core.arbiter import Arbiter
from tidegate.core.catalog import FootprintKey
from tidegate.core.house import CardDescriptor, House, ImageModel, LanguageModel
from tidegate.core.planner.candidates import StageFacts, candidates_for
from tidegate.core.policy import Policy
from tidegate.core.quantity import GIB, MIB
from tidegate.core.stage import COMPONENT_OF, relay

Maker = Callable[[Instance, Costs], Contender]


def house_of(instance: Instance, costs: Costs) -> House:
    """The instance's house as the arbiter is told of it."""
    machine = costs.machine
    card = CardDescriptor(
        name=CARD,
        total_bytes=instance.card_gib * GIB,
        context_bytes=costs.context_bytes,
        headroom_bytes=int(machine["headroom_mib"]) * MIB,
        link_mib_per_s=int(machine["link_mib_per_ms"] * 1_000),
    )
    ram = CardDescriptor(name="ram", total_bytes=int(machine["ram_mib"]) * MIB, headroom_bytes=512 * MIB)
    return House(
        ram=ram,
        cards=(card,),
        image_models=tuple(
            ImageModel(name=name, weights_bytes=costs.images[name].weights_bytes) for name in instance.images
        ),
        language_models=tuple(LanguageModel(name=name, card=CARD, slots_count=4) for name in instance.llms),
    )


def arbiter(instance: Instance, costs: Costs, *, policy: Policy) -> Arbiter:
    """An arbiter whose predictions are all there, as they are from its second start on."""
    house = house_of(instance, costs)
    made = Arbiter(house, policy)
    for image in house.image_models:
        known = costs.images[image.name]
        for stage in relay(from_image=False):
            facts = StageFacts(
                latent_height=known.latent,
                latent_width=known.latent,
                weights_bytes=image.weights_bytes[COMPONENT_OF[stage]],
                room_bytes=house.cards[0].total_bytes,
            )
            executions = candidates_for(stage, facts)
            key = FootprintKey(image.name, stage, known.latent, known.latent, executions)
            footprints = [costs.footprint(image.name, stage, execution) for execution in executions]
            made.state.catalog.learn_footprints(key, footprints)
    for name in instance.llms:
        made.state.catalog.llms[name] = costs.llms[name].footprint
    return made


def _tidegate(policy: Policy) -> Maker:
    return lambda instance, costs: arbiter(instance, costs, policy=policy)


def _rival(rule: type[Rule]) -> Maker:
    return lambda instance, costs: Rival(instance, costs, rule=rule())


CONTENDERS: dict[str, Maker] = {
    "tidegate": _tidegate(Policy()),
    "tidegate, no look-ahead": _tidegate(Policy(look_ahead_ms=-1)),
    "tidegate, no pre-warm": _tidegate(Policy(prewarm_ms=-1)),
    "unload the LLM first": _rival(UnloadFirst),
    "exclusive swap": _rival(Exclusive),
    "LRU by count": _rival(LeastRecent),
    "greedy largest-first": _rival(Greedy),
}
assert Policy().process_ram_bytes == PROCESS_BYTES, "processes are as large as the arbiter believes"
