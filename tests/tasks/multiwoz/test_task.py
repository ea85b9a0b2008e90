"""MultiWOZ as the training stages see it: prompts, rollouts' rewards, predictions on both tracks, scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from morejax.experiments.multiwoz.parts import Parts
from morejax.tasks.multiwoz import tokenizer as vocabulary
from morejax.tasks.multiwoz.context import ContextConfig
from morejax.tasks.multiwoz.embedded import write_embedded
from morejax.tasks.multiwoz.examples import Serialiser
from morejax.tasks.multiwoz.reader import read_corpus
from morejax.tasks.multiwoz.scorer import estimate_domains
from morejax.tasks.multiwoz.task import MultiwozTask
from morejax.tasks.streams import StreamContext

STREAMS = ("likeness", "fluency", "faithfulness", "naturalness", "inform", "success", "slots")
REPLY = 80


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    corpus = read_corpus(write_embedded(tmp_path_factory.mktemp("corpus") / "data", dialogues=20))
    turns = [turn for dialogue in corpus.dialogues("train") for turn in dialogue.turns]
    tokenizer = vocabulary.train_tokenizer((text for t in turns for text in (t.user, t.delex)), 800)
    return corpus, tokenizer


def make(parts, track, **more):
    corpus, tokenizer = parts
    serialiser = Serialiser(tokenizer, ContextConfig(track, 3, 320, REPLY, 100, **more))
    context = StreamContext(corpus.database, (-6.0, -1.0), vocabulary.placeholder_ids(tokenizer))
    return MultiwozTask(corpus, serialiser, STREAMS, context)


@pytest.fixture(scope="module")
def task(parts):
    return make(parts, "policy")


@pytest.fixture(scope="module")
def end_to_end(parts):
    # Gold states stand for written ones here, with names that were offered.
    return make(parts, "e2e", names="any")


@pytest.fixture(scope="module")
def remembering(parts):
    return make(parts, "policy", given=True)


def references(task, splits):
    """A generator that knows the corpus replies of a split by their prompts."""
    known = {p.direct: p.reference for d in task.corpus.dialogues(splits) for p in task.prompts(d)}
    return lambda prompts: [known[prompt] for prompt in prompts]


def test_the_three_special_tokens(task):
    assert (task.pad_id, task.eos_id) == (0, 1)
    assert task.drop_id == task.pad_id


@pytest.mark.parametrize("which", ["task", "remembering"])
def test_prompts_are_those_of_the_examples(which, request):
    """What the policy is asked is what it has learnt to answer."""
    task = request.getfixturevalue(which)
    examples = {(e.dialogue_id, e.turn): e for e in task.examples("dev")}
    for dialogue in task.corpus.dialogues("dev"):
        prompts = task.prompts(dialogue)
        assert [prompt.turn for prompt in prompts] == list(range(len(dialogue.turns)))
        for prompt in prompts:
            example = examples[dialogue.id, prompt.turn]
            assert prompt.direct == example.prompt
            assert prompt.reference == example.reply
            assert prompt.state == dialogue.turns[prompt.turn].state


def test_exact_dialogues_come_more_often_beside_weak_ones(parts):
    corpus, _ = parts
    turns = {name: sum(len(d.turns) for d in corpus.dialogues(name)) for name in ("train", "dev")}
    own = vocabulary.train_tokenizer(["a cheap place"] * 4, 800, (vocabulary.WEAK,))
    plain = make(parts, "policy")
    serialiser = Serialiser(own, plain.serialiser.config)
    task = MultiwozTask(corpus, serialiser, STREAMS, plain.context, weak="train", exact_repeat=3)
    task = task.with_context(plain.context)
    found = task.examples("train+dev")
    weak = [vocabulary.token_id(own, "<weak>") in example.sequence for example in found]
    assert (sum(weak), len(weak)) == (turns["train"], turns["train"] + 3 * turns["dev"])
    assert [e.dialogue_id for e in found[: turns["train"]]] == [e.dialogue_id for e in plain.examples("train")]
    # Where all are alike there is nothing to weigh.
    assert len(task.examples("dev")) == turns["dev"]
    assert len(task.examples("train")) == turns["train"]
    prompts = [p.direct for d in corpus.dialogues("train") for p in task.prompts(d)]
    assert not any(vocabulary.token_id(own, "<weak>") in prompt for prompt in prompts)


@pytest.mark.parametrize("user_loss", [False, True])
def test_users_are_learnt_where_the_flag_says_so_and_not_otherwise(task, user_loss):
    """What a run learns from; what it is watched by (`examples` as it is) are replies."""
    run = SimpleNamespace(task=task, fit="dev", config=SimpleNamespace(user_loss=user_loss))
    learnt, watched = Parts.learnt(run, reasoned=False), task.examples("dev")
    utterances = sum(len(task.serialiser.text_ids(t.user)) + 1 for d in task.corpus.dialogues("dev") for t in d.turns)
    targets = [sum(sum(example.target_mask) for example in examples) for examples in (learnt, watched)]
    assert targets[0] == targets[1] + user_loss * utterances
    assert [example.sequence for example in learnt] == [example.sequence for example in watched]
    assert targets[1] == sum(len(example.reply) for example in watched)


@pytest.mark.parametrize("track", ["policy", "e2e"])
def test_the_reasoned_prompt_is_the_direct_one_with_acts(parts, track):
    task = make(parts, track)
    acts, response = (task.serialiser.token(name) for name in (vocabulary.ACTS, vocabulary.RESPONSE))
    dialogue = task.corpus.dialogues("dev")[0]
    for prompt, example in zip(task.prompts(dialogue), task.examples("dev", reasoned=True), strict=False):
        assert prompt.direct[-1] == prompt.reasoned[-1] == response
        assert acts not in prompt.direct
        own = task.serialiser.acts_ids(dialogue.turns[prompt.turn].acts)
        assert prompt.reasoned[-len(own) - 2 :] == (acts, *own, response)
        assert example.sequence[: len(prompt.reasoned)] == prompt.reasoned


def test_given_states_replace_the_gold_ones(task):
    dialogue = task.corpus.dialogues("dev")[0]
    states = [{"hotel": {"area": "north"}} for _ in dialogue.turns]
    for prompt, gold in zip(task.prompts(dialogue, states), task.prompts(dialogue), strict=True):
        assert prompt.state == states[0]
        assert prompt.direct != gold.direct
        assert prompt.reference == gold.reference


def test_sampled_turns_are_grouped_by_dialogue(task):
    dialogues = task.corpus.dialogues("dev")
    prompts = [prompt for dialogue in dialogues for prompt in task.prompts(dialogue)]
    batch = task.sampled(prompts, [prompt.reference for prompt in prompts])
    assert [turns[0].dialogue.id for turns in batch.dialogues] == [dialogue.id for dialogue in dialogues]
    assert [len(turns) for turns in batch.dialogues] == [len(dialogue.turns) for dialogue in dialogues]
    for sampled in batch.turns:
        assert sampled.text == sampled.turn.delex
        assert sampled.tokens[-1] == task.eos_id


def test_the_same_dialogue_twice_in_a_rollout_stays_two(task):
    prompts = task.prompts(task.corpus.dialogues("dev")[0])
    batch = task.sampled(prompts * 2, [prompt.reference for prompt in prompts] * 2)
    assert [len(turns) for turns in batch.dialogues] == [len(prompts)] * 2


def test_the_corpus_replies_are_rewarded_as_they_should(task):
    prompts = [p for dialogue in task.corpus.dialogues("dev") for p in task.prompts(dialogue)]
    count = len(prompts)
    batch = task.sampled(prompts, [p.reference for p in prompts], np.full(count, -1.0), np.full(count, 0.7))
    streams = task.rewards(batch, REPLY)
    assert streams.names == STREAMS
    assert streams.rewards.shape == (count, REPLY, len(STREAMS))
    assert streams.applies.shape == streams.scores.shape == streams.weights.shape == (count, len(STREAMS))
    weights = streams.weights * streams.applies
    means = dict(zip(STREAMS, (weights * streams.scores).sum(0) / weights.sum(0), strict=True))
    assert means["likeness"] == pytest.approx(1.0, abs=1e-3)
    assert means["fluency"] == pytest.approx(1.0)
    assert means["naturalness"] == pytest.approx(0.7)
    # Nothing is rewarded past the end of a reply.
    past = np.arange(REPLY)[None] >= batch.lengths[:, None]
    assert not streams.rewards[past].any()
    scores = task.score(task.predict("dev", references(task, "dev")), "dev")
    assert means["inform"] == pytest.approx(scores["inform"] / 100, abs=5e-4)
    assert means["success"] == pytest.approx(scores["success"] / 100, abs=5e-4)


def test_predictions_of_the_policy_track(task):
    predictions = task.predict("dev", references(task, "dev"))
    for dialogue in task.corpus.dialogues("dev"):
        assert predictions[dialogue.id] == [{"response": turn.delex} for turn in dialogue.turns]
    assert list(task.predict("dev", references(task, "dev"), limit=1)) == [task.corpus.dialogues("dev")[0].id]


def test_prompts_after_the_corpus_replies_are_the_corpus_prompts(remembering):
    for dialogue in remembering.corpus.dialogues("dev"):
        prompts = remembering.prompts(dialogue)
        said = [prompt.reference for prompt in prompts]
        assert [remembering.prompts_after(prompts, said[:turn]) for turn in range(len(said))] == prompts


def test_prompts_after_own_replies_remember_those_and_not_the_corpus_ones(remembering, task):
    serialiser = remembering.serialiser
    domain = next(d for d in remembering.corpus.dialogues("dev") if len(d.turns) > 2 and d.turns[0].state)
    active, given = next(iter(domain.turns[0].state)), serialiser.reply_ids("call [phone] .")
    plain, prompts = task.prompts(domain), remembering.prompts(domain)
    # Silence gives nothing: as if nothing were remembered.
    assert remembering.prompts_after(prompts, [(task.eos_id,)]).direct == plain[1].direct
    phone = tuple(serialiser.token(vocabulary.marker(name)) for name in (active, "phone"))
    own = remembering.prompts_after(prompts, [given, (task.eos_id,)])
    assert own.direct == phone + plain[2].direct
    assert own.reasoned == phone + plain[2].reasoned
    assert (own.turn, own.state, own.reference) == (2, plain[2].state, plain[2].reference)


def test_end_to_end_own_replies_are_the_history(parts):
    task = make(parts, "e2e", given=True)
    dialogue = next(d for d in task.corpus.dialogues("dev") if len(d.turns) > 2)
    prompts = task.prompts(dialogue)
    first = task.prompts_after(prompts, [task.serialiser.reply_ids("zebra crossing")])
    assert "zebra crossing" in vocabulary.decode(task.tokenizer, first.direct)
    assert dialogue.turns[0].delex not in vocabulary.decode(task.tokenizer, first.direct)
    assert dialogue.turns[0].delex in vocabulary.decode(task.tokenizer, prompts[1].direct)
    policy = make(parts, "policy", given=True)
    shown = policy.prompts_after(policy.prompts(dialogue), [task.serialiser.reply_ids("zebra crossing")]).direct
    assert "zebra crossing" not in vocabulary.decode(task.tokenizer, shown)


def test_predictions_remember_what_was_predicted(remembering, task):
    """Turn after turn, all dialogues together; every model answers its own phone number from its second turn on."""
    asked = []

    def generate(prompts):
        asked.append(list(prompts))
        return [remembering.serialiser.reply_ids("[phone] it is.")] * len(prompts)

    predictions = remembering.predict("dev", generate)
    dialogues = remembering.corpus.dialogues("dev")
    for dialogue in dialogues:
        assert predictions[dialogue.id] == [{"response": "[phone] it is."}] * len(dialogue.turns)
    assert [len(prompts) for prompts in asked] == [
        sum(len(dialogue.turns) > turn for dialogue in dialogues)
        for turn in range(max(len(d.turns) for d in dialogues))
    ]
    phone = remembering.serialiser.token(vocabulary.marker("phone"))
    # Of the first dialogue, what stands before the utterances of each turn.
    first = remembering.serialiser.token(vocabulary.USER)
    heads = [prompts[0][: prompts[0].index(first)] for prompts in asked[: len(dialogues[0].turns)]]
    assert heads[0] == ()
    estimated = estimate_domains([turn.state for turn in dialogues[0].turns])
    for turn, head in enumerate(heads):
        active = {name for names in estimated[:turn] for name in names}
        markers = {remembering.serialiser.token(vocabulary.marker(name)) for name in active}
        assert {token for token in head if token in markers} == markers
        assert head.count(phone) == len(active)


def test_the_corpus_scores_100_bleu_against_itself(task):
    scores = task.score(task.predict("test", references(task, "test")), "test")
    assert scores["bleu"] == pytest.approx(100.0)
    assert scores["dialogues"] == len(task.corpus.dialogues("test"))
    assert scores["dst"] is None


def test_a_part_of_a_split_can_be_scored(task):
    predictions = task.predict("test", references(task, "test"), limit=1)
    assert task.score(predictions, "test")["dialogues"] == 1


def gold_states(task, seen):
    """A state writer that knows the gold states by the user utterance at the end of the prompt."""
    response_of = {}
    for dialogue in task.corpus.dialogues("dev"):
        for turn in dialogue.turns:
            response_of[task.serialiser.text_ids(turn.user)] = task.serialiser.state_ids(turn.state)
    state, user, database = (task.serialiser.token(n) for n in (vocabulary.STATE, vocabulary.USER, vocabulary.DATABASE))

    def write(prompts):
        seen.extend(prompts)
        assert all(prompt[-1] == state for prompt in prompts)
        said = [prompt[len(prompt) - prompt[::-1].index(user) : -1] for prompt in prompts]
        return [(*response_of[ids], database) for ids in said]

    return write


def test_end_to_end_turns_read_the_models_own_replies_and_states(end_to_end):
    task = end_to_end
    asked, state_prompts = [], []
    greeting = task.serialiser.reply_ids("[name] it is!")

    def answer(prompts):
        asked.extend(prompts)
        return [greeting] * len(prompts)

    predictions = task.predict("dev", answer, gold_states(task, state_prompts))
    dialogues = task.corpus.dialogues("dev")
    assert len(asked) == len(state_prompts) == sum(len(dialogue.turns) for dialogue in dialogues)
    for dialogue in dialogues:
        turns = predictions[dialogue.id]
        assert [turn["response"] for turn in turns] == ["[name] it is!"] * len(dialogue.turns)
        assert [turn["state"] for turn in turns] == [turn.state for turn in dialogue.turns]
    own, system = greeting[:-1], task.serialiser.token(vocabulary.SYSTEM)
    for prompt in asked:
        for place in (index for index, token in enumerate(prompt) if token == system):
            assert prompt[place + 1 : place + 1 + len(own)] == own
    scores = task.score(predictions, "dev")
    assert scores["dst"]["joint_accuracy"] == pytest.approx(100)
    assert scores["bleu"] < 20


def test_end_to_end_needs_a_state_writer(end_to_end):
    with pytest.raises(ValueError, match="needs generate_state"):
        end_to_end.predict("dev", lambda prompts: [])


def test_states_are_tracked_along_the_corpus(end_to_end):
    task = end_to_end
    dialogue = task.corpus.dialogues("dev")[0]
    states = task.track_states(list(task.corpus_history(dialogue)), gold_states(task, []))
    assert states == [turn.state for turn in dialogue.turns]


def test_what_the_scaffold_writes_is_cut_at_the_reply(task):
    response = task.serialiser.token(vocabulary.RESPONSE)
    assert task.split_reasoned((50, 51, response, 60, 1)) == ((50, 51), (60, 1))
    # It never came to its reply, or ended right after the marker.
    assert task.split_reasoned((50, 51)) == ((50, 51), (task.eos_id,))
    assert task.split_reasoned((50, response)) == ((50,), (task.eos_id,))
