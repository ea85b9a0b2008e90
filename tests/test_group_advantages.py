"""Advantages that look beyond one sequence: prompt groups, later turns, the whitened mixture of the streams."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from morejax.advantages import GROUP_ADVANTAGES, discount_over_turns, group_advantages, whiten_mixture

GROUPS = 5
jitted_groups = jax.jit(group_advantages, static_argnames=("how", "axis_name", "groups"))
jitted_turns = jax.jit(discount_over_turns)
jitted_mixture = jax.jit(whiten_mixture)


DEVICES = ("pmap", "shard_map", "mesh")


def over_devices(function, how, *arrays):
    """`function(axis_name, *arrays)` with the sequences cut over 8 devices, joined again."""
    mesh, spec = Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
    if how == "pmap":
        out = jax.pmap(partial(function, "data"), axis_name="data")(*(x.reshape(8, -1, *x.shape[1:]) for x in arrays))
        return out.reshape(-1, *out.shape[2:])
    if how == "shard_map":
        return jax.jit(jax.shard_map(partial(function, "data"), mesh=mesh, in_specs=spec, out_specs=spec))(*arrays)
    cut = NamedSharding(mesh, spec)
    return jax.jit(partial(function, None), in_shardings=cut, out_shardings=cut)(*arrays)


def group_batch(seed, sequences=16, streams=3):
    """Groups of 0 to many members in any order; the last stream applies to nobody; what does not apply is NaN."""
    rng = np.random.default_rng(seed)
    applies = rng.random((sequences, streams)) < 0.7
    applies[:, -1] = False
    returns = np.where(applies, rng.normal(2.0, 3.0, size=(sequences, streams)), np.nan).astype(np.float32)
    return returns, applies, rng.integers(0, GROUPS, sequences).astype(np.int32)


def group_loop(returns, applies, group, how):
    """The definitions, one sequence at a time, in float64."""
    out = np.zeros(returns.shape)
    for s, h in zip(*np.nonzero(applies), strict=True):
        members = np.flatnonzero((group == group[s]) & applies[:, h])
        if len(members) == 1:
            continue
        mine, everyone = float(returns[s, h]), returns[members, h].astype(np.float64)
        if how == "leave_one_out":
            out[s, h] = mine - returns[members[members != s], h].astype(np.float64).mean()
        else:
            out[s, h] = mine - everyone.mean()
        if how == "standardised":
            out[s, h] /= everyone.std(ddof=1) + 1e-4
    return out


def test_group_advantages_by_hand():
    """Group 0: returns 1, 2, 6 (and 50, where the stream does not apply); group 2: 7 alone; group 1: nobody.

    mean            1 - 3, 2 - 3, 6 - 3
    leave_one_out   1 - 8/2, 2 - 7/2, 6 - 3/2
    standardised    std = sqrt((4 + 1 + 9) / 2) = sqrt(7)
    """
    returns = jnp.array([1.0, 7.0, 2.0, 50.0, 6.0])[:, None]
    applies = jnp.array([True, True, True, False, True])[:, None]
    group = jnp.array([0, 2, 0, 0, 0])
    got = {how: group_advantages(returns, applies, group, how, None, groups=3)[:, 0] for how in GROUP_ADVANTAGES}
    np.testing.assert_allclose(got["mean"], [-2, 0, -1, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(got["leave_one_out"], [-3, 0, -1.5, 0, 4.5], rtol=1e-6)
    root = np.sqrt(7) + 1e-4
    np.testing.assert_allclose(got["standardised"], [-2 / root, 0, -1 / root, 0, 3 / root], rtol=1e-6)


@pytest.mark.parametrize("how", GROUP_ADVANTAGES)
@given(seed=st.integers(0, 2**31 - 1))
def test_group_advantages_equal_their_definition(how, seed):
    returns, applies, group = group_batch(seed)
    got = jitted_groups(*map(jnp.asarray, (returns, applies, group)), how, None, groups=GROUPS)
    np.testing.assert_allclose(got, group_loop(returns, applies, group, how), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[~applies], 0)


@pytest.mark.parametrize("how", GROUP_ADVANTAGES)
@given(seed=st.integers(0, 2**31 - 1))
def test_what_is_common_to_a_group_changes_nothing(how, seed):
    """A constant for every prompt and the names of the groups: no sequence is better than its peers by them."""
    returns, applies, group = group_batch(seed)
    rng = np.random.default_rng(seed)
    prompts = rng.normal(0.0, 5.0, size=(GROUPS, 1)).astype(np.float32)
    renamed = rng.permutation(GROUPS).astype(np.int32)[group]
    plain = jitted_groups(*map(jnp.asarray, (returns, applies, group)), how, None, groups=GROUPS)
    other = jitted_groups(*map(jnp.asarray, (returns + prompts[group], applies, renamed)), how, None, groups=GROUPS)
    np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", GROUP_ADVANTAGES)
@given(seed=st.integers(0, 2**31 - 1))
def test_sequences_permute_and_outsiders_do_not_count(how, seed):
    """Order does not matter; a sequence that the stream does not apply to may be added to any group."""
    returns, applies, group = group_batch(seed)
    plain = jitted_groups(*map(jnp.asarray, (returns, applies, group)), how, None, groups=GROUPS)
    order = np.random.default_rng(seed).permutation(len(group))
    shuffled = jitted_groups(*(jnp.asarray(x[order]) for x in (returns, applies, group)), how, None, groups=GROUPS)
    np.testing.assert_allclose(shuffled, plain[order], rtol=1e-4, atol=1e-5)
    wider = (
        np.concatenate([returns, np.full((GROUPS, 3), np.inf, np.float32)]),
        np.concatenate([applies, np.zeros((GROUPS, 3), bool)]),
        np.concatenate([group, np.arange(GROUPS, dtype=np.int32)]),
    )
    more = jitted_groups(*map(jnp.asarray, wider), how, None, groups=GROUPS)
    np.testing.assert_array_equal(more[: len(group)], plain)
    np.testing.assert_array_equal(more[len(group) :], 0)


@pytest.mark.parametrize("how", GROUP_ADVANTAGES)
@pytest.mark.parametrize("constant", [0.7, -3e6])
def test_rounding_of_equal_returns_is_no_advantage(how, constant):
    """The float32 mean of seven equal returns may be half a unit off, 0.1 at 3e6, and sums of rewards one unit."""
    applies, group = jnp.ones((7, 1), bool), jnp.zeros(7, jnp.int32)
    for noise in (0.0, 1e-7):
        returns = jnp.float32(constant) * (1.0 + noise * (jnp.arange(7.0)[:, None] % 2))
        np.testing.assert_array_equal(group_advantages(returns, applies, group, how, None, groups=1), np.zeros((7, 1)))
    apart = group_advantages(returns.at[0].multiply(1.001), applies, group, how, None, groups=1)
    assert bool(jnp.all(apart != 0))


def test_a_group_number_out_of_range_is_seen():
    """Its own advantages become NaN, which stops a run; where no stream applies there is nothing to see."""
    returns, applies = jnp.array([[1.0], [2.0], [4.0], [8.0]]), jnp.array([[True], [True], [True], [False]])
    got = group_advantages(returns, applies, jnp.array([0, 2, -1, 2]), "mean", None, groups=2)
    np.testing.assert_array_equal(got[:, 0], [0.0, np.nan, np.nan, 0.0])


def test_unknown_group_advantage_is_named():
    with pytest.raises(ValueError, match="'median', expected one of mean, leave_one_out, standardised"):
        group_advantages(jnp.zeros((2, 1)), jnp.ones((2, 1), bool), jnp.zeros(2, jnp.int32), "median", None, groups=1)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("how", GROUP_ADVANTAGES)
def test_groups_may_lie_across_devices(how, devices):
    returns, applies, group = map(jnp.asarray, group_batch(3))
    homes = {int(g): set(np.flatnonzero(np.asarray(group) == g) // 2) for g in set(group.tolist())}
    assert max(map(len, homes.values())) > 2  # two sequences a device
    one = jitted_groups(returns, applies, group, how, None, groups=GROUPS)
    many = over_devices(
        lambda axis, r, a, g: group_advantages(r, a, g, how, axis, groups=GROUPS), devices, returns, applies, group
    )
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def turn_batch(seed, sequences=16, streams=2):
    """Dialogues with gaps between their turns, in any order; two rows may be the same turn."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(sequences, streams)).astype(np.float32)
    dialogue = rng.integers(0, 4, sequences).astype(np.int32)
    return reward, dialogue, rng.integers(0, 7, sequences).astype(np.int32), np.array([0.9, 0.5], np.float32)


