"""Train on activations of your own, stop, go on, and read the codes.

    python examples/own_activations.py

Any (rows, d) float tensor will do; here rows of a known mixture, so that the result can be checked against the truth.
"""

import tempfile
from pathlib import Path

import overtone as ot
from overtone.runs import claim_folder


def main(steps: int = 2000) -> float:
    truth = ot.imbalanced(n_features=64, d=32, sparsities=(2, 8), seed=0)
    x = truth.rows(20_000).x

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        claim_folder(path)
        run = ot.RunFolder.create(path, ot.Run(method=ot.gba(), latents=256, steps=steps, log_every=250))

        # A run folder trains from wherever it stands: stop here after two records …
        for count, record in enumerate(ot.execute(run, ot.ArrayStream(x, run.run.batch)), 1):
            print(f"step {record.step}: explained variance {record.explained_variance:.2f}, L0 {record.l0:.1f}")
            if count == 2:
                break
        # … and go on; the result is the same, bit for bit, as of a run that was never stopped.
        for record in ot.execute(run, ot.ArrayStream(x, run.run.batch)):
            print(f"step {record.step}: explained variance {record.explained_variance:.2f}, L0 {record.l0:.1f}")

        dictionary = ot.load(path)
    found = ot.recovery(dictionary.W_dec.detach(), truth.features).frr[0.9]
    print(f"{found:.0%} of the 64 true features found with cosine at least 0.9")
    return found


if __name__ == "__main__":
    main()
