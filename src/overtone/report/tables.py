"""Tables of results."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

MANY = 3  # dictionaries side by side in a narrow terminal
COLUMNS = {
    "frr_0.8": ("known features found, cosine ≥ 0.8 (FRR)", "{:.1%}"),
    "random_frr_0.8": ("… by random atoms", "{:.1%}"),
    "frr_0.9": ("known features found, cosine ≥ 0.9", "{:.1%}"),
    "random_frr_0.9": ("… by random atoms", "{:.1%}"),
    "frr_0.95": ("known features found, cosine ≥ 0.95", "{:.1%}"),
    "random_frr_0.95": ("… by random atoms", "{:.1%}"),
    "mcc": ("matched one to one, mean cosine (MCC)", "{:.3f}"),
    "random_mcc": ("… of random atoms", "{:.3f}"),
    "f1": ("latents as detectors of their nearest feature (F1)", "{:.3f}"),
    "random_f1": ("… of random atoms", "{:.3f}"),
    "explained_variance": ("explained variance", "{:.3f}"),
    "normalised_mse": ("normalised MSE", "{:.3f}"),
    "cosine": ("cosine", "{:.3f}"),
    "relative_norm": ("relative norm", "{:.3f}"),
    "l0": ("L0", "{:.1f}"),
    "alive": ("alive", "{:.1%}"),
    "dense": ("dense (> 10 %)", "{:.1%}"),
    "recovered_mean": ("embedding recovered vs mean-ablation", "{:.3f}"),
    "recovered_zero": ("… vs zero-ablation", "{:.3f}"),
    "ce_recovered_mean": ("loss recovered vs mean-ablation", "{:.3f}"),
    "ce_recovered_zero": ("… vs zero-ablation", "{:.3f}"),
    "kl": ("KL(clean ‖ spliced), nats", "{:.4f}"),
    "kl_recovered_mean": ("KL recovered vs mean-ablation", "{:.3f}"),
    "kl_recovered_zero": ("… vs zero-ablation", "{:.3f}"),
    "over_target": ("latents above their target (training rows)", "{:.1%}"),
    "over_target_within_1.5": ("… of these, within 1.5 × of it", "{:.1%}"),
    "rows_per_s": ("tokens/s", "{:,.0f}"),
    "train_seconds": ("training (s)", "{:.0f}"),
}


def metrics_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row per metric, one column per dictionary – or the other way round, where there are many dictionaries.

    Values are numbers, or lists of numbers over seeds.
    """
    table = Table(title=title, title_justify="left")
    if len(results) > MANY:
        shown = [key for key in COLUMNS if any(key in result for result in results.values())]
        for label in ("", *(COLUMNS[key][0] for key in shown)):
            table.add_column(label, justify="right" if label else "left", overflow="fold")
        for name, result in results.items():
            table.add_row(name, *(cell(result.get(key), COLUMNS[key][1]) for key in shown))
        return table
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for line in metric_lines(results):
        table.add_row(*line)
    return table


def metric_lines(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A line for every metric that some dictionary has: its label, and the value for each."""
    return [
        [label, *(cell(result.get(key), form) for result in results.values())]
        for key, (label, form) in COLUMNS.items()
        if any(key in result for result in results.values())
    ]


def cell(value: Any, form: str) -> str:
    """A number, or mean ± half the range of a list of numbers."""
    if value is None:
        return "–"
    values = value if isinstance(value, list) else [value]
    mean = form.format(sum(values) / len(values))
    if len(values) == 1:
        return mean
    return f"{mean} ± {form.format((max(values) - min(values)) / 2)}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and rows as Markdown, numbers to the right of their columns."""
    header, *rows = lines
    ruled = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"
