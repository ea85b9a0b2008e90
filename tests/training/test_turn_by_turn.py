"""Turn by turn: every reply is drawn after those before it, and stands in its row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from morejax.rollout import Sample
from morejax.training.turn_by_turn import sample_turn_by_turn

END = 1


@dataclass(frozen=True)
class Prompt:
    """Of turn `turn` of the dialogue with this number."""

    number: int
    turn: int
    direct: tuple[int, ...]


class Task:
    """A prompt is the dialogue's number and the first tokens of all replies so far."""

    pad_id = 0

    def prompts_after(self, prompts, said):
        first = prompts[len(said)]
        assert [prompt.turn for prompt in prompts] == list(range(len(prompts)))
        return replace(first, direct=(first.number, *(ids[0] for ids in said)))


class Model:
    """Answers with (dialogue's number + turn, turn, end); remembers the shapes it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, mask, key):
        self.asked.append(prompts.shape)
        lengths = mask.sum(-1)
        number = prompts[np.arange(len(prompts)), prompts.shape[1] - lengths]
        tokens = np.stack([number + lengths - 1, lengths - 1, np.full_like(number, END)], 1)
        valid = np.ones(tokens.shape, bool)
        values = np.stack([tokens + 0.5] * 2, -1)
        return Sample(jax.numpy.asarray(tokens), jax.numpy.asarray(valid), -tokens.astype(np.float32), values)


def dialogues(*sizes):
    return [
        Prompt(10 * (number + 1), turn, (10 * (number + 1),))
        for number, size in enumerate(sizes)
        for turn in range(size)
    ]


@pytest.mark.parametrize("block", [1, 2, 8])
def test_every_reply_follows_those_before_it(block):
    prompts, model = dialogues(2, 4, 1), Model()
    made, sample = sample_turn_by_turn(model, Task(), prompts, 5, 9, jax.random.key(0), block=block, width=block)
    assert [prompt.direct for prompt in made] == [
        *((10,), (10, 10)),
        *((20,), (20, 20), (20, 20, 21), (20, 20, 21, 22)),
        (30,),
    ]
    assert sample.tokens.tolist() == [
        *([10, 0, 1], [11, 1, 1]),
        *([20, 0, 1], [21, 1, 1], [22, 2, 1], [23, 3, 1]),
        [30, 0, 1],
        # Rows beyond the prompts repeat the first.
        *([10, 0, 1], [10, 0, 1]),
    ]
    np.testing.assert_array_equal(sample.logp, -sample.tokens)
    np.testing.assert_array_equal(sample.values, np.stack([sample.tokens + 0.5] * 2, -1))
    assert sample.logp_drawn is None
    # Three dialogues have a first turn, two a second, one a third and a fourth.
    assert model.asked == [(block, 5)] * sum(-(-rows // block) for rows in (3, 2, 1, 1))


def test_no_two_calls_share_a_key():
    keys = []

    def draw(prompts, mask, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return Model()(prompts, mask, key)

    sample_turn_by_turn(draw, Task(), dialogues(3, 2), 5, 5, jax.random.key(0), block=1, width=1)
    assert len(set(keys)) == 5


def test_samples_of_one_dialogue_go_on_from_their_own_replies():
    class Drawing(Model):
        """Every row its own first token."""

        def __call__(self, prompts, mask, key):
            sample = super().__call__(prompts, mask, key)
            tokens = sample.tokens.at[:, 0].set(100 * len(self.asked) + jax.numpy.arange(len(prompts)))
            return sample._replace(tokens=tokens)

    prompts = dialogues(2) * 3
    made, sample = sample_turn_by_turn(Drawing(), Task(), prompts, 5, 6, jax.random.key(0), block=4, width=4)
    assert [prompt.direct for prompt in made[1::2]] == [(10, 100), (10, 101), (10, 102)]
    assert sample.tokens[1::2, 0].tolist() == [200, 201, 202]
