"""One site onto another, and two sites in one dictionary, on data whose truth is known.

python examples/sites.py
"""

import overtone as ot


def transcoder(steps: int) -> float:
    """Imitate an MLP: read its input, reconstruct its output, which has another width and other units."""
    mlp = ot.ReLUMap(ot.SparseMixture(n_features=48, d=32, sparsities=(2, 4)), d_out=24, linear=0.5)
    x, y = mlp.rows(10_000)
    held_out = ot.Batch(*mlp.rows(2_000, seed=1))
    for label, method in (
        ("transcoder", ot.transcoder(ot.gba(l0=4))),
        ("skip transcoder", ot.transcoder(ot.gba(l0=4), skip=True)),
    ):
        dictionary = ot.fit(x, method, target=y, latents=192, steps=steps)
        found = ot.evaluate(dictionary, [held_out])
        print(f"{label}: explained variance of the target {found.explained_variance:.2f}, L0 {found.l0:.1f}")
    return found.explained_variance


def crosscoder(steps: int) -> float:
    """24 features that both sites have, 12 that each has alone: which latent is whose?"""
    truth = ot.site_mixture(shared=24, exclusive=12)
    rows = truth.truth.rows(10_000).x
    dictionary = ot.fit(truth.split(rows), ot.topk(3), latents=192, steps=steps)
    norms = ot.site_norms(dictionary)
    used = set((dictionary.encode(rows).seen.frequency > 0.01).nonzero().flatten().tolist())
    for site in norms.sites:
        print(f"site {site} alone: {len(used & set(norms.exclusive(site).tolist()))} latents (12 features)")
    shared = len(used & set(norms.shared().tolist()))
    print(f"shared: {shared} latents (24 features)")

    found = ot.evaluate(dictionary, rows)
    print({site: round(value, 2) for site, value in found.site_explained_variance.items()})
    at_each_site = dictionary.layout.split(dictionary.reconstruct(rows[:4]))
    print({site: tuple(x_hat.shape) for site, x_hat in at_each_site.items()})
    return found.explained_variance


def main(steps: int = 500) -> tuple[float, float]:
    return transcoder(steps), crosscoder(steps)


if __name__ == "__main__":
    main()
