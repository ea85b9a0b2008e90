"""What the critic and the frozen models say of sampled replies, in groups of rows with prompts of like length.

A rollout is as wide as its longest prompt; most are half as long, and forward passes over the padding in front of them
would take half of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from morejax.config import StepConfig
from morejax.models.response import response_hidden, response_values
from morejax.models.split import Bound, Params, merge
from morejax.rollout import token_logp
from morejax.training.placement import ONE_DEVICE, Placement
from morejax.training.reward_heads import judge

STEP = 64
"""Contexts are rounded up to a multiple of it: a group of rows has one of few shapes, each of which is compiled."""
GROUP = 64
"""Rows of a group."""


@dataclass(frozen=True)
class Frozen:
    """Models that PPO reads and never changes."""

    graphdef: nnx.GraphDef
    """Structure of reference and language model (no critic)."""
    reference: Params
    """The scaffold, or the model that PPO starts from (`ref_context`)."""
    language_model: Params
    """The supervised model: fluency, and the trunk of the naturalness head."""
    head_graphdef: nnx.GraphDef
    head: Params


class Assessment:
    """Rows of a rollout to what is said of them; every width of a group is compiled once.

    Args:
        graphdef: structure of the policy, with its critic.
        frozen: the models that judge.
        step: whether the exact KL needs the reference's whole distributions.
        reply: T.
        placement: where rows lie. Cut over a mesh they are one group: parts of a row's width would lie apart.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef | Bound,
        frozen: Frozen,
        step: StepConfig,
        reply: int,
        placement: Placement = ONE_DEVICE,
    ):
        self._frozen, self._reply, self._placement = frozen, reply, placement
        self._assess = _compiled(graphdef, frozen, step, reply)

    def __call__(
        self,
        params: Params,
        values: Any,
        tokens: np.ndarray,
        mask: np.ndarray,
        ref_tokens: np.ndarray,
        ref_mask: np.ndarray,
        spoken: tuple[np.ndarray, np.ndarray] | tuple[()] = (),
    ) -> dict[str, Any]:
        """Judge S rows.

        Args:
            params: the policy's.
            values: f32[S, T, H] where the sampler gave them, else None.
            tokens, mask: i32[S, C+T], bool[S, C+T]: the policy's prompts, left-padded, and replies.
            ref_tokens, ref_mask: the same with the reference's prompts.
            spoken: tokens and mask that language is judged by; the policy's own where there are none.

        Returns:
            values f32[S, T, H], None without a critic; logp_ref f32[S, T]; lm_logp, natural f32[S]; with the exact KL
            ref_logps f32[S, T, V].
        """
        frozen = self._frozen
        models = (frozen.reference, frozen.language_model, frozen.head)
        if self._placement.mesh is not None:
            placed = self._placement.rows((tokens, mask, ref_tokens, ref_mask, *spoken))
            return self._assess(params, values, *models, *placed)
        groups = by_length(np.max([self._used(one) for one in (mask, ref_mask, *spoken[1:])], axis=0))
        found = []
        for rows, used in groups:
            arrays = (tokens, mask, ref_tokens, ref_mask, *spoken)
            cut = [_cut(array[rows], self._reply + used) for array in arrays]
            known = None if values is None else jnp.asarray(values)[rows]
            found.append(self._assess(params, known, *models, *cut))
        if len(found) == 1:
            return found[0]
        back = np.argsort(np.concatenate([rows for rows, _ in groups]))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *found)

    def _used(self, mask: np.ndarray) -> np.ndarray:
        """Tokens of every row's prompt."""
        return mask[:, : mask.shape[1] - self._reply].sum(1)


def by_length(used: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Rows in groups of `GROUP`, shortest first, each with a length that holds all of them; all in one, in their order,
    where they do not fill such groups.

    Args:
        used: i64[S], lengths.

    Returns:
        (rows, length in multiples of `STEP`).
    """
    if len(used) <= GROUP or len(used) % GROUP:
        return [(np.arange(len(used)), _rounded(used))]
    order = np.argsort(used, kind="stable").reshape(-1, GROUP)
    return [(rows, _rounded(used[rows])) for rows in order]


def _rounded(used: np.ndarray) -> int:
    return -(-int(used.max()) // STEP) * STEP


def _cut(array: np.ndarray, width: int) -> np.ndarray:
    """The last columns, or all."""
    return array[:, max(0, array.shape[1] - width) :]


def _compiled(graphdef: nnx.GraphDef | Bound, frozen: Frozen, step: StepConfig, reply: int) -> Callable[..., dict]:
    """A jitted (params, values, reference, language model, head, tokens, mask, ref tokens, ref mask, what was spoken
    where that is something else) -> dict."""

    def assess(params, values, reference, language_model, head, tokens, mask, ref_tokens, ref_mask, *spoken):
        context, reasoned = tokens.shape[1] - reply, ref_tokens.shape[1] - reply
        if values is None and "value" in params:
            model = merge(graphdef, params)
            _, read = response_hidden(model, tokens, mask, context)
            values = response_values(model, tokens, mask, read, context)
        ref = merge(frozen.graphdef, reference)
        ref_hidden, _ = response_hidden(ref, ref_tokens, ref_mask, reasoned)
        ref_logps = jax.nn.log_softmax(ref.logits(ref_hidden), axis=-1)
        said = spoken or (tokens, mask)
        lm_logp, natural = judge(
            frozen.graphdef, frozen.head_graphdef, language_model, head, *said, said[0].shape[1] - reply
        )
        out = {
            "values": values,
            "logp_ref": token_logp(ref_logps, tokens[:, context:]),
            "lm_logp": lm_logp,
            "natural": natural,
        }
        return out | ({"ref_logps": ref_logps} if step.kl == "full" else {})

    return jax.jit(assess)