def test_turn_discount_by_hand():
    """gamma 1/2 and 0. Dialogue 4: reward 1 at turn 0, 2 at turn 1, 8 at turn 3; dialogue 9: 100 at turn 2.

    turn 0: 2/2 + 8/8 = 2,  turn 1: 8/4 = 2,  turn 3 and the other dialogue: nothing comes later
    """
    reward = jnp.array([8.0, 1.0, 100.0, 2.0])[:, None] * jnp.ones((1, 2))
    got = discount_over_turns(reward, jnp.array([4, 4, 9, 4]), jnp.array([3, 0, 2, 1]), jnp.array([0.5, 0.0]))
    np.testing.assert_allclose(got, [[0, 0], [2, 0], [0, 0], [2, 0]], rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_turn_discount_equals_its_sum(seed):
    reward, dialogue, turn, gamma = turn_batch(seed)
    expected = np.zeros(reward.shape)
    for s, later in np.ndindex(len(turn), len(turn)):
        if dialogue[s] == dialogue[later] and turn[later] > turn[s]:
            expected[s] += gamma.astype(np.float64) ** int(turn[later] - turn[s]) * reward[later]
    got = jitted_turns(*map(jnp.asarray, (reward, dialogue, turn, gamma)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_turn_returns_obey_their_recursion(seed):
    """With own rewards added, G_t = r_t + gamma G_{t+1} along every dialogue: what a scan would compute."""
    rng = np.random.default_rng(seed)
    dialogue, turn = np.divmod(rng.permutation(20).astype(np.int32), 5)
    reward, gamma = rng.normal(size=(20, 2)).astype(np.float32), np.array([1.0, 0.7], np.float32)
    returns = reward + np.asarray(jitted_turns(*map(jnp.asarray, (reward, dialogue, turn, gamma))))
    for s in np.flatnonzero(turn < 4):
        (following,) = np.flatnonzero((dialogue == dialogue[s]) & (turn == turn[s] + 1))
        np.testing.assert_allclose(returns[s], reward[s] + gamma * returns[following], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 2**31 - 1))
def test_other_dialogues_and_earlier_turns_never_count(seed):
    """Not even a NaN in them: only a later turn of the same dialogue is read."""
    reward, dialogue, turn, gamma = turn_batch(seed)
    plain = jitted_turns(*map(jnp.asarray, (reward, dialogue, turn, gamma)))
    unread = (dialogue != dialogue[0]) | (turn <= turn[0])
    dirty = np.where(unread[:, None], np.float32(np.nan), reward)
    got = jitted_turns(*map(jnp.asarray, (dirty, dialogue, turn, gamma)))
    np.testing.assert_array_equal(got[0], plain[0])


@pytest.mark.parametrize("devices", DEVICES)
def test_dialogues_may_lie_across_devices(devices):
    reward, dialogue, turn, gamma = map(jnp.asarray, turn_batch(2))
    one = discount_over_turns(reward, dialogue, turn, gamma)
    assert int(jnp.count_nonzero(one[:, 0])) > 8  # two sequences a device: most of it comes from elsewhere
    many = over_devices(
        lambda axis, r, d, t: discount_over_turns(r, d, t, gamma, axis), devices, reward, dialogue, turn
    )
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def mixture_batch(seed, sequences=16, tokens=4, streams=3):
    rng = np.random.default_rng(seed)
    advantages = rng.normal(1.0, [0.1, 1.0, 5.0], size=(sequences, tokens, streams)).astype(np.float32)
    resp_mask = np.arange(tokens)[None] < rng.integers(1, tokens + 1, sequences)[:, None]
    mask = resp_mask[..., None] & (rng.random((sequences, 1, streams)) < 0.7)
    return np.where(mask, advantages, np.nan).astype(np.float32), mask, resp_mask, rng.normal(size=3).astype(np.float32)


def test_whitened_mixture_by_hand():
    """Tokens 1, 3 | 5 and one of padding; the second stream applies to the first sequence only: 2, 6.

    centred     -2, 0 | 2           and     -2, 2 | not there
    a = 1, 1/2  mixture -3, 1 | 2, mean 0, variance (9 + 1 + 4) / 3 = 14/3
    """
    advantages = jnp.array([[[1.0, 2.0], [3.0, 6.0]], [[5.0, jnp.nan], [jnp.nan, jnp.nan]]])
    mask = jnp.array([[[True, True], [True, True]], [[True, False], [False, False]]])
    got = whiten_mixture(advantages, mask, mask[..., 0], jnp.array([1.0, 0.5]))
    sigma = np.sqrt(14 / 3)
    np.testing.assert_allclose(got[..., 0], np.array([[-2, 0], [2, 0]]) / sigma, rtol=1e-6)
    np.testing.assert_allclose(got[..., 1], np.array([[-2, 2], [0, 0]]) / sigma, rtol=1e-6)


@given(st.integers(0, 2**31 - 1))
def test_the_mixture_becomes_standard(seed):
    """Mean 0 and variance 1 over the response tokens, and the streams keep their proportions."""
    advantages, mask, resp_mask, mix = mixture_batch(seed)
    got = np.asarray(jitted_mixture(*map(jnp.asarray, (advantages, mask, resp_mask, mix))), np.float64)
    mixture = (got * mix).sum(-1)[resp_mask]
    np.testing.assert_allclose([mixture.mean(), mixture.std()], [0.0, 1.0], atol=1e-4)
    np.testing.assert_array_equal(got[~mask], 0)
    spread = [np.std(advantages[..., h][mask[..., h]]) for h in range(3)]
    kept = [np.std(got[..., h][mask[..., h]]) for h in range(3)]
    np.testing.assert_allclose(np.divide(kept, spread) / (kept[0] / spread[0]), np.ones(3), rtol=1e-4)


@given(st.integers(0, 2**31 - 1), st.floats(0.01, 100.0))
def test_the_unit_of_the_rewards_does_not_matter(seed, unit):
    advantages, mask, resp_mask, mix = map(jnp.asarray, mixture_batch(seed))
    plain = jitted_mixture(advantages, mask, resp_mask, mix)
    scaled = jitted_mixture(jnp.float32(unit) * advantages, mask, resp_mask, mix)
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)


def test_where_all_streams_apply_it_is_the_whitened_sum():
    """Centring the streams is then centring the sum, as GDPO and sum-then-normalise write it."""
    advantages, _, resp_mask, mix = mixture_batch(4)
    advantages = np.nan_to_num(advantages, nan=0.3)
    full = np.broadcast_to(resp_mask[..., None], advantages.shape)
    got = whiten_mixture(jnp.asarray(advantages), jnp.asarray(full), jnp.asarray(resp_mask), jnp.asarray(mix))
    summed = (advantages.astype(np.float64) * mix).sum(-1)
    expected = (summed - summed[resp_mask].mean()) / summed[resp_mask].std()
    np.testing.assert_allclose((np.asarray(got) * mix).sum(-1)[resp_mask], expected[resp_mask], rtol=1e-4, atol=1e-5)


def test_a_mixture_without_variance_stays_small():
    """Constant streams, weights of 0, and nothing valid at all: rounding is not blown up, and nothing is NaN."""
    constant = jnp.full((1, 1000, 2), 0.7)
    everywhere, resp_mask, mix = jnp.ones((1, 1000, 2), bool), jnp.ones((1, 1000), bool), jnp.ones(2)
    assert float(jnp.abs(whiten_mixture(constant, everywhere, resp_mask, mix)).max()) < 0.05
    assert bool(jnp.all(jnp.isfinite(whiten_mixture(constant, everywhere, resp_mask, 0.0 * mix))))
    np.testing.assert_array_equal(whiten_mixture(constant, ~everywhere, ~resp_mask, mix), jnp.zeros_like(constant))


def test_gdpo_by_hand():
    """Both steps together. Two prompts of two; stream 0 tells them apart in both, stream 1 in the second only.

    standardised: stream 0 -z, z | -z, z and stream 1 0, 0 | z', -z' with z = .5/(sqrt(1/2) + 1e-4), z' = 5/(sqrt(50) +
    1e-4): both sqrt(1/2) to four digits. Equal weights: the sum is -z, z | 0, 0, its deviation z / sqrt(2).
    """
    returns = jnp.array([[0.0, 3.0], [1.0, 3.0], [0.0, 10.0], [1.0, 0.0]])
    everyone, group = jnp.ones((4, 2), bool), jnp.array([0, 0, 1, 1])
    advantages = group_advantages(returns, everyone, group, "standardised", None, groups=2)
    got = whiten_mixture(advantages[:, None], everyone[:, None], everyone[:, :1], jnp.ones(2))[:, 0]
    one = np.sqrt(2.0)
    np.testing.assert_allclose(got, [[-one, 0], [one, 0], [-one, one], [one, -one]], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("devices", DEVICES)
def test_eight_devices_whiten_like_one(devices):
    advantages, mask, resp_mask, mix = map(jnp.asarray, mixture_batch(3))
    one = whiten_mixture(advantages, mask, resp_mask, mix)
    many = over_devices(lambda axis, a, m, r: whiten_mixture(a, m, r, mix, axis), devices, advantages, mask, resp_mask)
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
