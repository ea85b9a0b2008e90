from __future__ import annotations

import dataclasses
import io
import json

import pytest
from flax import nnx

from morejax import chat
from morejax.experiments.multiwoz.config import preset, resolve
from morejax.models import ActorCritic, CriticConfig, DecoderConfig, split
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.training.checkpoint import save_params
from morejax.training.run import write_json

VOCABULARY = 512


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_embedded(folder, dialogues=12, seed=0)
    return folder


def write_run(folder, corpus_dir, track, systems):
    """A run's folder with random final parameters."""
    demo = preset("demo")
    model = DecoderConfig(vocab_size=VOCABULARY, max_length=128, layers=1, width=16, heads=2)
    config = resolve(
        dataclasses.replace(
            demo,
            track=track,
            model=model,
            critic=CriticConfig(kind="shared", hidden=8),
            context=dataclasses.replace(demo.context, max_context=96, max_reply=8, max_state=12),
            data_dir=corpus_dir,
        )
    )
    write_json(folder / "config.json", {"config": dataclasses.asdict(config), "corpus": "embedded"})
    vocabulary.save_tokenizer(
        vocabulary.train_tokenizer(["a cheap hotel", "[name] is cheap"], VOCABULARY), folder / "tokenizer"
    )
    for system in systems:
        critic = config.critic if system == "ppo" else None
        actor = ActorCritic(model, critic=critic, streams=len(config.step.streams), rngs=nnx.Rngs(1))
        save_params(folder / "checkpoints" / f"{system}-final", split(actor)[1], {})
    return folder


@pytest.fixture(scope="module")
def policy_run(corpus_dir, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("policy"), corpus_dir, "policy", ("supervised", "scaffold", "ppo"))


@pytest.fixture(scope="module")
def e2e_run(corpus_dir, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("e2e"), corpus_dir, "e2e", ("supervised",))


@pytest.fixture(scope="module")
def policy_talker(policy_run):
    return chat.load_talker(policy_run)


class Script:
    """A model that says prepared replies and remembers its prompts."""

    def __init__(self, talker, *replies):
        self.talker, self.replies, self.prompts = talker, list(replies), []

    def __call__(self, prompt):
        tokenizer = self.talker.serialiser.tokenizer
        self.prompts.append(tokenizer.convert_ids_to_tokens(list(prompt)))
        return (*vocabulary.encode_batch(tokenizer, [self.replies.pop(0)])[0], int(tokenizer.eos_token_id))


def scripted(talker, *replies):
    script = Script(talker, *replies)
    return chat.Conversation(dataclasses.replace(talker, answer=script)), script


def test_values_come_from_the_database_and_the_state_from_the_words(policy_talker):
    talker = policy_talker
    conversation, script = scripted(talker, "try [name].", "its number is [phone].", "booked for [day]!")
    first = conversation.say("A cheap Italian restaurant in the centre, please")
    assert conversation.state == {"restaurant": {"food": "italian", "area": "centre", "pricerange": "cheap"}}
    (record, *_) = talker.database.query("restaurant", conversation.state["restaurant"])
    assert first.delex == "try [name]."
    assert record["name"] in first.text
    assert conversation.offered == {"restaurant": record["name"]}
    assert record["phone"] in conversation.say("what is the phone number?").text
    assert conversation.say("book it for friday").text == "booked for friday!"
    assert conversation.state["restaurant"]["name"] == record["name"]
    # The prompt is the serialiser's: delexicalised history, state, counts, then the reply's marker.
    assert script.prompts[1][-1] == vocabulary.RESPONSE
    assert "[name]" in script.prompts[1]
    assert vocabulary.marker("pricerange") in script.prompts[1]
    assert "<db:1>" in script.prompts[1]


def test_the_state_can_be_corrected(policy_talker):
    conversation, _ = scripted(policy_talker)
    assert conversation.command("/state") == "nothing yet"
    shown = conversation.command("/set hotel area North")
    assert conversation.state == {"hotel": {"area": "north"}}
    assert conversation.domain == "hotel"
    assert "area='north'" in shown
    assert "in the database" in shown
    conversation.command("/set train arriveby 5:15 pm")
    assert conversation.state["train"] == {"arrive": "17:15"}
    conversation.command("/set hotel area")
    assert conversation.state == {"train": {"arrive": "17:15"}}
    conversation.command("/reset")
    assert conversation.state == {}
    with pytest.raises(chat.ChatError, match="unknown domain 'spaceport', expected one of attraction, hotel"):
        conversation.command("/set spaceport area north")
    with pytest.raises(chat.ChatError, match="unknown slot 'food' of hotel, expected one of area, bookday"):
        conversation.command("/set hotel food thai")
    with pytest.raises(chat.ChatError, match="unknown command /sing"):
        conversation.command("/sing")


