"""What the tests of figures and report share: a small synthetic run folder."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from morejax.training.writers import JsonlWriter

CONSTRAINTS = ("inform", "success")
OBJECTIVES = ("likeness", "fluency")


def write_metrics(path, iterations=12):
    rng = np.random.default_rng(0)
    supervised = JsonlWriter(path, "supervised")
    for step in range(30):
        supervised.scalars(step, {"loss": 5 / (1 + step), **({"dev_loss": 6 / (1 + step)} if step % 10 == 9 else {})})
    ppo = JsonlWriter(path, "ppo")
    streams = (*CONSTRAINTS, *OBJECTIVES)
    for step in range(iterations):
        values = {"kl": 0.01 * step, "entropy": 1.0, "clip_fraction": 0.1, "value_loss": 1 / (1 + step)}
        for name in CONSTRAINTS:
            values[f"constraint/{name}/threshold"] = 0.9
            values[f"constraint/{name}/score_ema"] = 0.7 + 0.01 * step
            values[f"constraint/{name}/violation"] = 0.2 - 0.01 * step
            values[f"multiplier/{name}"] = 0.1 * step
        for name in OBJECTIVES:
            values[f"weight/{name}"] = 0.5
        for index, name in enumerate(streams):
            values[f"J/{name}"] = 0.6 + 0.02 * rng.normal()
            values[f"grad_norm/{name}"] = 1.0 + index
            values[f"share/{name}"] = 0.25
            values[f"explained_variance/{name}"] = 0.3
            for other in streams[index + 1 :]:
                values[f"cosine/{name}/{other}"] = -0.5 + 0.01 * step
        ppo.scalars(step, values)
        if step % 5 == 0:
            ppo.scalars(step, {"eval/inform": 80.0 + step, "eval/bleu": 18.0})
    return path


def score_row(system, split, inform, success, bleu, **extra):
    return {
        "system": system,
        "split": split,
        "inform": inform,
        "success": success,
        "bleu": bleu,
        "combined": (inform + success) / 2 + bleu,
        "per_domain": {
            "inform": {"total": inform, "hotel": 61.5},
            "success": {"total": success, "hotel": 52.5},
        },
        "richness": {"cond_entropy": 1.73, "avg_lengths": 14.21, "num_unigrams": 312, "num_trigrams": 2911},
        "dst": None,
        "dialogues": 300,
        **extra,
    }


def results(corpus="multiwoz-2.2", track="policy", **changes):
    scores = [
        score_row("supervised", "select", 86.2, 74.0, 18.9),
        score_row("supervised", "dev", 85.0, 73.0, 18.5),
        score_row("ppo", "select", 93.1, 89.4, 18.3),
        score_row("ppo", "dev", 92.0, 88.0, 18.0),
    ]
    return {
        "method": "more",
        "track": track,
        "corpus": corpus,
        "preset": "cpu",
        "seed": 3,
        "fit": "train",
        "select": "dev",
        "scores": scores,
        "inform": 92.0,
        "success": 88.0,
        "bleu": 18.0,
        "combined": 108.0,
        "split": "dev",
        "constraints": {
            "inform": {"threshold": 0.9, "first": 0.7, "last": 0.93, "multiplier": 0.4},
            "success": {"threshold": 0.9, "first": 0.7, "last": 0.88, "multiplier": 3.1},
        },
        "timings": {"supervised": 300.0, "ppo": 900.0},
        **changes,
    }


def write_run(folder, run_results=None, *, metrics=True, **files):
    folder.mkdir(parents=True, exist_ok=True)
    if metrics:
        write_metrics(folder / "metrics.jsonl")
    config = {
        "command": "python -m x --out <here>",
        "commit": "abc123",
        "versions": {"jax": "0.0.1"},
        "ppo": {"clip": 0.2},
    }
    contents = {"config": config, "results": run_results or results(), **files}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def synthetic():
    """Builders of a run's files: ``write_metrics``, ``score_row``, ``results``, ``write_run``."""
    return SimpleNamespace(write_metrics=write_metrics, score_row=score_row, results=results, write_run=write_run)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Loops compile their own functions at every call: let them find what the call before has compiled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
