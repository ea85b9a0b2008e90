"""Hidden states and values at the positions that predict a response, of any model."""

from __future__ import annotations

import jax

from morejax.models.dropout import Dropout


def response_hidden(
    model, tokens: jax.Array, mask: jax.Array, context: int, dropout: Dropout | None = None
) -> tuple[jax.Array, jax.Array]:
    """Hidden states that predict the response, and what `response_values` reads.

    A model with a `response_hidden` of its own computes nothing else (an `ActorCritic` leaves out what its last block
    would do on the context); any other gives all positions by `hidden`.

    Args:
      model: policy, i32[S, C+T] tokens and bool[S, C+T] mask: its input.
      context: C.
      dropout: noise of this pass, for a model whose `response_hidden` takes it; None: none.

    Returns:
      f32[S, T, D], and the same or f32[S, C+T, D].

    Raises:
      ValueError: dropout of a model without a `response_hidden` of its own.
    """
    if hasattr(model, "response_hidden"):
        noise = () if dropout is None else (dropout,)
        hidden = model.response_hidden(tokens, mask, context, *noise)
        return hidden, hidden
    if dropout is not None:
        raise ValueError(f"dropout needs a model with a `response_hidden`, which {type(model).__name__} has not")
    hidden = model.hidden(tokens, mask)
    return hidden[:, context - 1 : -1], hidden


def response_values(model, tokens: jax.Array, mask: jax.Array, hidden: jax.Array, context: int) -> jax.Array:
    """The critic's values f32[S, T, H] before every response token; `hidden` is the second of `response_hidden`."""
    if hasattr(model, "response_hidden"):
        return model.response_values(tokens, mask, hidden, context)
    return model.values(tokens, mask, hidden)[:, context - 1 : -1]
