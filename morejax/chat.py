"""Talk to a trained dialogue policy in the terminal: ``python -m morejax.chat RUN_DIR``.

The model answers in delexicalised text; placeholders are filled with values from the database before they are shown.
On an end-to-end run the model writes the dialogue state itself. On a policy-track run it is given one, which the
rule-based tracker of `morejax.tasks.multiwoz.tracker` reads from your words; ``/state`` shows it, ``/set`` corrects
it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before transformers is imported: no hub is asked here

from flax import nnx

from morejax.export import load_run
from morejax.models.hf import structure_of
from morejax.models.lora import merge_adapters
from morejax.models.split import Params
from morejax.prefix_cache import PrefixCache
from morejax.rollout import SamplerConfig
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.annotations import read_schema
from morejax.tasks.multiwoz.context import MAX_ACTS, ContextConfig, Earlier, Ids, PromptTooLong
from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.dialogue_layout import serialiser_of
from morejax.tasks.multiwoz.embedded import embedded_root
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.layout import find_layout
from morejax.tasks.multiwoz.lexicalise import lexicalise
from morejax.tasks.multiwoz.normalise import normalise_slot, normalise_value
from morejax.tasks.multiwoz.records import State
from morejax.tasks.multiwoz.scorer import estimate_domains
from morejax.tasks.multiwoz.tracker import Ontology, build_ontology, mentioned_domain, merge, track

SYSTEMS = ("supervised", "scaffold", "ppo")
_PADDING = 64  # positions of the cache that blocks of new tokens may leave empty
HELP = """/state                    what the system believes you want
/set DOMAIN SLOT VALUE    correct it, e.g. /set restaurant food italian; without VALUE the slot is removed
/reset                    start a new conversation
/quit                     leave (so does Ctrl-D)"""

_DESCRIPTION = """\
Talk to a trained dialogue policy. With standard input redirected, every line is answered by one line.
"""
_EXAMPLES = """\
examples:
  python -m morejax.chat runs/multiwoz/demo-policy-more-0
  echo 'a cheap hotel in the north please' | python -m morejax.chat runs/mwz --system supervised
