"""Contexts are laid out as documented, states survive the way there and back, nothing is cut in silence."""

from __future__ import annotations

import time

import pytest

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import ContextConfig, Earlier, PromptTooLong
from morejax.tasks.multiwoz.examples import ContextStats, Serialiser
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.records import Act, Dialogue, Turn
from morejax.tasks.multiwoz.token_ids import DATABASE_TOKENS

STATE = {
    "train": {"leave": "17:45", "destination": "hill town"},
    "restaurant": {"pricerange": "cheap", "area": "dontcare"},
}
ACTS = (
    Act("restaurant", "inform", ("name", "leaveat")),
    Act("restaurant", "request", ("area",)),
    Act("general", "reqmore", ()),
)


class CountingDatabase:
    """Counts by number of constraints: 4 results with one, 2 with two."""

    def count(self, domain, constraints):
        return {1: 4, 2: 2}[len(constraints)]


DATABASE = CountingDatabase()


def turn(index, user, delex, state, acts=()):
    return Turn(index, user, delex, delex, state, (), tuple(acts), ())


DIALOGUE = Dialogue(
    "one",
    "dev",
    (
        turn(0, "a cheap place please", "[name] is cheap.", {"restaurant": {"pricerange": "cheap"}}),
        turn(1, "and a train", "where to?", {"restaurant": {"pricerange": "cheap"}}),
        turn(2, "to hill town at 17:45", "[trainid] leaves at [time].", STATE, ACTS),
    ),
    {"restaurant": {"informable": {"pricerange": "cheap"}, "requestable": []}},
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for t in DIALOGUE.turns for text in (t.user, t.delex)] + ["hill town", "cheap"]
    return vocabulary.train_tokenizer(texts * 4, 640)


def serialiser(tokenizer, track="policy", history=3, max_context=120, max_reply=40, max_state=40):
    return Serialiser(tokenizer, ContextConfig(track, history, max_context, max_reply, max_state))


def words(tokenizer, ids):
    """Tokens as text, BPE pieces joined."""
    return "".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("Ġ", " ")


STATE_TEXT = "<restaurant><area><dontcare><pricerange> cheap<train><destination> hill town<leave> 17:45"
DIALOGUE_TEXT = "<user> and a train<system> where to?<user> to hill town at 17:45"
DB_TEXT = "<db><restaurant><db:2><train><db:2>"
ACTS_TEXT = "<restaurant><inform><name><leave><request><area><general><reqmore>"
REPLY_TEXT = "[trainid] leaves at[time].<eos>"


def test_policy_layout(tokenizer):
    example = serialiser(tokenizer).examples([DIALOGUE], DATABASE, reasoned=False)[2]
    assert words(tokenizer, example.prompt) == f"{DIALOGUE_TEXT}<state>{STATE_TEXT}{DB_TEXT}<response>"
    assert words(tokenizer, example.reply) == REPLY_TEXT
    assert (example.dialogue_id, example.turn, example.acts) == ("one", 2, ())
    assert example.sequence == example.prompt + example.reply
    assert example.target_mask == (False,) * len(example.prompt) + (True,) * len(example.reply)


def test_reasoned_policy_layout_marks_acts_as_targets(tokenizer):
    example = serialiser(tokenizer).examples([DIALOGUE], DATABASE, reasoned=True)[2]
    expected = f"{DIALOGUE_TEXT}<state>{STATE_TEXT}{DB_TEXT}<acts>{ACTS_TEXT}<response>"
    assert words(tokenizer, example.prompt) == expected
    assert words(tokenizer, example.acts) == ACTS_TEXT
    targets = [t for t, own in zip(example.sequence, example.target_mask, strict=True) if own]
    assert words(tokenizer, targets) == f"{ACTS_TEXT}<response>{REPLY_TEXT}"


