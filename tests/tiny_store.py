"""A store of a tiny model's activations with dictionaries that nobody has trained."""

import json
from pathlib import Path

import torch

import overtone
from overtone.data.models import LanguageModel
from tiny_models import WORDS, D, tiny

LATENTS = 24


def model_and_text(folder: Path, documents: int, words: int) -> LanguageModel:
    """In a folder: a causal model, and docs.jsonl of so many documents of so many words."""
    lm = tiny("llama", "[CLS] $A", 0.2)
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    rng = torch.Generator().manual_seed(0)
    lines = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=rng)) for _ in range(documents)]
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return lm


def make(folder: Path) -> Path:
    """In a folder: a causal model, its store of two sites, and two dictionaries, d0 and d1."""
    lm = model_and_text(folder, 60, 45)
    plan = overtone.HarvestPlan(
        str(folder / "model"),
        ("resid.1", "mlp_out.1"),
        (str(folder / "docs.jsonl"),),
        context=16,
        shard_mib=0.05,
        held_out=0.3,
    )
    overtone.harvest_store(lm, plan, folder / "store")
    for seed in range(2):
        overtone.save(overtone.Dictionary(D, LATENTS, overtone.TopK(3 + seed), seed=seed), folder / f"d{seed}")
    return folder
