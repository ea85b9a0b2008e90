"""Dialogues of the embedded corpus: wishes drawn, episodes played, each dialogue from its own seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from morejax.tasks.multiwoz.embedded.conversation import Conversation, Exchange
from morejax.tasks.multiwoz.embedded.entities import World, build_world
from morejax.tasks.multiwoz.embedded.episodes import Episode, close
from morejax.tasks.multiwoz.embedded.taxi import ride, taxi_wish
from morejax.tasks.multiwoz.embedded.wishes import Wish, sample_domains, sample_wish

GENERATOR_VERSION = 1
SYSTEM_TURNS = (3, 9)
GOLDEN_RATIO = 0.6180339887498949
HURRIED = {"train": 0.54, "dev": 0.17, "test": 0.17}
"""Share of hurried agents: what a policy imitates leaves more to be desired than what it is compared with."""


@dataclass(frozen=True)
class GeneratedDialogue:
    """One dialogue: its services, wishes (the goal) and exchanges."""

    identifier: str
    split: str
    wishes: tuple[Wish, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def services(self) -> tuple[str, ...]:
        """Domains of the dialogue, in order."""
        return tuple(wish.domain for wish in self.wishes)


def split_sizes(dialogues: int) -> dict[str, int]:
    """Number of dialogues per split: 80 % train, 10 % dev, 10 % test.

    Raises:
        ValueError: fewer than 10 dialogues.
    """
    if dialogues < 10:
        raise ValueError(f"dialogues is {dialogues}; expected at least 10, so that no split is empty")
    held_out = dialogues // 10
    return {"train": dialogues - 2 * held_out, "dev": held_out, "test": held_out}


def generate(dialogues: int, seed: int) -> list[GeneratedDialogue]:
    """Generate all dialogues, split by split.

    Args:
        dialogues: number of dialogues over all splits.
        seed: corpus seed; equal arguments give equal dialogues.

    Returns:
        Dialogues in the order train, dev, test.
    """
    world = build_world()
    splits = [split for split, size in split_sizes(dialogues).items() for _ in range(size)]
    return [generate_dialogue(world, index, split, seed) for index, split in enumerate(splits)]


def generate_dialogue(world: World, index: int, split: str, seed: int) -> GeneratedDialogue:
    """Generate one dialogue of 3 to 9 system turns; too short or long drafts are drawn again."""
    rng = random.Random(f"{GENERATOR_VERSION}/{seed}/{index}")
    # Multiples of the golden ratio spread the hurried agents evenly, so that their share hardly varies.
    hurried = (index * GOLDEN_RATIO) % 1 < HURRIED[split]
    while True:
        wishes, exchanges = _draft(world, rng, hurried)
        if SYSTEM_TURNS[0] <= len(exchanges) <= SYSTEM_TURNS[1]:
            return GeneratedDialogue(f"EMB{index + 1:05d}.json", split, tuple(wishes), tuple(exchanges))


def _draft(world: World, rng: random.Random, hurried: bool) -> tuple[list[Wish], list[Exchange]]:
    talk = Conversation(rng, hurried=hurried)
    domains = sample_domains(rng)
    brisk = len(domains) > 2 or rng.random() < 0.25
    wishes: list[Wish] = []
    venues: list[str] = []
    for domain in domains:
        if domain == "taxi":
            wishes.append(taxi_wish(venues, rng))
            ride(talk, wishes[-1], brisk=brisk)
            continue
        wishes.append(sample_wish(domain, world, rng))
        episode = Episode(talk, world, wishes[-1], brisk=brisk)
        episode.run()
        if episode.named and domain != "train":
            venues.append(episode.venue["name"])
    close(talk)
    return wishes, talk.exchanges
