"""Write the small checkpoints of this folder and what torch makes of them: `python tests/golden/hf/make.py`.

Every folder is a model of `transformers` with random weights, saved by `transformers` itself, with the logits that it
gives on left-padded rows of several lengths in expected.npz.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from torch_models import MODELS, logits, random_model

FOLDER = Path(__file__).parent
NAMES = ("gpt2", "llama", "smollm2", "qwen2", "qwen3")


def write(name: str) -> None:
    """One folder; the Qwen3 one in bfloat16."""
    model = random_model(name, width=8, vocab=24)
    if name == "qwen3":
        model = model.to(torch.bfloat16)
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_bytes((Path(saved) / file).read_bytes())
        # Loaded again: the cast above has rounded the rotation's frequencies too.
        model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 24, (3, 12)), np.arange(12)[None] >= np.array([0, 3, 7])[:, None]
    np.savez_compressed(folder / "expected.npz", ids=ids, mask=mask, logits=logits(model, ids, mask))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    assert set(NAMES) <= set(MODELS)
    for each in NAMES:
        write(each)
