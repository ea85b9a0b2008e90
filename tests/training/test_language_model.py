"""Maximum likelihood: the loss by hand, learning, and training that stops, goes on and diverges as promised."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from morejax.models import ActorCritic, DecoderConfig, split
from morejax.models.dropout import Dropout
from morejax.models.response import response_hidden
from morejax.models.split import merge
from morejax.training import language_model
from morejax.training.batching import Sequences
from morejax.training.interrupt import Interrupted
from morejax.training.language_model import LanguageModelConfig, NonFinite, evaluate_loss, make_optimizer, target_loss

VOCAB, PAD = 64, 0

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def model(core):
    config = DecoderConfig(vocab_size=VOCAB, max_length=64, layers=1, width=16, heads=2)
    graphdef, abstract = split(nnx.eval_shape(lambda: ActorCritic(config, rngs=nnx.Rngs(0))))
    return graphdef, core.random_params(abstract)


def copies(count, length=20, reply=6):
    """A prompt that is counted up by a constant; the reply goes on counting."""
    starts = np.random.default_rng(0).integers(1, VOCAB - length, count)
    tokens = tuple(tuple(range(start, start + length)) for start in starts.tolist())
    return Sequences(tokens, ((False,) * (length - reply) + (True,) * reply,) * count)


class Stop:
    """A stop request that comes after so many looks at it."""

    def __init__(self, after=10**9, number=signal.SIGTERM):
        self.left, self.number = after, number

    def __bool__(self):
        self.left -= 1
        return self.left <= 0

    def raise_if_set(self):
        if self.left <= 0:
            raise Interrupted(self.number)


CONFIG = LanguageModelConfig(
    epochs=2.5,
    tokens_per_batch=256,
    learning_rate=0.01,
    checkpoint_every=4,
    log_every=2,
    token_dropout=0.1,
    dropout=0.1,
)


def fit(model, folder, *, config=CONFIG, stop=None, seed=0):
    return language_model.fit(
        "supervised",
        *model,
        copies(30),
        copies(8),
        config,
        run_dir=folder,
        seed=seed,
        pad_id=PAD,
        drop_id=PAD,
        stop=Stop() if stop is None else stop,
    )


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


jitted_loss = jax.jit(target_loss, static_argnums=0)


def test_loss_is_the_mean_over_targets(model):
    graphdef, params = model
    tokens = np.array([[0, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8]])
    mask = tokens > 0
    targets = np.array([[True, False, True], [False, False, True]])

    @jax.jit
    def log_probabilities(params):
        network = merge(graphdef, params)
        return jax.nn.log_softmax(network.logits(network.hidden(tokens, mask)))

    logps = log_probabilities(params)
    expected = -(logps[0, 2, 7] + logps[0, 4, 9] + logps[1, 4, 8]) / 3
    loss, count = jitted_loss(graphdef, params, tokens, mask, targets)
    assert count == 3
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_loss_and_gradient_are_the_same_with_the_head_on_the_targets_alone(model):
    graphdef, params = model
    tokens, mask = np.arange(1, 25).reshape(2, 12) % VOCAB, np.ones((2, 12), bool)
    targets = np.array([[True, False, False, True, False, False], [False, True, False, False, False, False]])
    picked = np.array([[0, 3], [1, 0]])
    graded = jax.jit(jax.value_and_grad(target_loss, argnums=1, has_aux=True), static_argnums=0)
    (loss, count), grads = graded(graphdef, params, tokens, mask, targets)
    (found, same), found_grads = graded(graphdef, params, tokens, mask, targets, picked)
    assert count == same == 3
    assert found == pytest.approx(float(loss), rel=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(found_grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_model_that_knows_nothing_pays_log_v(model):
    graphdef, params = model
    zeros = jax.tree.map(jnp.zeros_like, params)
    loss, _ = jitted_loss(graphdef, zeros, np.full((2, 8), 5), np.ones((2, 8), bool), np.ones((2, 3), bool))
    assert loss == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_no_targets_no_loss(model):
    graphdef, params = model
    loss, count = jitted_loss(graphdef, params, np.full((2, 8), 5), np.ones((2, 8), bool), np.zeros((2, 3), bool))
    assert (float(loss), int(count)) == (0.0, 0)


def test_loss_of_a_split_does_not_depend_on_the_batches(model):
    graphdef, params = model
    # 16 and 8 rows a batch: a multiple of both, so that no sequence is counted twice.
    losses = [
        evaluate_loss(graphdef, params, copies(16), LanguageModelConfig(tokens_per_batch=tokens, bucket=bucket), PAD)
        for tokens, bucket in ((512, 32), (64, 32), (512, 16))
    ]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_dropout_is_of_the_step_and_of_training_alone(model):
    """The loss that an update reports has the noise of (seed, step): the same again for the same two, else another.

    A state is donated, so each update has one of its own."""
    graphdef, params = model
    tx = make_optimizer(CONFIG, 10)
    batch = np.arange(1, 25).reshape(2, 12), np.ones((2, 12), bool), np.ones((2, 6), bool)
    plain = float(jitted_loss(graphdef, params, *batch)[0])

    def loss(step, seed, rate=0.3):
        update = language_model.compile_update(graphdef, tx, dropout=rate, seed=seed)
        state = language_model.fresh_state(params, tx, language_model.ONE_DEVICE)
        return float(update(state.replace(step=jnp.int32(step)), *batch)[1])

    first, again, later, other = loss(0, 0), loss(0, 0), loss(1, 0), loss(0, 1)
    assert first == again
    assert len({plain, first, later, other}) == 4
    assert loss(0, 0, rate=0.0) == pytest.approx(plain, rel=1e-6)


def test_dropout_of_a_model_that_cannot_is_refused():
    class Bare:
        def hidden(self, tokens, mask):
            return jnp.zeros((*tokens.shape, 1))

    tokens = jnp.zeros((1, 4), int)
    assert response_hidden(Bare(), tokens, tokens > -1, 2)[0].shape == (1, 2, 1)
    with pytest.raises(ValueError, match="Bare has not"):
        response_hidden(Bare(), tokens, tokens > -1, 2, Dropout(jax.random.key(0), 0.1))


def test_only_matrices_decay():
    params = {"up": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "embedding": jnp.ones((3, 2))}
    config = LanguageModelConfig(learning_rate=0.1, warmup=0.0, weight_decay=0.5, max_grad_norm=1.0)
    tx = make_optimizer(config, 10)
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step's rate is 0
        updates, state = jax.jit(tx.update)(zeros, state, params)
    moved = optax.apply_updates(params, updates)
    assert np.all(np.asarray(moved["up"]["kernel"]) == pytest.approx(1 - 0.1 * 0.5))
    np.testing.assert_array_equal(moved["up"]["bias"], params["up"]["bias"])
    np.testing.assert_array_equal(moved["embedding"], params["embedding"])


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"must be one of adam, .*, not 'adamw'"):
        LanguageModelConfig(optimizer="adamw")


@pytest.mark.parametrize("name", ["epochs", "tokens_per_batch", "bucket", "learning_rate", "max_grad_norm"])
def test_settings_that_make_no_sense(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, not 0"):
        LanguageModelConfig(**{name: 0})


@pytest.mark.parametrize("name", ["token_dropout", "dropout"])
def test_dropping_everything_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), not 1"):
        LanguageModelConfig(**{name: 1})


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, fit(model, folder)


def test_it_learns_and_reports(model, undisturbed):
    folder, (params, record) = undisturbed
    # 30 sequences in batches of 8 are 4 batches an epoch.
    assert record["steps"] == 10
    assert record["tokens"] == 10 * 8 * 20
    before = evaluate_loss(*model, copies(8), CONFIG, PAD)
    assert record["dev_loss"] < before - 0.3
    assert record["dev_loss"] == pytest.approx(evaluate_loss(model[0], params, copies(8), CONFIG, PAD))
    lines = logged(folder)
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 10]
    assert lines[-1]["dev_loss"] == record["dev_loss"]
    assert {"loss", "grad_norm"} <= lines[0].keys()


def test_the_callers_parameters_are_not_taken(model, undisturbed):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model[1]))


@pytest.mark.parametrize("stop_after", [1, 4, 10])
def test_stopped_anywhere_it_ends_up_in_the_same_place(model, undisturbed, tmp_path, stop_after):
    folder, (params, record) = undisturbed
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        fit(model, tmp_path, stop=Stop(stop_after))
    assert (tmp_path / "checkpoints" / "supervised" / str(stop_after)).is_dir()
    resumed, again = fit(model, tmp_path)
    assert_same(resumed, params)
    assert again == record
    assert logged(tmp_path) == logged(folder)


def test_an_optimizer_of_several_parts_goes_on_too(model, tmp_path):
    """Muon keeps a momentum of some parameters and Adam's moments of the others."""
    config = replace(CONFIG, epochs=1, optimizer="muon")
    params, record = fit(model, tmp_path / "whole", config=config)
    with pytest.raises(Interrupted):
        fit(model, tmp_path / "cut", config=config, stop=Stop(2))
    resumed, again = fit(model, tmp_path / "cut", config=config)
    assert_same(resumed, params)
    assert again == record
    assert record["dev_loss"] != fit(model, tmp_path / "adam", config=replace(config, optimizer="adam"))[1]["dev_loss"]