@pytest.mark.parametrize("flags", [(), ("--system", "scaffold", "--show-delex", "--temperature", "1")])
def test_every_line_of_standard_input_is_answered(policy_run, flags, monkeypatch, capsys):
    lines = "a cheap hotel\n\n/state\n/nonsense\nfour stars please\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert chat.main([str(policy_run), *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("hotel       pricerange='cheap'") for line in printed) == 1
    assert "error: unknown command /nonsense" in printed


def test_end_to_end_the_model_writes_the_state(e2e_run):
    talker = chat.load_talker(e2e_run)
    serialiser = talker.serialiser
    assert talker.write_state is not None
    assert isinstance(talker.state_after([], [], "a hotel", {}), dict)  # by the (random) model itself
    wanted = {"hotel": {"area": "north"}}

    def write(prompt):
        assert prompt[-1] == serialiser.token(vocabulary.STATE)
        return (*serialiser.state_ids(wanted), serialiser.token(vocabulary.DATABASE))

    conversation, script = scripted(
        dataclasses.replace(talker, write_state=write), "there is [name] in the [area].", "yes.", "yes."
    )
    reply = conversation.say("anything up there?")
    assert conversation.state == wanted
    assert conversation.domain == "hotel"
    assert talker.database.query("hotel", wanted["hotel"])[0]["name"] in reply.text
    assert script.prompts[0][:2] == [vocabulary.PREVIOUS, vocabulary.USER]  # nothing was known before
    # Names that the model makes up are not believed, one that was set is.
    wanted["hotel"]["name"] = "golden lion"
    conversation.say("what about parking?")
    assert conversation.state == {"hotel": {"area": "north"}}
    conversation.command("/set hotel name golden lion")
    conversation.say("and wifi?")
    assert conversation.state == wanted


def test_acts_said_aloud_have_the_room_that_they_were_learnt_in(policy_run, tmp_path, monkeypatch):
    """A policy that answers aloud: positions minus prompt and reply; the scaffold beside it the most there are."""
    document = json.loads((policy_run / "config.json").read_text())
    document["config"] |= {"aloud": True, "model": document["config"]["model"] | {"max_length": 96 + 8 + 10}}
    for name in ("tokenizer", "checkpoints"):
        (tmp_path / name).symlink_to(policy_run / name)
    write_json(tmp_path / "config.json", document)
    room = {}
    # Parameters are those of a longer model; only what the sampler is asked for is looked at.
    monkeypatch.setattr(chat, "_load_model", lambda run_dir, system: (None, None))
    monkeypatch.setattr(chat, "PrefixCache", lambda *args, room: FakeCache())

    class FakeCache:
        def reply(self, prompt, config, seed):
            room[system] = config.max_new_tokens
            return prompt

    for system in chat.SYSTEMS:
        chat.load_talker(tmp_path, system=system).answer((5,))
    assert room == {"supervised": 8, "scaffold": 8 + 24, "ppo": 8 + 10}


def test_every_answer_has_a_seed_of_its_own():
    seeds = []

    def reply(prompt, seed):
        seeds.append(seed)
        return prompt

    first, again, other = (chat._seeded(reply, seed) for seed in (3, 3, 4))
    assert [first((5,)), first((6,)), again((5,)), again((6,)), other((5,))] == [(5,), (6,), (5,), (6,), (5,)]
    assert seeds[:2] == seeds[2:4]
    assert len(set(seeds)) == 3


def test_a_state_too_long_for_the_context_is_said_and_survived(policy_talker, capsys):
    short = dataclasses.replace(policy_talker.serialiser.config, max_context=12)
    serialiser = Serialiser(policy_talker.serialiser.tokenizer, short)
    conversation = chat.Conversation(dataclasses.replace(policy_talker, serialiser=serialiser))
    chat.talk(conversation, ["a cheap italian restaurant in the centre for 4 people on friday at 18:30"])
    assert "--context.max-context 12; /reset" in capsys.readouterr().out
    assert conversation.state == {}


def test_folders_that_cannot_be_talked_to(tmp_path, policy_run, capsys):
    assert chat.main([str(tmp_path)]) == 2
    assert f"{tmp_path}: no run here (no config.json)" in capsys.readouterr().err

    document = json.loads((policy_run / "config.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tokenizer").symlink_to(policy_run / "tokenizer")
    write_json(copy / "config.json", document)
    assert chat.main([str(copy)]) == 2
    assert "no finished model yet" in capsys.readouterr().err
    assert chat.main([str(copy), "--system", "ppo"]) == 2
    assert "ppo-final: no finished parameters here" in capsys.readouterr().err

    write_json(copy / "config.json", document | {"corpus": "multiwoz-2.2"})
    assert chat.main([str(copy)]) == 2
    assert "holds 'embedded'; name the right folder with --data-dir" in capsys.readouterr().err

    write_json(copy / "config.json", document | {"config": document["config"] | {"data_dir": str(tmp_path / "gone")}})
    assert chat.main([str(copy)]) == 2
    assert "gone: no such folder" in capsys.readouterr().err

    (copy / "config.json").write_text("{")
    assert chat.main([str(copy)]) == 2
    assert "config.json: not JSON" in capsys.readouterr().err