@pytest.mark.parametrize("reasoned", [False, True])
def test_e2e_layout_generates_the_state(tokenizer, reasoned):
    example = serialiser(tokenizer, "e2e").examples([DIALOGUE], DATABASE, reasoned=reasoned)[2]
    previous = "<prev><restaurant><pricerange> cheap"
    assert words(tokenizer, example.prompt) == f"{previous}{DIALOGUE_TEXT}<state>"
    acts = f"<acts>{ACTS_TEXT}" if reasoned else ""
    rest = words(tokenizer, example.sequence[len(example.prompt) :])
    assert rest == f"{STATE_TEXT}{DB_TEXT}{acts}<response>{REPLY_TEXT}"
    targets = [t for t, own in zip(example.sequence, example.target_mask, strict=True) if own]
    own_acts = f"{ACTS_TEXT}<response>" if reasoned else ""
    assert words(tokenizer, targets) == f"{STATE_TEXT}<db>{own_acts}{REPLY_TEXT}"


@pytest.mark.parametrize("reasoned", [False, True])
@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_users_add_the_utterance_that_is_answered_to_the_targets(tokenizer, track, reasoned):
    s = serialiser(tokenizer, track)
    made, plain = (s.examples([DIALOGUE], DATABASE, reasoned=reasoned, users=users) for users in (True, False))
    heard = []
    for more, example in zip(made, plain, strict=True):
        assert more.sequence == example.sequence
        pairs = zip(more.sequence, more.target_mask, example.target_mask, strict=True)
        assert all(new or not old for new, old in zip(more.target_mask, example.target_mask, strict=True))
        heard.append(words(tokenizer, [t for t, new, old in pairs if new and not old]))
    # Each once, without its <user>, which the system's turn before it decides.
    spoken = [words(tokenizer, s.text_ids(turn.user)) for turn in DIALOGUE.turns]
    assert heard == [f"{text}<state>" for text in spoken]


@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_weak_annotation_is_marked_where_it_is_learnt_from_and_nowhere_else(tokenizer, track):
    own = vocabulary.train_tokenizer(["a cheap place"] * 4, 640, (vocabulary.WEAK,))
    s = serialiser(own, track)
    weak, exact = (s.examples([DIALOGUE], DATABASE, reasoned=True, weak=ids) for ids in (["one"], ()))
    for marked, plain in zip(weak, exact, strict=True):
        assert marked.prompt == (vocabulary.token_id(own, "<weak>"), *plain.prompt)
        assert marked.sequence == (marked.prompt[0], *plain.sequence)
        assert marked.target_mask == (False, *plain.target_mask)
    with pytest.raises(ValueError, match="no token '<weak>'"):
        serialiser(tokenizer, track).examples([DIALOGUE], DATABASE, reasoned=False, weak=["one"])


def test_the_mark_takes_its_place_from_the_utterances(tokenizer):
    own = vocabulary.train_tokenizer([t.user for t in DIALOGUE.turns] * 4, 640, (vocabulary.WEAK,))
    plain = serialiser(own).example(DIALOGUE, 2, DATABASE, reasoned=False)
    s = serialiser(own, max_context=len(plain.prompt))
    assert len(s.example(DIALOGUE, 2, DATABASE, reasoned=False, weak=True).prompt) <= len(plain.prompt)
    assert s.stats.utterances_cut == 1


def test_e2e_prompt_with_a_state_keeps_the_same_utterances(tokenizer):
    s = serialiser(tokenizer, "e2e", history=5, max_context=62, max_state=30)
    earlier = s.earlier([(t.user, t.delex, t.state) for t in DIALOGUE.turns[:2]], DATABASE)
    before = s.prompt(earlier, DIALOGUE.turns[2].user, None, previous_state={})
    db = s.db_ids(STATE, DATABASE)
    after = s.prompt(earlier, DIALOGUE.turns[2].user, STATE, db, previous_state={})
    assert after == before + s.state_ids(STATE) + db + (s.token("<response>"),)
    assert len(after) <= 62
    assert s.stats.utterances_cut > 0


