"""A dialogue as one sequence: laid out as documented, learnt as it is asked, cut by turns, states told by change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import ContextConfig, PromptTooLong
from morejax.tasks.multiwoz.dialogue_layout import DialogueSerialiser, TurnIds, changed, serialiser_of, starts
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.records import Act, Dialogue, Turn
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.tasks.streams import StreamContext

CHEAP = {"restaurant": {"pricerange": "cheap"}}
BOTH = CHEAP | {"train": {"destination": "hill town"}}
ACTS = (Act("train", "inform", ("id",)),)


class TwoResults:
    """Two results, always."""

    def count(self, domain, constraints):
        return 2


DATABASE = TwoResults()


def turn(index, user, delex, state, acts=()):
    return Turn(index, user, delex, delex, state, (), tuple(acts), ())


DIALOGUE = Dialogue(
    "one",
    "dev",
    (
        turn(0, "a cheap place please", "[name] is cheap.", CHEAP),
        turn(1, "thanks", "anything else?", CHEAP),
        turn(2, "a train to hill town", "[trainid] leaves.", BOTH, ACTS),
    ),
    {"restaurant": {"informable": {"pricerange": "cheap"}, "requestable": []}},
)
PLACE = "<user> a cheap place please<state><restaurant><pricerange> cheap<db><restaurant><db:2><response>"
SAID = "[name] is cheap.<eos>"
THANKS = "<user> thanks<state><db><restaurant><db:2><response>"
ELSE = " anything else?<eos>"
CHANGED = "<train><destination> hill town"
COUNTS = "<db><restaurant><db:2><train><db:2>"
TRAIN = f"<user> a train to hill town<state>{CHANGED}{COUNTS}"
LEAVES = "[trainid] leaves.<eos>"


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for t in DIALOGUE.turns for text in (t.user, t.delex)] + ["hill town", "cheap"]
    return vocabulary.train_tokenizer(texts * 4, 640, (vocabulary.WEAK,))


def serialiser(tokenizer, **more):
    settings = {"max_context": 120, "max_reply": 40, "max_state": 20, "layout": "dialogue"} | more
    return serialiser_of(tokenizer, ContextConfig(**settings))


def words(tokenizer, ids):
    """Tokens as text, BPE pieces joined."""
    return "".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("Ġ", " ")


def written(tokenizer, window):
    return words(tokenizer, [t for t, own in zip(window.sequence, window.target_mask, strict=True) if own])


def learnt(serialiser, reasoned=False, weak=()):
    return serialiser.examples([DIALOGUE], DATABASE, reasoned=reasoned, weak=weak)


def test_the_flag_chooses_the_serialiser(tokenizer):
    assert type(serialiser_of(tokenizer, ContextConfig())) is Serialiser
    with pytest.raises(ValueError, match=r"--context.layout is 'whole', expected 'turn' or 'dialogue'"):
        ContextConfig(layout="whole")


def test_policy_layout(tokenizer):
    (window,) = learnt(serialiser(tokenizer))
    assert words(tokenizer, window.sequence) == f"{PLACE}{SAID}{THANKS}{ELSE}{TRAIN}<response>{LEAVES}"
    assert written(tokenizer, window) == f"{SAID}{ELSE}{LEAVES}"
    assert (window.dialogue_id, window.turns) == ("one", (0, 1, 2))


def test_what_was_given_stands_before_the_reply(tokenizer):
    (window,) = learnt(serialiser(tokenizer, given=True))
    given = "<restaurant><name>"
    thanks = THANKS.replace("<response>", f"{given}<response>")
    assert words(tokenizer, window.sequence) == f"{PLACE}{SAID}{thanks}{ELSE}{TRAIN}{given}<response>{LEAVES}"


def test_end_to_end_the_model_writes_what_changed(tokenizer):
    (window,) = learnt(serialiser(tokenizer, track="e2e"))
    assert written(tokenizer, window) == f"<restaurant><pricerange> cheap<db>{SAID}<db>{ELSE}{CHANGED}<db>{LEAVES}"


@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_the_scaffold_learns_every_turn_once_between_turns_without_acts(tokenizer, track):
    windows = learnt(serialiser(tokenizer, track=track), reasoned=True)
    assert sorted(turn for window in windows for turn in window.turns) == [0, 1, 2]
    (last,) = (window for window in windows if 2 in window.turns)
    acts = "<train><inform><id>"
    assert words(tokenizer, last.sequence).endswith(f"{TRAIN}<acts>{acts}<response>{LEAVES}")
    assert written(tokenizer, last).endswith(f"{acts}<response>{LEAVES}")
    for window in windows:
        assert words(tokenizer, window.sequence).count("<acts>") == len(window.turns)
        assert written(tokenizer, window).count("<eos>") == len(window.turns)


@pytest.mark.parametrize("reasoned", [False, True])
@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_users_are_predicted_where_the_turn_is_learnt(tokenizer, track, reasoned):
    s = serialiser(tokenizer, track=track)
    made, plain = (s.examples([DIALOGUE], DATABASE, reasoned=reasoned, users=users) for users in (True, False))
    heard = []
    for more, window in zip(made, plain, strict=True):
        assert (more.sequence, more.turns) == (window.sequence, window.turns)
        new = [a and not b for a, b in zip(more.target_mask, window.target_mask, strict=True)]
        assert sum(more.target_mask) == sum(window.target_mask) + sum(new)
        heard += words(tokenizer, [t for t, is_new in zip(more.sequence, new, strict=True) if is_new]).split("<state>")
    spoken = [words(tokenizer, s.text_ids(turn.user)) for turn in DIALOGUE.turns]
    assert sorted(filter(None, heard)) == sorted(spoken)


def test_weak_annotation_is_marked_in_front(tokenizer):
    (marked,), (plain,) = (learnt(serialiser(tokenizer), weak=ids) for ids in (("one",), ()))
    assert marked.sequence == (vocabulary.token_id(tokenizer, vocabulary.WEAK), *plain.sequence)
    assert marked.target_mask == (False, *plain.target_mask)


def test_states_are_told_by_the_domains_that_changed():
    assert changed(BOTH, CHEAP) == {"train": BOTH["train"]}
    assert changed(CHEAP, CHEAP) == {}
    more = {"restaurant": {"pricerange": "cheap", "area": "north"}}
    assert changed(more, CHEAP) == more
    assert changed({"restaurant": {}}, CHEAP) == {}


def test_a_state_is_what_was_written_and_the_rest_as_before(tokenizer):
    s = serialiser(tokenizer, track="e2e")
    ids = (*s.state_ids({"train": {"destination": "hill town"}}), s.token(vocabulary.DATABASE))
    assert s.state_after(ids, CHEAP, []) == BOTH
    assert Serialiser(tokenizer, ContextConfig()).state_after(ids, CHEAP, []) == {"train": {"destination": "hill town"}}


@pytest.mark.parametrize("layout", [Serialiser, DialogueSerialiser])
def test_a_name_that_the_user_has_not_said_is_not_kept(tokenizer, layout):
    written = {"restaurant": {"name": "hill cafe", "pricerange": "cheap"}}
    for names, said, kept in (("said", [], CHEAP), ("said", ["the hill cafe"], written), ("any", [], written)):
        s = layout(tokenizer, ContextConfig(track="e2e", names=names))
        ids = (*s.state_ids(written), s.token(vocabulary.DATABASE))
        assert s.state_after(ids, {}, said) == kept


def sized(before, own, reply):
    return TurnIds((7,) * before, (1,) * own, (), reply=(2,) * reply)


def test_where_sequences_begin_by_hand():
    # 10 tokens a turn and 3 for the state before it; prompts take 6 of the 10.
    turns = [replace(sized(3, 6, 4), before=()), *[sized(3, 6, 4)] * 5]
    needs = [6] * 6
    assert starts(turns, needs, 100) == [0] * 6
    # 6, 16, 26 tokens; of 36 the first turn goes, then 29 are more than 60 % of 30, and so are 19: the turn before
    # stays alone with its 19, which is more than 18, so all go.
    assert starts(turns, needs, 30) == [0, 0, 0, 3, 3, 3]
    # With 20 (19 <= 0.7 x 30) one more turn is kept, and two turns later it is full again.
    assert starts(turns, needs, 30, refill=0.7) == [0, 0, 0, 2, 2, 4]
    # Nothing fits beside its own prompt.
    assert starts(turns, needs, 9) == [0, 1, 2, 3, 4, 5]
    assert starts([], [], 9) == []


def test_old_turns_go_and_leave_the_state(tokenizer):
    whole = serialiser(tokenizer)
    earlier = whole.earlier([(t.user, t.delex, t.state) for t in DIALOGUE.turns[:2]], DATABASE)
    last, db = DIALOGUE.turns[2], whole.db_ids(BOTH, DATABASE)
    full = whole.prompt(earlier, last.user, last.state, db)
    assert words(tokenizer, full) == f"{PLACE}{SAID}{THANKS}{ELSE}{TRAIN}<response>"
    s = serialiser(tokenizer, max_context=len(full) - 1)
    cut = s.prompt(earlier, last.user, last.state, db)
    previous = "<prev><restaurant><pricerange> cheap"
    assert words(tokenizer, cut) in (f"{previous}{THANKS}{ELSE}{TRAIN}<response>", f"{previous}{TRAIN}<response>")
    assert s.stats.utterances_cut in (2, 4)
    alone = len(whole.prompt([], last.user, BOTH, db))
    s = serialiser(tokenizer, max_context=alone)
    cut = s.prompt(earlier, last.user, last.state, db)
    # The utterance gives way, the state does not.
    assert words(tokenizer, cut).startswith(f"{previous}<user>")
    assert words(tokenizer, cut).endswith(f"<state>{CHANGED}{COUNTS}<response>")
    assert len(cut) <= alone


def test_what_may_not_be_cut_raises_with_the_place_and_the_limit(tokenizer):
    with pytest.raises(PromptTooLong, match=r"dialogue one, turn 0: .* take \d+ tokens.*max-context 9"):
        learnt(serialiser(tokenizer, max_context=9, max_reply=4))
    with pytest.raises(PromptTooLong, match=r"dialogue one, turn 0: the state .* --context.max-state is 2"):
        learnt(serialiser(tokenizer, track="e2e", max_state=2))


def test_windows_are_as_long_as_is_asked_for(tokenizer):
    narrow = {"max_context": 40, "max_reply": 12}
    short, long = (serialiser(tokenizer, **narrow, window=window) for window in (0, 120))
    assert len(learnt(short)) > len(learnt(long)) == 1
    assert all(len(window.sequence) <= 52 for window in learnt(short))
    assert sorted(turn for window in learnt(short) for turn in window.turns) == [0, 1, 2]
    for wrong in ({"window": 51, **narrow, "layout": "dialogue"}, {"window": 300}):
        with pytest.raises(ValueError, match=r"--context.window \d+: expected --context.layout dialogue and at least"):
            ContextConfig(**wrong)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return read_corpus(write_embedded(tmp_path_factory.mktemp("corpus") / "data", dialogues=20))


def task_of(corpus, track, **more):
    turns = [turn for dialogue in corpus.dialogues("train") for turn in dialogue.turns]
    tokenizer = vocabulary.train_tokenizer((text for t in turns for text in (t.user, t.delex)), 800)
    context = ContextConfig(**({"track": track, "max_context": 400, "max_reply": 80, "layout": "dialogue"} | more))
    return MultiwozTask(corpus, serialiser_of(tokenizer, context), (), StreamContext(corpus.database))


@pytest.mark.parametrize("max_context", [2000, 130])
@pytest.mark.parametrize("given", [False, True])
def test_what_is_asked_is_what_was_learnt(corpus, max_context, given):
    """Whole, a prompt and the corpus's reply are the beginning of the window that holds the turn; cut, both hold the
    same last turn, to the token."""
    task = task_of(corpus, "policy", given=given, max_context=max_context)
    windows = {}
    for window in task.examples("dev"):
        windows |= {(window.dialogue_id, turn): window.sequence for turn in window.turns}
    prompts = [prompt for dialogue in task.corpus.dialogues("dev") for prompt in task.prompts(dialogue)]
    assert len(prompts) == len(windows)
    assert all(len(prompt.direct) <= max_context for prompt in prompts)
    user = task.serialiser.token(vocabulary.USER)
    for prompt in prompts:
        asked, window = prompt.direct + prompt.reference, windows[prompt.dialogue.id, prompt.turn]
        if max_context == 2000:
            assert window[: len(asked)] == asked
        last = asked[len(asked) - 1 - asked[::-1].index(user) :]
        assert any(window[at : at + len(last)] == last for at, token in enumerate(window) if token == user)


def test_end_to_end_predictions_keep_the_states_that_were_written(corpus):
    """A writer that knows what changed writes the gold states of whole dialogues, prompts hold its own replies."""
    task = task_of(corpus, "e2e", max_context=800, names="any")
    s = task.serialiser
    state, database = s.token(vocabulary.STATE), s.token(vocabulary.DATABASE)
    news = {}
    for dialogue in corpus.dialogues("dev"):
        befores = [{}, *(turn.state for turn in dialogue.turns)]
        for before, turn in zip(befores, dialogue.turns, strict=False):
            news.setdefault(s.text_ids(turn.user), []).append((before, s.state_ids(changed(turn.state, before))))
    said = s.reply_ids("zebra crossing")
    prompts = []

    def write(asked):
        prompts.extend(asked)
        assert all(prompt[-1] == state for prompt in asked)
        user = s.token(vocabulary.USER)
        texts = [prompt[len(prompt) - prompt[::-1].index(user) : -1] for prompt in asked]
        return [(*news[text][0][1], database) for text in texts]

    def answer(asked):
        assert all(any(after[: len(p)] == p for after in asked) for p in prompts[-len(asked) :])
        return [said] * len(asked)

    predictions = task.predict("dev", answer, write)
    unique = [
        d
        for d in corpus.dialogues("dev")
        if all(len(news[s.text_ids(t.user)]) == 1 for t in d.turns) and len(d.turns) > 2
    ]
    assert unique
    for dialogue in unique:
        assert [turn["state"] for turn in predictions[dialogue.id]] == [turn.state for turn in dialogue.turns]
    assert sum("zebra crossing" in vocabulary.decode(task.tokenizer, prompt) for prompt in prompts) > len(prompts) / 2
