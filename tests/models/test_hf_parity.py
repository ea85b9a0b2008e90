"""Logits of every family equal to torch `transformers` on random models, and what is exported loads there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from morejax.models import hf

pytest.importorskip("torch", reason="needs the parity extra")
sys.path.insert(0, str(Path(__file__).parents[1] / "golden" / "hf"))
from torch_models import MODELS, logits, random_model

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_torch_both_ways(tmp_path, name):
    """Rows of 24, 17 and 6 real tokens behind left padding; float32. Then exported, and loaded by transformers."""
    model = random_model(name)
    model.save_pretrained(tmp_path / "theirs")
    ids, mask = np.random.default_rng(0).integers(0, 97, (3, 24)), np.arange(24)[None] >= np.array([0, 7, 18])[:, None]
    expected = logits(model, ids, mask)
    assert np.abs(expected).max() > 2.0
    np.testing.assert_allclose(hf.logits_of(tmp_path / "theirs", ids, mask)[mask], expected[mask], atol=1e-4)
    loaded = hf.load_pretrained(tmp_path / "theirs")
    hf.save_pretrained(tmp_path / "ours", loaded.config, loaded.params, max_shard_bytes=20_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    np.testing.assert_array_equal(logits(again, ids, mask), expected)


def test_a_file_beside_the_model_does_not_disturb_transformers(tmp_path):
    random_model("qwen2").save_pretrained(tmp_path / "theirs")
    loaded = hf.load_pretrained(tmp_path / "theirs")
    hf.save_pretrained(tmp_path / "ours", loaded.config, loaded.params, heads={"value": loaded.params["trunk"]})
    _, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