"""

Answer = Callable[[Ids], Ids]
"""Prompt in, reply out."""


class ChatError(ValueError):
    """A folder that cannot be talked to, or a command that cannot be followed; the message says why."""


class Reply(NamedTuple):
    """What the system says: with values, as the model wrote it, and the acts written before it, if any."""

    text: str
    delex: str
    acts: str


@dataclass(frozen=True)
class Talker:
    """A trained model with all that it needs to answer.

    Attributes:
        serialiser: prompts of the run's track.
        database, ontology: of the run's corpus.
        answer: writes a reply, or (`reasoned`) acts and a reply.
        write_state: writes a state (end-to-end track); None on the policy track.
        reasoned: whether the model writes acts before it answers.
    """

    serialiser: Serialiser
    database: Database
    ontology: Ontology
    answer: Answer
    write_state: Answer | None = None
    reasoned: bool = False

    def reply(
        self, earlier: Sequence[tuple[str, str]], states: Sequence[State], user: str, state: State, before: State
    ) -> tuple[str, str]:
        """The delexicalised reply and the acts written before it (empty for a model that answers directly).

        Args:
            earlier: turns so far as (user utterance, delexicalised reply).
            states: of those turns.
            user: what is to be answered.
            state: after that utterance.
            before: state before it; end-to-end models read both.
        """
        prompt = self.serialiser.prompt(
            self._earlier(earlier, states),
            user,
            state,
            self.serialiser.db_ids(state, self.database),
            previous_state=before,
            given=self._given(earlier, states),
            where="conversation",
        )
        tokenizer = self.serialiser.tokenizer
        if not self.reasoned:
            return vocabulary.decode(tokenizer, self.answer(prompt)), ""
        written = self.answer((*prompt[:-1], self.serialiser.token(vocabulary.ACTS)))
        acts, reply = self.serialiser.split_reasoned(written)
        return vocabulary.decode(tokenizer, reply), " ".join(tokenizer.convert_ids_to_tokens(list(acts)))

    def state_after(
        self, earlier: Sequence[tuple[str, str]], states: Sequence[State], user: str, before: State
    ) -> State:
        """The state that an end-to-end model writes."""
        assert self.write_state is not None
        prompt = self.serialiser.prompt(
            self._earlier(earlier, states),
            user,
            None,
            previous_state=before,
            given=self._given(earlier, states),
            where="conversation",
        )
        # What the user has told with `/set` counts as said.
        told = [slots["name"] for slots in before.values() if "name" in slots]
        utterances = [*(said for said, _ in earlier), *told, user]
        return self.serialiser.state_after(self.write_state(prompt), before, utterances)

    def _earlier(self, earlier: Sequence[tuple[str, str]], states: Sequence[State]) -> list[Earlier]:
        told = [(user, reply, state) for (user, reply), state in zip(earlier, states, strict=True)]
        return self.serialiser.earlier(told, self.database)

    def _given(self, earlier: Sequence[tuple[str, str]], states: Sequence[State]) -> Ids:
        return self.serialiser.given_ids([reply for _, reply in earlier], states)


@dataclass
class Conversation:
    """One conversation: what was said, the state, what it is about.

    Attributes:
        talker: the model.
        turns: (user utterance, delexicalised reply), oldest first.
        states: after every user utterance.
        state: as it stands; `/set` changes it.
        domain: what was spoken of last.
        offered: domain -> venue that the system named last.
    """

    talker: Talker
    turns: list[tuple[str, str]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    state: State = field(default_factory=dict)
    domain: str | None = None
    offered: dict[str, str] = field(default_factory=dict)

    def say(self, user: str) -> Reply:
        """Answer an utterance.

        Raises:
            PromptTooLong: the state no longer fits into the model's context; the conversation is as before.
        """
        state, domain = self._listen(user)
        delex, acts = self.talker.reply(self.turns, self.states, user, state, self.state)
        self.state, self.domain = state, domain
        self.states.append(state)
        self.turns.append((user, delex))
        text = lexicalise(delex, domain=domain or "", state=state, database=self.talker.database)
        if domain and (name := self.talker.ontology.find_name(domain, text)):
            self.offered[domain] = name
        return Reply(text, delex, acts)

    def _listen(self, user: str) -> tuple[State, str | None]:
        talker = self.talker
        if talker.write_state is None:
            return track(self.state, user, talker.ontology, domain=self.domain, offered=self.offered)
        state = talker.state_after(self.turns, self.states, user, self.state)
        estimated = estimate_domains([*self.states, state])[-1]
        return state, mentioned_domain(user, talker.ontology) or (estimated[0] if estimated else self.domain)

    def set_slot(self, domain: str, slot: str, value: str) -> None:
        """Correct the state; an empty value removes the slot.

        Raises:
            ChatError: an unknown domain or slot, or a value that cannot be read.
        """
        slots = self.talker.ontology.slots
        if domain not in slots:
            raise ChatError(f"unknown domain {domain!r}, expected one of {', '.join(sorted(slots))}")
        known = sorted(slots[domain] & set(vocabulary.STATE_SLOTS))
        slot = normalise_slot(slot)
        if slot not in known:
            raise ChatError(f"unknown slot {slot!r} of {domain}, expected one of {', '.join(known) or 'none'}")
        try:
            found = {slot: normalise_value(slot, value.lower())} if value else {}
        except ValueError as error:
            raise ChatError(str(error)) from error
        after = merge(self.state.get(domain, {}), found, () if value else (slot,))
        self.state = {name: s for name, s in (self.state | {domain: after}).items() if s}
        self.domain = domain

    def describe(self) -> str:
        """The state and how many records match it, one line a domain."""
        lines = [
            f"{domain:<11} {' '.join(f'{slot}={value!r}' for slot, value in slots.items())}{self._matches(domain)}"
            for domain, slots in self.state.items()
        ]
        return "\n".join(lines) or "nothing yet"

    def _matches(self, domain: str) -> str:
        if domain not in ("restaurant", "hotel", "attraction", "train"):
            return ""
        return f"  ({self.talker.database.count(domain, self.state[domain])} in the database)"

    def command(self, line: str) -> str:
        """Follow `/state`, `/set`, `/reset` or `/help`; returns what to print.

        Raises:
            ChatError: an unknown command, or one without its arguments.
        """
        name, *words = line.split()
        if name == "/state":
            return self.describe()
        if name == "/reset":
            self.turns, self.states, self.state, self.domain, self.offered = [], [], {}, None, {}
            return "a new conversation"
        if name == "/set" and len(words) >= 2:
            self.set_slot(words[0], words[1], " ".join(words[2:]))
            return self.describe()
        if name in ("/help", "/set"):
            return HELP
        raise ChatError(f"unknown command {name}\n{HELP}")


# Loading


def load_talker(
    run_dir: Path | str,
    *,
    system: str | None = None,
    data_dir: Path | str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Talker:
    """Load a run's tokenizer, databases and final model.

    Args:
        run_dir: what `python -m morejax.experiments.multiwoz --out` wrote.
        system: "supervised", "scaffold" or "ppo"; by default the last one that the run has trained, never the
            scaffold.
        data_dir: the corpus, if it is not where it was when the run was made.
        temperature: of sampling; 0 is greedy.
        seed: of sampling.

    Raises:
        ChatError: the folder holds no run, or one of another corpus or code.
        FileNotFoundError: the run has not trained that system.
    """
    run_dir = Path(run_dir)
    document = read_run(run_dir)
    config = document["config"]
    layout = find_layout(data_dir or config["data_dir"] or embedded_root())
    if layout.corpus_name() != document.get("corpus", layout.corpus_name()):
        raise ChatError(
            f"{run_dir} was trained on corpus {document['corpus']!r}, {layout.root} holds {layout.corpus_name()!r}; "
            "name the right folder with --data-dir"
        )
    database = Database.load(layout.databases)
    context = _dataclass(ContextConfig, config["context"], run_dir)
    serialiser = serialiser_of(vocabulary.load_tokenizer(run_dir / "tokenizer"), context)
    system = system or _default_system(run_dir)
    graphdef, params = _load_model(run_dir, system)

    aloud = system == "ppo" and bool(config.get("aloud"))
    reasoned = system == "scaffold" or aloud
    max_acts = context.acts_room(config["model"]["max_length"]) if aloud else MAX_ACTS
    end_to_end = context.track == "e2e"
    longest = max(context.max_reply + max_acts, context.max_state)
    # One cache for state and reply: the reply's prompt begins with the state's.
    cache = PrefixCache(graphdef, params, room=context.max_context + longest + _PADDING)

    def writer(new_tokens: int, end: int) -> Answer:
        sampler = SamplerConfig(new_tokens, temperature, end, serialiser.token(vocabulary.PAD))
        return _seeded(partial(cache.reply, config=sampler), seed)

    return Talker(
        serialiser,
        database,
        build_ontology(database, read_schema(layout.schema)),
        writer(context.max_reply + (max_acts if reasoned else 0), serialiser.token(vocabulary.EOS)),
        writer(context.max_state, serialiser.token(vocabulary.DATABASE)) if end_to_end else None,
        reasoned,
    )


def read_run(run_dir: Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        ChatError: there is none, or it is not the experiment's.
    """
    path = run_dir / "config.json"
    if not path.is_file():
        raise ChatError(
            f"{run_dir}: no run here (no config.json); expected the --out folder of "
            "`python -m morejax.experiments.multiwoz`"
        )
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ChatError(f"{path}: not JSON ({error})") from error
    missing = [name for name in ("data_dir", "context", "model", "critic", "step") if name not in document["config"]]
    if missing:
        raise ChatError(f"{path}: config has no {', '.join(missing)}; not a run of morejax.experiments.multiwoz")
    return document