def test_lost_steps_are_taken_again(model, undisturbed, tmp_path):
    """A crash between two checkpoints: the log past the last one is dropped and written again."""
    folder, (params, record) = undisturbed

    class Crash(Stop):
        def raise_if_set(self):
            raise MemoryError

        def __bool__(self):
            self.left -= 1
            if self.left == 0:
                raise MemoryError
            return False

    with pytest.raises(MemoryError):
        fit(model, tmp_path, stop=Crash(7))
    assert logged(tmp_path)[-1]["step"] == 6
    resumed, again = fit(model, tmp_path)
    assert_same(resumed, params)
    assert again == record
    assert logged(tmp_path) == logged(folder)


def test_another_seed_is_another_order(model, undisturbed, tmp_path):
    _, record = fit(model, tmp_path, seed=1)
    assert record["dev_loss"] != undisturbed[1][1]["dev_loss"]


def test_divergence_stops_and_names_stage_and_step(model, tmp_path):
    config = LanguageModelConfig(epochs=3, tokens_per_batch=256, learning_rate=1e30, checkpoint_every=1, log_every=1)
    with pytest.raises(NonFinite, match=r"supervised, step (\d+): the (loss|gradient norm) is (nan|inf)") as caught:
        fit(model, tmp_path, config=config)
    step = int(str(caught.value).split("step ")[1].split(":")[0])
    kept = [int(path.name) for path in (tmp_path / "checkpoints" / "supervised").iterdir()]
    assert kept == [step - 1]