def test_first_turn_and_history(tokenizer):
    examples = serialiser(tokenizer, history=1).examples([DIALOGUE], DATABASE, reasoned=False)
    assert words(tokenizer, examples[0].prompt).startswith("<user> a cheap place please<state><restaurant>")
    assert words(tokenizer, examples[1].prompt).startswith("<user> and a train<state>")
    assert serialiser(tokenizer).examples([DIALOGUE], DATABASE, reasoned=False)[0].prompt == examples[0].prompt


def test_oldest_utterances_are_cut_first_then_tokens_and_both_are_counted(tokenizer):
    whole = serialiser(tokenizer).example(DIALOGUE, 2, DATABASE, reasoned=False)
    without_first = len(whole.prompt) - 1
    s = serialiser(tokenizer, max_context=without_first)
    prompt = s.example(DIALOGUE, 2, DATABASE, reasoned=False).prompt
    assert words(tokenizer, prompt).startswith("<system> where to?<user> to hill")
    assert s.stats == ContextStats(utterances_cut=1)
    without_second = len(prompt) - 1 - len(s.text_ids("where to?"))
    s = serialiser(tokenizer, max_context=without_second - 2)
    prompt = s.example(DIALOGUE, 2, DATABASE, reasoned=False).prompt
    assert len(prompt) == without_second - 2
    assert words(tokenizer, prompt).startswith("<user>")
    assert words(tokenizer, prompt).endswith(f"{DB_TEXT}<response>")
    assert s.stats == ContextStats(utterances_cut=2, utterance_tokens_cut=2)


def test_what_may_not_be_cut_raises_with_the_place_and_the_limit(tokenizer):
    with pytest.raises(PromptTooLong, match=r"dialogue one, turn 2: .* take \d+ tokens.*max-context 20"):
        serialiser(tokenizer, max_context=20).example(DIALOGUE, 2, DATABASE, reasoned=False)
    with pytest.raises(PromptTooLong, match=r"dialogue one, turn 2: the state .* --context.max-state is 5"):
        serialiser(tokenizer, "e2e", max_state=5).example(DIALOGUE, 2, DATABASE, reasoned=False)


def test_long_replies_are_cut_without_eos_and_counted(tokenizer):
    s = serialiser(tokenizer, max_reply=3)
    example = s.examples([DIALOGUE], DATABASE, reasoned=False)[2]
    assert len(example.reply) == 3
    assert tokenizer.eos_token_id not in example.reply
    assert s.stats.replies_cut == 3
    assert s.stats.examples == 3


def test_state_round_trip_is_independent_of_order(tokenizer):
    s = serialiser(tokenizer)
    ids = s.state_ids(STATE)
    shuffled = {d: dict(reversed(STATE[d].items())) for d in reversed(STATE)}
    assert s.state_ids(shuffled) == ids
    assert s.parse_state(ids) == STATE
    assert s.parse_state(()) == {}
    assert s.state_ids({"taxi": {}}) == ()


def ids_of(s, *items):
    return [i for item in items for i in ([s.token(item)] if item.startswith("<") else s.text_ids(item))]


@pytest.mark.parametrize(
    ("items", "state"),
    [
        (("<area>", "north"), {}),  # slot without a domain
        (("<hotel>", "<area>", "<stars>", "4"), {"hotel": {"stars": "4"}}),  # slot without a value
        (("<hotel>", "noise", "<area>", "north"), {"hotel": {"area": "north"}}),  # value without a slot
        (("<hotel>", "<area>", "north", "<area>", "west"), {"hotel": {"area": "west"}}),  # said twice
        (("<hotel>", "<area>", "north", "<db>", "<area>", "west"), {"hotel": {"area": "north"}}),  # closed
        (("<hotel>", "<area>", "north", "<user>", "<area>", "west"), {"hotel": {"area": "north"}}),
        (("<train>", "<leave>", "soon:ish pm", "<day>", "monday"), {"train": {"day": "monday"}}),  # unreadable
        (("<hotel>", "<parking>", "<yes>", "<internet>", "<no>"), {"hotel": {"parking": "yes", "internet": "no"}}),
        (("<hotel>",), {}),
    ],
)
def test_malformed_states_lose_only_what_is_malformed(tokenizer, items, state):
    s = serialiser(tokenizer)
    assert s.parse_state(ids_of(s, *items)) == state


