"""`--recipes`: policies of several recipes in one run, and their mean."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from morejax.experiments.multiwoz.__main__ import parse
from morejax.experiments.multiwoz.recipes import recipe_configs, train_recipes


def arrays(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "checkpoints" / "ppo-final" / "params")


@pytest.mark.slow
def test_the_policy_is_the_mean_of_what_the_recipes_made(prepared, copy_of, tiny):
    run = copy_of(prepared)
    recipes = ("", "ppo.temperature 0.5 ppo.iterations 2 numbers.thresholds success 0.5")
    more = ("--ppo.iterations", "1", "--ppo.eval-every", "0", "--eval-splits", "test", "--recipes", *recipes)
    done = tiny.run(run, *more, resume=True)
    assert done.returncode == 0, done.stderr
    one, other = (arrays(run / "recipes" / number) for number in "12")
    for mean, a, b in zip(*map(jax.tree.leaves, (arrays(run), one, other)), strict=True):
        np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6, atol=1e-7)
        if a.size > 1000:
            assert not np.array_equal(a, b)
    # The final norm of the second began at twice the scale.
    norms = [tree["trunk"]["final_norm"]["scale"].mean() for tree in (one, other)]
    assert norms[1] > 1.8 * norms[0]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in logged if line["stage"] == "ppo"]
    assert [(line["recipe"], line["step"]) for line in logged] == [(1, 1), (2, 2), (2, 3)]
    assert [line["constraint/success/threshold"] for line in logged] == pytest.approx([0.9, 0.5, 0.5])
    assert logged[0]["J/slots"] != logged[1]["J/slots"]  # dialogues and samples of their own
    stage = json.loads((run / "stages.json").read_text())["ppo"]
    assert [recipe["flags"] for recipe in stage["recipes"]] == list(recipes)
    scored = json.loads((run / "results.json").read_text())
    assert (scored["system"], scored["split"]) == ("ppo", "test")


def test_a_recipe_is_the_flags_with_its_own_on_top():
    flags = ["--preset", "cpu", "--seed", "3", "--numbers.thresholds", "success", "0.8", "--recipes"]
    config = parse([*flags, "", "ppo.temperature 0.7 numbers.thresholds inform 0.6"])
    first, second = recipe_configs(config)
    assert (first.ppo, first.numbers, first.seed) == (config.ppo, config.numbers, 3)
    assert second.ppo.temperature == 0.7
    assert second.numbers.thresholds == {"success": 0.8, "inform": 0.6}
    assert second.numbers.kl_coef == config.numbers.kl_coef
    assert second.seed not in (first.seed, 4)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("seed 3", "begins with 'seed'"),
        ("ppo.turns 64", "--ppo.turns and --ppo.split are the same for all"),
    ],
)
def test_what_a_recipe_cannot_set_is_named(recipe, message):
    with pytest.raises(ValueError, match=message):
        parse(["--recipes", "", recipe])


def test_a_name_that_there_is_not_is_named_with_its_recipe(capsys):
    with pytest.raises(SystemExit):
        parse(["--recipes", "", "ppo.nothing 3"])
    assert "--recipes, number 2: 'ppo.nothing 3'" in capsys.readouterr().err


def test_finished_recipes_are_not_trained_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "supervised", "step": 1}\n{"stage": "ppo", "step": 9}\n')
    trained = []

    def train(config, folder: Path):
        trained.append(folder.name)
        if len(trained) == 2:
            raise InterruptedError
        (folder / "metrics.jsonl").write_text('{"stage": "ppo", "step": 1}\n{"stage": "ppo", "step": 2}\n')
        return {"best": None}

    configs = (None, None)
    with pytest.raises(InterruptedError):
        train_recipes(tmp_path, configs, ("a", "b"), train)
    records = train_recipes(tmp_path, configs, ("a", "b"), train)
    assert trained == ["1", "2", "2"]
    assert records == [{"flags": "a", "best": None}, {"flags": "b", "best": None}]
    for _ in range(2):
        steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [(line["step"], line.get("recipe")) for line in steps] == [(1, None), (1, 1), (2, 1), (3, 2), (4, 2)]
        train_recipes(tmp_path, configs, ("a", "b"), train)
