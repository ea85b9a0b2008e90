"""The main job on a small random Qwen-style folder, and its result handed on: every stage, then the export."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from morejax.experiments.multiwoz.__main__ import main
from morejax.export import load_run
from morejax.models import hf
from morejax.tasks.multiwoz import tokenizer as vocabulary

sys.path.append(str(Path(__file__).parents[1] / "models"))
from small_folder import CHAT_TEMPLATE, write_small_folder

pytestmark = pytest.mark.slow
# Of the tiny runs' flags those that shape a model from scratch.
_SHAPE = ("--vocab-size", "--model.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_folder(tmp_path_factory.mktemp("hub") / "small")


def flags(tiny, folder, out, *more):
    given = tiny.arguments(out)
    places = [index for index, name in enumerate(given) if name.startswith(_SHAPE)]
    kept = [word for index, word in enumerate(given) if not {index, index - 1} & set(places)]
    return [*kept, "--model", str(folder), *more]


@pytest.fixture(scope="module")
def run(tiny, folder, tmp_path_factory):
    """All stages, one iteration of PPO, then the export of the policy and of the supervised model."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    short = ("--ppo.iterations", "1", "--ppo.eval-every", "0", "--eval-splits", "test", "--model.scan")
    done = tiny._finish("-m", "morejax.experiments.multiwoz", *flags(tiny, folder, out, *short))
    assert done.returncode == 0, done.stderr
    done = tiny._finish("-m", "morejax.export", str(out), str(out.parent / "exported"))
    assert done.returncode == 0, done.stderr
    assert "heads: value" in done.stderr
    return out


def test_every_stage_runs_on_the_model_with_its_own_tokenizer(run, folder):
    own, extended = hf.load_tokenizer(folder), vocabulary.load_tokenizer(run / "tokenizer")
    assert len(extended) > len(own)
    words = " the phone number"
    assert extended.encode(words, add_special_tokens=False) == own.encode(words, add_special_tokens=False)
    assert extended.chat_template == CHAT_TEMPLATE
    stages = json.loads((run / "stages.json").read_text())
    assert set(stages) == {"supervised", "scaffold", "reward_heads", "ppo", "evaluate"}
    model = json.loads((run / "config.json").read_text())["config"]["model"]
    assert (model["layers"], model["kv_heads"], model["positions"], model["scan"]) == (2, 2, "rope", True)


def test_the_export_is_the_policy(run, folder):
    exported = run.parent / "exported"
    config, params = load_run(run, "ppo")
    loaded, tokenizer = hf.load_pretrained(exported), hf.load_tokenizer(exported)
    assert loaded.config.vocab_size == len(tokenizer) == config.vocab_size
    for part in ("embedding", "final_norm"):
        leaf, other = params["trunk"][part], loaded.params["trunk"][part]
        leaf, other = (x["scale"] if part == "final_norm" else x for x in (leaf, other))
        np.testing.assert_array_equal(leaf, other)
    assert set(hf.load_heads(exported)["value"]) == set(params["value"])
    about = json.loads((exported / "heads" / "heads.json").read_text())
    assert about["streams"] == ["likeness", "fluency", "faithfulness", "naturalness", "inform", "success", "slots"]
    # It started from the folder: the embedding has moved, but not far.
    before = np.asarray(hf.load_pretrained(folder).params["trunk"]["embedding"])
    moved = np.asarray(params["trunk"]["embedding"])[: len(before)] - before
    assert 0 < np.abs(moved).max() < 0.5
    theirs = AutoConfig.from_pretrained(exported)
    assert theirs.model_type == "qwen2"
    assert theirs.eos_token_id == vocabulary.token_id(tokenizer, "<eos>")
    assert AutoTokenizer.from_pretrained(exported).chat_template == CHAT_TEMPLATE


def test_a_shape_beside_a_model_is_refused(tiny, folder, tmp_path, capsys):
    status = main([*flags(tiny, folder, tmp_path / "run"), "--model.layers", "3", "--model.kv-heads", "1"])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith(
        f"error: --model {folder} has a shape of its own: leave out --model.layers, --model.kv-heads"
    )


def test_a_model_that_is_not_there_is_one_line(tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status = main(flags(tiny, tmp_path / "empty", tmp_path / "run"))
    said = capsys.readouterr().err.strip()
    assert status == 2
    assert said == f"error: {tmp_path / 'empty'}: no config.json; expected a folder in the Hugging Face form"


@pytest.fixture(scope="module")
def adapted(tiny, folder, run, tmp_path_factory):
    """PPO of adapters on the same supervised model, in two sittings of one iteration."""
    out = tmp_path_factory.mktemp("adapted") / "run"
    shutil.copytree(run, out)
    for name in ("results.json", "checkpoints/ppo", "checkpoints/ppo-final"):
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stages = json.loads((out / "stages.json").read_text())
    kept = {name: stages[name] for name in ("supervised", "scaffold", "reward_heads")}
    (out / "stages.json").write_text(json.dumps(kept))
    document = json.loads((out / "config.json").read_text())
    document["config"]["model"]["lora"] = {"rank": 2, "alpha": 4.0, "targets": "q|v|down", "trained": "embedding"}
    (out / "config.json").write_text(json.dumps(document))
    lora = "--model.lora.rank 2 --model.lora.alpha 4 --model.lora.targets q|v|down --model.lora.trained embedding"
    more = "--critic.kind base --ppo.ref-context direct --optimizer adafactor --model.scan --eval-splits test"
    short = "--ppo.iterations 2 --ppo.eval-every 0 --ppo.checkpoint-every 1 --resume"
    given = flags(tiny, folder, out, *lora.split(), *more.split(), *short.split())
    done = tiny._finish("-m", "morejax.experiments.multiwoz", *given)
    assert done.returncode == 0, done.stderr
    return out


def test_ppo_trains_adapters_on_the_supervised_model(adapted, folder, tmp_path):
    from morejax.export import main as export
    from morejax.models.lora import is_adapter
    from morejax.models.split import flatten

    config, params = load_run(adapted, "ppo")
    before, after = flatten(load_run(adapted, "supervised")[1]), flatten(params)
    assert config.lora.rank == 2
    for name, leaf in before.items():
        assert np.array_equal(after[name], leaf) == (name != "trunk/embedding"), name
    adapters = {name: leaf for name, leaf in after.items() if is_adapter(name)}
    assert all(np.abs(leaf).max() > 0 for leaf in adapters.values())
    assert any(name.startswith("value/trunk") for name in adapters)
    assert after["value/trunk/final_norm/scale"] is after["trunk/final_norm/scale"]
    assert export([str(adapted), str(tmp_path / "merged")]) == 0
    assert export([str(adapted), str(tmp_path / "apart"), "--adapters"]) == 0
    merged, base = (flatten(hf.load_pretrained(tmp_path / x).params) for x in ("merged", "apart/base"))
    kernel = "trunk/blocks/down/kernel"
    assert not np.array_equal(merged[kernel], base[kernel])
    np.testing.assert_array_equal(merged["trunk/blocks/up/kernel"], base["trunk/blocks/up/kernel"])
    written = json.loads((tmp_path / "apart" / "adapter" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["model.embed_tokens"]
    assert written["base_model_name_or_path"] == str(tmp_path / "apart" / "base")
