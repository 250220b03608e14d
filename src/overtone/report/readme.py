"""The README.md of a run folder: what is in it, and what came out."""

from pathlib import Path

from overtone.report.tables import metric_lines


def write_readme(
    path: Path,
    *,
    title: str,
    results: dict[str, dict[str, list[float]]],
    tokens: int,
    steps: int,
    seconds: float,
) -> None:
    """Describe a quickstart folder.

    Args:
        path: the folder.
        title: what was trained on what.
        results: dictionary name → metric → values over seeds.
        tokens: tokens trained on.
        steps: training steps.
        seconds: wall time of everything.
    """
    rows = [f"| {' | '.join(line)} |" for line in metric_lines(results)]
    table = "\n".join([f"| | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|", *rows])
    (path / "README.md").write_text(
        TEMPLATE.format(title=title, tokens=tokens, steps=steps, seconds=seconds, table=table, folder=path)
    )


TEMPLATE = """# {title}

Two dictionaries of the same width, trained on {tokens:,} tokens for {steps:,} steps: one with Group Bias Adaptation, one with
TopK at the L0 that GBA ended with. Measured on documents that neither was trained on. Everything took {seconds:.0f} s.

{table}

## What is here

| file | what it is |
|---|---|
| `dictionary/` | the GBA dictionary: weights (`dictionary.safetensors`) and what they mean (`dictionary.json`) |
| `config.json` | every setting of the GBA run, with the versions of overtone and torch |
| `records.jsonl` | one line per 20 steps: loss, L0, alive share, explained variance, speed |
| `report.html` | both dictionaries and each of their latents with the text it fires on: open it in a browser |
| `frequencies.png` | how often every latent fires, against the target of its group |
| `training.png` | reconstruction loss and L0 over training, GBA and TopK |
| `activations/` | the model's activations with their tokens, trained on and held out: a store (`overtone store info`) |
| `checkpoints/` | the last state of training; a run that was stopped goes on from here |
| `topk-seed-*/` | the TopK run, in the same layout, on the same activations (and `gba-seed-*/` where there were more seeds) |

## Use it

```python
import overtone

dictionary = overtone.load("{folder}")
rows = overtone.Store("{folder}/activations").activations(split="held_out")
codes = dictionary.encode(rows.x)          # codes.z: (tokens, latents)
x_hat = dictionary.decode(codes)           # in the units of the activations
```
"""
