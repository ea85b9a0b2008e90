"""Runs that were made before a field existed."""

from __future__ import annotations

import dataclasses
import json

import pytest

from morejax.experiments.multiwoz.config import MultiwozConfig, preset
from morejax.experiments.shop.config import ShopConfig
from morejax.training.run import Run, RunError


@pytest.mark.parametrize("kind", [MultiwozConfig, ShopConfig])
def test_every_field_has_a_default_that_stands_by_itself(kind):
    assert json.loads(json.dumps(dataclasses.asdict(kind()), default=str))


@pytest.mark.parametrize(("optimizer", "accepted"), [("adam", True), ("muon", False)])
def test_a_field_it_did_not_know_had_the_plain_default_not_todays_presets(tmp_path, optimizer, accepted):
    now = preset("cpu")
    assert now.supervised.optimizer == "muon"
    then = dataclasses.asdict(now)
    del then["supervised"]["optimizer"]
    (tmp_path / "config.json").write_text(json.dumps({"config": then}, default=str))
    (tmp_path / "stages.json").write_text('{"supervised": {}}')
    asked = dataclasses.replace(now, supervised=dataclasses.replace(now.supervised, optimizer=optimizer))
    settings, defaults = dataclasses.asdict(asked), dataclasses.asdict(MultiwozConfig())
    if accepted:
        Run(tmp_path, settings, resume=True, defaults=defaults)
        return
    with pytest.raises(RunError, match=r"supervised\.optimizer: 'adam' then, 'muon' now"):
        Run(tmp_path, settings, resume=True, defaults=defaults)