def test_unknown_state_names_are_errors(tokenizer):
    s = serialiser(tokenizer)
    with pytest.raises(ValueError, match="unknown state domain 'spa', expected one of restaurant"):
        s.state_ids({"spa": {"area": "north"}})
    with pytest.raises(ValueError, match="unknown slot of the hotel state 'leaveat'"):
        s.state_ids({"hotel": {"leaveat": "12:00"}})


def test_rare_act_names_are_written_in_word_pieces(tokenizer):
    s = serialiser(tokenizer)
    ids = s.acts_ids([Act("hotel", "inform", ("choice-none",))])
    assert words(tokenizer, ids) == "<hotel><inform> choice-none"


@pytest.mark.parametrize(("field", "value"), [("track", "both"), ("history", 0), ("max_context", -1), ("max_reply", 0)])
def test_configuration_names_the_flag(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        ContextConfig(**{field: value})


def test_real_corpus_is_serialised_fast_and_reversibly(real_root):
    corpus = read_corpus(real_root, "dev")
    dialogues = corpus.dialogues("dev")
    tokenizer = vocabulary.train_tokenizer(
        (text for d in dialogues for t in d.turns for text in (t.user, t.delex)), 4096
    )
    s = Serialiser(tokenizer, ContextConfig(max_context=200))
    start = time.perf_counter()
    examples = s.examples(dialogues, corpus.database, reasoned=True)
    assert time.perf_counter() - start < 10
    assert len(examples) == sum(len(d.turns) for d in dialogues)
    assert max(len(e.prompt) for e in examples) <= 200
    assert all(s.parse_state(s.state_ids(t.state)) == t.state for d in dialogues for t in d.turns)
    assert max(len(s.db_ids(t.state, corpus.database)) for d in dialogues for t in d.turns) <= DATABASE_TOKENS


def test_what_was_given_stands_first_by_domain_in_a_fixed_order(tokenizer):
    s = Serialiser(tokenizer, ContextConfig(given=True))
    hotel, both = {"hotel": {"area": "north"}}, {"hotel": {"area": "north"}, "train": {"day": "monday"}}
    replies = ["call [phone] .", "[name] it is .", "nothing to say .", "[trainid] , [phone] , [restaurant_name] [food]"]
    found = words(tokenizer, s.given_ids(replies, [hotel, hotel, both, both]))
    # The reply without any gives nothing; [food] cannot be requested; however spelled, a name is a name.
    assert found == "<hotel><name><phone><train><name><trainid><phone>"
    # Before a domain is active there is nobody to give to; a domain that was given nothing is left out.
    assert s.given_ids(["[name]", "hello ."], [{}, hotel]) == ()
    assert Serialiser(tokenizer, ContextConfig()).given_ids(replies, [hotel, hotel, both, both]) == ()
    given = s.given_ids(["[name]"], [hotel])
    prompt = s.prompt([Earlier("hi", "[name]", hotel)], "thanks", hotel, (), given=given)
    assert words(tokenizer, prompt).startswith("<hotel><name><user>")
    # It gives way before the utterance that is to be answered does, and never ends a run.
    least = len(s.prompt([], "thanks", hotel, ()))
    for room, expected in ((len(given) + least, "<hotel><name><user>"), (len(given) + least - 1, "<user>")):
        small = Serialiser(tokenizer, ContextConfig(max_context=room, given=True))
        found = words(tokenizer, small.prompt([], "thanks", hotel, (), given=given))
        assert found.startswith(expected)
        assert found.partition("<user>")[2] == words(tokenizer, prompt).rpartition("<user>")[2]