def _default_system(run_dir: Path) -> str:
    for system in ("ppo", "supervised"):
        if (run_dir / "checkpoints" / f"{system}-final" / "meta.json").is_file():
            return system
    raise ChatError(
        f"{run_dir}: no finished model yet (neither checkpoints/ppo-final nor checkpoints/supervised-final)"
    )


def _load_model(run_dir: Path, system: Any) -> tuple[nnx.GraphDef, Params]:
    """The model without its critic, adapters merged into its weights."""
    config, params = load_run(run_dir, system)
    config, params = merge_adapters(config, {name: part for name, part in params.items() if name != "value"})
    return structure_of(config)[0], params


def _dataclass(kind: Any, values: Mapping[str, Any], run_dir: Path) -> Any:
    try:
        # JSON has no tuples.
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ChatError(f"{run_dir / 'config.json'}: written by another version of morejax ({error})") from error


def _seeded(reply: Callable[..., Ids], seed: int) -> Answer:
    drawn = 0

    def answer(prompt: Ids) -> Ids:
        nonlocal drawn
        drawn += 1
        return reply(prompt, seed=seed * 100_003 + drawn)

    return answer


# The terminal


def talk(conversation: Conversation, lines: Iterable[str], *, show_delex: bool = False) -> None:
    """Answer line after line until `/quit` or the end, printing the replies."""
    for line in (line.strip() for line in lines):
        if line in ("/quit", "/exit"):
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                print(conversation.command(line), flush=True)
                continue
            reply = conversation.say(line)
        except PromptTooLong as error:
            print(f"error: {error}; /reset starts a new conversation", flush=True)
            continue
        except ChatError as error:
            print(f"error: {error}", flush=True)
            continue
        print(reply.text, flush=True)
        if show_delex:
            print(f"  {reply.acts + ' ' if reply.acts else ''}{reply.delex}", flush=True)


def prompted() -> Iterable[str]:
    """Lines typed at a prompt, with history and editing where the system has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (its import is what makes input() edit lines)
    while True:
        try:
            yield input("you> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m morejax.chat",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\nin the conversation:\n{textwrap.indent(HELP, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a run of morejax.experiments.multiwoz")
    parser.add_argument("--system", choices=SYSTEMS, help="which model (default: ppo, without it supervised)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="corpus folder, if it has moved since the run")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0, the default, is greedy")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--show-delex", action="store_true", help="also show the reply as the model wrote it")
    options = parser.parse_args(arguments)
    if options.temperature < 0:
        parser.error(f"--temperature must not be negative, found {options.temperature}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        talker = load_talker(
            options.run_dir,
            system=options.system,
            data_dir=options.data_dir,
            temperature=options.temperature,
            seed=options.seed,
        )
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    conversation = Conversation(talker)
    if not sys.stdin.isatty():
        talk(conversation, sys.stdin, show_delex=options.show_delex)
        return 0
    who = "the model keeps the state" if talker.write_state else "a rule-based tracker keeps the state"
    print(f"{options.run_dir}: {talker.serialiser.config.track} track, {who}; /help for help", file=sys.stderr)
    talk(conversation, prompted(), show_delex=options.show_delex)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
