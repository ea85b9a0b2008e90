"""What the stages of a run share, whatever the task: the models, and what earlier stages have left of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flax import nnx

from morejax.models import ActorCritic, LoraConfig
from morejax.models.decoder_config import DecoderConfig
from morejax.models.lora import merge_adapters, partition
from morejax.models.split import Bound, Params, whole
from morejax.training.checkpoint import load_params
from morejax.training.initialise import initial_params, structure
from morejax.training.interrupt import StopRequest
from morejax.training.placement import Placement


class RunParts:
    """A run's parts; its models are one decoder, without a critic (supervised, scaffold) and with one (policy).

    Attributes:
        config: of the experiment; `model`, `critic`, `step`, `numbers`, `seed` and the stages' own are read.
        stop: flag of the signal handler.
        placement: where parameters lie.
        run: the run's records, `dir` its folder.
        corpus: `dialogues(splits)`.
        task: `examples(splits, reasoned)`, `prompts(dialogue)`, tokens, and streams as a `training.task.Task`.
        fit, select: splits to learn from and to choose on.
        decoding: replies of models without a critic.
    """

    config: Any
    stop: StopRequest
    placement: Placement
    run: Any
    dir: Path
    corpus: Any
    task: Any
    fit: str
    select: str
    decoding: Any

    aloud = False
    """Does the policy write its reasoning before each reply?"""

    @cached_property
    def model_config(self) -> DecoderConfig:
        """The decoder's configuration with the tokenizer's vocabulary."""
        return replace(self.config.model, vocab_size=len(self.task.tokenizer))

    def build_language_model(self) -> nnx.Module:
        """Supervised model and scaffold: a decoder without critic and adapters."""
        return ActorCritic(replace(self.model_config, lora=LoraConfig()), rngs=nnx.Rngs(self.config.seed))

    def build_policy(self) -> nnx.Module:
        """What PPO trains: the same decoder with a critic of one value for each stream."""
        critic, streams = self.config.critic, len(self.config.step.streams)
        return ActorCritic(self.model_config, critic=critic, streams=streams, rngs=nnx.Rngs(self.config.seed))

    @cached_property
    def language_model(self) -> tuple[nnx.GraphDef, Params]:
        """Graph and abstract parameters of the model without a critic."""
        return structure(self.build_language_model)

    def learnt(self, *, reasoned: bool) -> list[Any]:
        """Sequences that supervised model or scaffold (`reasoned`) learn from."""
        return self.task.examples(self.fit, reasoned=reasoned)

    def fresh(self) -> Params:
        """First parameters of the supervised stage, at random."""
        return initial_params(self.build_language_model, shardings=self.placement.of_params)

    def load(self, stage: str, like: Params | None = None, shardings: Any = None) -> Params:
        """Final parameters of a stage, cut over the devices by the rules of `morejax.sharding`.

        Args:
            stage: whose.
            like: their structure; by default that of the model without a critic.
            shardings: where they are to lie; by default as the rules say.

        Raises:
            FileNotFoundError: the stage has not been run in this folder.
        """
        like = self.language_model[1] if like is None else like
        shardings = self.placement.of_params(like) if shardings is None else shardings
        return load_params(self.dir / "checkpoints" / f"{stage}-final", like, shardings)[0]

    def load_actor(self) -> Params:
        """The final policy without its critic, adapters merged into the supervised model that they stand on."""
        graphdef, like = structure(self.build_policy)
        trained, frozen = partition(like, self.model_config.lora) if self.model_config.lora.rank else (like, None)
        params = self.load("ppo", trained)
        return self.actor(params if frozen is None else whole(Bound(graphdef, self.load("supervised")), params))

    def actor(self, params: Params) -> Params:
        """A policy's parameters as those of the model without critic and adapters."""
        return merge_adapters(self.model_config, {name: part for name, part in params.items() if name != "value"})[1]
