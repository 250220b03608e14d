"""The tables of `overtone theory`."""

from rich.table import Table
from torch import Tensor

from overtone.theory.conditions import Conditions
from overtone.theory.identifiability import Ambiguity
from overtone.theory.resonance import Octave, Setting


def condition_table(title: str, found: Conditions, other: Ambiguity) -> Table:
    """H1–H3, V1 and the bound on ε, measured, and what they are to be compared with."""
    table = Table(
        title=title,
        title_justify="left",
        caption=f"Of the {found.n_features:,} features seen often enough ({found.unseen:,} are not), in {found.rows:,} rows. "
        "The theorem's ≪ and o(1) have no constants: numbers are given, not verdicts",
        caption_justify="left",
    )
    for column in ("condition", "measured", "asked for, or to compare with"):
        table.add_column(column, overflow="fold")
    table.add_row("H1 active features per row", f"at most {found.most_active}, mean {found.mean_active:.3g}", "≤ s")
    table.add_row(
        "H2 smallest coefficient / mean",
        f"{found.smallest:.2g}; evenness {found.evenness:.2f}",
        "bounded away from 0; evenness 1 where all are equal",
    )
    bound, chance = found.co_occurrence_bound, found.co_occurrence_by_chance
    table.add_row(
        "H3 co-occurrence ρ₂",
        f"{found.co_occurrence:.3g} (features {found.pair[0]} and {found.pair[1]})",
        f"≪ n^−½ = {bound:.3g}: {found.co_occurrence / bound:.2g} of it; so many rows give up to {chance:.3g} by chance",
    )
    table.add_row(
        "V1 coherence", f"{found.coherence:.3f}", f"o(1); so many random directions: {found.random_coherence:.2f}"
    )
    how = "" if other.kind == "none" else f" ({other.kind} of {other.pair[0]} by {other.t:.2g} of {other.pair[1]})"
    table.add_row("ε of identifiability", f"≥ {other.epsilon:.3g}{how}", f"o(1); nested pairs: {other.nested:,}")
    return table


def theorem_table(setting: Setting, latents: int) -> Table:
    """What Theorem 6.1 says of this setting."""
    band = setting.band()
    table = Table(
        title=f"Theorem 6.1 at n = {setting.n_features:.0f}, d = {setting.d}, s = {setting.sparsity:.3g} (mean), "
        f"ε = {setting.epsilon:g}, ς = {setting.varsigma:g}",
        title_justify="left",
        caption="All constants that the theorem leaves open are 1",
        caption_justify="left",
    )
    table.add_column("quantity")
    table.add_column("value", overflow="fold")
    kind = "heavy, d < √n" if setting.heavy else "light, d > √n"
    table.add_row(
        "superposition",
        f"{kind} = {setting.n_features**0.5:.1f}; the band widens with d up to {setting.saturating_d():.1f}",
    )
    table.add_row("features occur in", f"f = s/n = {setting.occurrence:.3g} of the rows")
    if band.empty:
        table.add_row("band of target frequencies", f"empty: {band.low:.3g} … {band.high:.3g}, limited by {band.limit}")
    else:
        low, high = band.low / setting.occurrence, band.high / setting.occurrence
        table.add_row(
            "band of target frequencies",
            f"{band.low:.3g} … {band.high:.3g} = {low:.2g} f … {high:.2g} f, limited by {band.limit}",
        )
        p = band.high
        reach = setting.sparsity_in_reach(latents, p)
        table.add_row(
            "latents at its upper edge", f"10^{setting.log10_width(p):.1f}; {latents:,} would do for s = {reach:.2g}"
        )
    table.add_row("with probability", f"≥ {setting.probability:.3f}, within {setting.steps:.0f} steps")
    return table


def octave_table(octaves: list[Octave], name: str, targets: Tensor, threshold: float) -> Table:
    """Predicted and measured recovery, an octave of frequency a line."""
    table = Table(
        title=f"Recovered by {name}, with targets {float(targets.min()):.3g} … {float(targets.max()):.3g}",
        title_justify="left",
        caption=f"predicted: some target is in the feature's band, were there latents enough; measured: cosine ≥ {threshold:g}",
        caption_justify="left",
    )
    for column in ("frequency of the feature", "features", "predicted, %", "measured, %"):
        table.add_column(column, justify="right")
    for o in octaves:
        measured = "–" if o.measured is None else f"{100 * o.measured:.1f}"
        table.add_row(f"{o.low:.3g} … {o.high:.3g}", str(o.features), f"{100 * o.predicted:.1f}", measured)
    return table
