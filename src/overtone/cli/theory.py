"""`overtone theory`: what can be recovered, before training; and what a trained dictionary's codes say of the conditions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from overtone import formats
from overtone.cli.asked import truth_settings
from overtone.cli.common import console, trained_on, write_json
from overtone.cli.evaluate import held_out_rows
from overtone.cli.rows import run_at
from overtone.cli.theory_tables import condition_table, octave_table, theorem_table
from overtone.data.stream import Batch
from overtone.data.synthetic import GroundTruth
from overtone.dictionary import Dictionary
from overtone.method import Method
from overtone.metrics.recovery import recovery
from overtone.recipes import SUITES, Suite
from overtone.seeds import generator
from overtone.steering import FixedBias
from overtone.theory import dynamics as projections
from overtone.theory.conditions import Conditions, conditions, tally
from overtone.theory.identifiability import Ambiguity, ambiguity
from overtone.theory.resonance import Setting, by_octave, predict
from overtone.users_code import parts_named

BLOCK = 2048  # rows at a time


def theory(
    of: Annotated[str, tyro.conf.Positional],
    method: str = "gba",
    train: bool = False,
    dynamics: tuple[float, ...] = (),
    dynamics_steps: int = 40,
    n_features: int | None = None,
    d: int | None = None,
    sparsities: tuple[int, ...] = (),
    l0: float | None = None,
    latents: int | None = None,
    steps: int | None = None,
    threshold: float = 0.8,
    epsilon: float = 0.05,
    varsigma: float = 0.1,
    rows: int = 20_000,
    activations: Path | None = None,
    tensor: str | None = None,
    at_most: int = 4096,
    seed: int = 0,
    parts: tuple[str, ...] = (),
    json: Path | None = None,
) -> None:
    """Can the features be recovered? Conditions of identifiability, Theorem 6.1's band and width, and what they predict.

    Of a suite of `overtone recover` everything is measured on the truth, before any training. Of a run it is estimated from the
    trained dictionary's codes on held-out rows, its atoms standing for features: conditions that the codes violate speak against
    them; that they hold does not prove that the atoms are the features.

    Args:
        of: a suite of `overtone recover`, or a run folder.
        method: (suite) whose target frequencies the prediction is for.
        train: (suite) also train it and set the measured recovery beside the prediction.
        dynamics: (suite) target frequencies p for which to follow modified BA by its recursion of projections.
        dynamics_steps: (suite) how many steps of that.
        n_features: (suite) number of true features n.
        d: (suite) dimension of the rows.
        sparsities: (suite) how many features a row mixes, where the suite has that.
        l0: (suite) mean number of features of a row, where the suite has that.
        latents: (suite) dictionary width (default: the suite's).
        steps: (suite) training steps.
        threshold: (suite) cosine from which on a feature counts as recovered.
        epsilon: ε of Theorem 6.1.
        varsigma: ς of Theorem 6.1.
        rows: rows to measure on.
        activations: (run) rows to measure on instead of the run's own held-out ones.
        tensor: (run) which tensor of that file.
        at_most: (run) latents to look at: beyond this many, a random sample, which only misses pairs.
        seed: of the truth, the training and all samples.
        parts: (run) your own Python files or modules that the method's parts are defined in.
        json: write the results to this file.
    """
    for name, value in (("rows", rows), ("at_most", at_most)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    free = {"epsilon": epsilon, "varsigma": varsigma}
    if of in SUITES:
        given = {"n_features": n_features, "d": d, "sparsities": sparsities or None, "l0": l0}
        truth = SUITES[of].truth(seed=seed, **truth_settings(SUITES[of], given))
        result = _of_suite(SUITES[of], truth, method, latents, steps, rows, threshold, train, seed, free)
        if dynamics:
            width = latents or SUITES[of].latents(truth)
            result["dynamics"] = _followed(truth, dynamics, width, dynamics_steps, threshold, seed)
    elif Path(of).is_dir():
        result = _of_run(Path(of), rows, activations, tensor, at_most, seed, parts, free)
    else:
        raise ValueError(f"{of!r} is neither a suite ({', '.join(SUITES)}) nor a run folder")
    write_json(json, {"of": of, **result})


def _of_suite(
    suite: Suite,
    truth: GroundTruth,
    name: str,
    latents: int | None,
    steps: int | None,
    rows: int,
    threshold: float,
    train: bool,
    seed: int,
    free: dict[str, float],
) -> dict[str, Any]:
    if name not in suite.contestants:
        raise ValueError(f"method={name!r} is unknown in suite {suite.name}; known: {', '.join(suite.contestants)}")
    method, width = suite.contestants[name].make(), latents or suite.latents(truth)
    targets = _targets(method, width)
    if targets is None:
        raise ValueError(f"method={name!r} has no target frequencies to predict from; take gba, ba or modified-ba")
    h = truth.rows(rows, seed=seed).h
    found = conditions(tally(h.split(BLOCK)), truth.features)
    setting = Setting(len(truth.features), found.d, found.mean_active, **free)
    result = _tell(f"{suite.name}: {suite.what}", found, ambiguity(h, truth.features), setting, width)
    result["latents"] = width
    frequency = truth.occurrence().float()
    recovered = None
    if train:
        with console.status(f"Training {method.name} for {steps or suite.steps:,} steps"):
            run = suite.run(method, latents=width, steps=steps or suite.steps, seed=seed)
            atoms = trained_on(truth, run, rows=suite.rows).W_dec.detach()
        best = recovery(atoms, truth.features, (threshold,), signed=suite.signed).max_cosine
        recovered = best >= threshold
    octaves = by_octave(frequency, predict(frequency, targets, setting).recovered, recovered)
    console.print(octave_table(octaves, name, targets, threshold))
    result["prediction"] = {"method": name, "threshold": threshold, "octaves": [o._asdict() for o in octaves]}
    return result


def _targets(method: Method, latents: int) -> Float[Tensor, " targets"] | None:
    """The target frequencies of a method's latents, each once; None where it has none."""
    if method.spectrum is not None:
        return method.spectrum.frequencies(latents).float()
    fixed = [rule.frequency for rule in method.rules if isinstance(rule, FixedBias)]
    return torch.tensor(fixed) if fixed else None


def _followed(
    truth: GroundTruth, frequencies: tuple[float, ...], latents: int, steps: int, threshold: float, seed: int
) -> list[dict[str, Any]]:
    """Modified BA by its recursion, one line per target frequency."""
    data = projections.mixture(truth, seed=seed)
    begin = projections.random_projections(truth, latents, seed=seed)
    table = Table(
        title=f"Modified BA by its recursion of projections: {latents} latents, {steps} steps",
        title_justify="left",
    )
    for column in ("target p", "bias", f"FRR {threshold:g} at the end, %", "largest on the way, %", "at step"):
        table.add_column(column, justify="right")
    lines = []
    for p in frequencies:
        path = projections.follow(begin, data, projections.ModifiedBA(p), steps)
        rates = path.recovered(threshold)
        top = max(range(len(rates)), key=rates.__getitem__)
        table.add_row(f"{p:g}", f"{path.bias:.3f}", f"{100 * rates[-1]:.1f}", f"{100 * rates[top]:.1f}", str(top))
        lines.append({"frequency": p, "bias": path.bias, "recovered": rates})
    console.print(table)
    return lines


def _of_run(
    run: Path,
    rows: int,
    activations: Path | None,
    tensor: str | None,
    at_most: int,
    seed: int,
    parts: tuple[str, ...],
    free: dict[str, float],
) -> dict[str, Any]:
    own = parts_named(parts)
    dictionary = formats.load(run, parts=own)
    folder = run_at(run, own)
    batches, where, _ = held_out_rows(run, folder, activations, tensor, None, (), None, rows, seed)
    chosen = torch.randperm(dictionary.latents, generator=generator(seed, "latents looked at"))[:at_most].sort().values
    h = _codes(dictionary, batches, chosen)
    found = conditions(tally(h.split(BLOCK)), dictionary.W_dec.detach()[chosen])
    if not found.n_features:
        raise ValueError(
            f"no latent is active in {len(h)} rows often enough to say anything of it; give more --rows than {rows}"
        )
    n = found.n_features * dictionary.latents / len(chosen)
    active = found.mean_active * dictionary.latents / len(chosen)
    setting = Setting(n, found.d, min(active, n), **free)
    title = f"{run.name}: {len(h):,} rows ({where}), {len(chosen):,} of {dictionary.latents:,} latents"
    result = _tell(title, found, ambiguity(h, dictionary.W_dec.detach()[chosen]), setting, dictionary.latents)
    band = setting.band()
    frequency = found.frequency[found.frequency > 0]
    inside = float(((frequency >= band.low) & (frequency <= band.high)).double().mean())
    console.print(f"{inside:.1%} of the latents that fire do so at a frequency inside the band.")
    return {**result, "latents": dictionary.latents, "looked_at": len(chosen), "inside_band": inside}


@torch.no_grad()
def _codes(dictionary: Dictionary, batches: Iterable[Tensor | Batch], chosen: Tensor) -> Float[Tensor, "rows chosen"]:
    """Codes of some latents, in units of the normalised input."""
    return torch.cat([dictionary.encode(b.x if isinstance(b, Batch) else b).z[:, chosen] for b in batches])


def _tell(title: str, found: Conditions, other: Ambiguity, setting: Setting, latents: int) -> dict[str, Any]:
    """Print what was measured and what the theorem says, and return both."""
    console.print(condition_table(title, found, other))
    console.print(theorem_table(setting, latents))
    band = setting.band()
    said = {"n_features": setting.n_features, "d": setting.d, "sparsity": setting.sparsity, "f": setting.occurrence}
    said |= {"epsilon": setting.epsilon, "varsigma": setting.varsigma, "band": band._asdict(), "heavy": setting.heavy}
    said |= {"saturating_d": setting.saturating_d(), "probability": setting.probability, "steps": setting.steps}
    said["log10_width"] = setting.log10_width(max(band.high, band.low))
    measured = {name: value for name, value in found._asdict().items() if not isinstance(value, Tensor)}
    return {"conditions": measured, "ambiguity": other._asdict(), "theorem": said}
