"""Laws of transcoders, skip transcoders and crosscoders, with every kind of selection."""

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from overtone import (
    L1,
    ArrayStream,
    Batch,
    Block,
    Dictionary,
    Layout,
    Method,
    Parametrisation,
    Reconstruction,
    ReLUMap,
    Run,
    RunFolder,
    SparseMixture,
    batch_topk,
    evaluate,
    execute,
    fit,
    gba,
    l1,
    load,
    matryoshka,
    modified_ba,
    recovery,
    save,
    site_mixture,
    site_norms,
    topk,
    train,
    transcoder,
)
from overtone.config import from_json, to_json
from overtone.losses import total
from overtone.runs import claim_folder
from overtone.training import begin, start

METHODS = [
    *(gba(groups=4), gba(groups=4, activation="relu"), modified_ba(step=0.5)),
    *(topk(4), batch_topk(4), matryoshka(4, prefixes=(0.25, 1.0)), l1(0.02)),
]
LAYOUTS = {
    "transcoder": Layout((Block("in", 12),), (Block("out", 7),)),
    "skip": Layout((Block("in", 12),), (Block("out", 7),)),
    "crosscoder": Layout((Block("a", 5), Block("b", 7))),
}


@dataclass(frozen=True)
class Case:
    """A method on a kind of sites, and data for it."""

    kind: str
    method: Method
    layout: Layout
    x: torch.Tensor
    target: torch.Tensor | None

    def stream(self, batch: int = 64) -> ArrayStream:
        return ArrayStream(self.x, batch, target=self.target, layout=self.layout)

    @property
    def wanted(self) -> torch.Tensor:
        return self.x if self.target is None else self.target

    def trained(self, steps: int = 30) -> Dictionary:
        """Not at its start: biases, scales, centres and linear paths have values that matter."""
        run, stream = Run(self.method, latents=20, steps=steps, batch=64, lr=0.02), self.stream()
        state = start(run, stream)
        list(train(run, stream, state))
        return state.dictionary


@cache
def case_of(kind: str, method: Method) -> Case:
    generator = torch.Generator().manual_seed(1)
    rows = SparseMixture(24, 12, sparsities=(2, 5), noise=0.05).rows(600).x
    # Units far from 1, and different at different sites.
    x = torch.cat([3 * rows[:, :5], 40 * rows[:, 5:]], dim=1)
    if kind == "crosscoder":
        return Case(kind, method, LAYOUTS[kind], x, None)
    target = 9 * (rows @ torch.randn(12, 7, generator=generator)).relu() + 2
    return Case(kind, transcoder(method, skip=kind == "skip"), LAYOUTS[kind], x, target)


@cache
def trained(kind: str, method: Method) -> Dictionary:
    return case_of(kind, method).trained()


@pytest.fixture(params=LAYOUTS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=METHODS, ids=lambda m: f"{m.name}-{type(m.select).__name__}")
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture
def case(kind: str, method: Method) -> Case:
    return case_of(kind, method)


@pytest.fixture
def dictionary(kind: str, method: Method) -> Dictionary:
    return deepcopy(trained(kind, method))


def slow(dictionary: Dictionary, x: torch.Tensor, active: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Normalised reconstruction, codes and what they are divided by, from the definition; which entries are active is given."""
    p, layout, w = dictionary.parametrisation, dictionary.layout, dict(dictionary.named_parameters())
    scales = dict(dictionary.named_buffers())
    parts = x.split([b.d for b in layout.reads], dim=1)
    x = torch.cat([part / s for part, s in zip(parts, scales["read_scale"], strict=True)], dim=1)
    norm = x.norm(dim=1, keepdim=True) if p.input_norm == "row" else torch.ones(len(x), 1).to(x)
    x = x / norm
    W_enc = w["W_dec"] if p.tied else w["W_enc"]
    centre = w["centre"] if layout.writes else w["b_dec"]
    linear = (x - centre) @ W_enc.T
    z = linear if type(dictionary.select).__name__ == "JumpReLU" else linear + w["b_enc"]
    if type(dictionary.select).__name__ == "SmoothReLU":
        z = torch.nn.functional.softplus(z, beta=50)
    z = torch.where(active, z, 0.0)
    x_hat = (z * w["scale"] if p.scale else z) @ w["W_dec"] + w["b_dec"]
    if p.skip:
        x_hat = x_hat + (x - centre) @ w["W_skip"].T
    out = scales["write_scale"] if layout.writes else scales["read_scale"]
    return x_hat, z, norm * torch.cat([s.expand(b.d) for s, b in zip(out, layout.reconstructs, strict=True)])


def test_values_and_gradients_equal_the_definition(case: Case, dictionary: Dictionary):
    """In float64, reconstruction plus L1, every parameter that learns."""
    dictionary = dictionary.double()
    x, target = case.x[:50].double(), case.wanted[:50].double()
    codes = dictionary.encode(x)
    loss = total((Reconstruction(), L1(0.05)), dictionary, codes, dictionary.unexplained(target, codes))
    loss.backward()
    fast = {name: p.grad for name, p in dictionary.named_parameters() if p.requires_grad}
    dictionary.zero_grad()
    x_hat, z, units = slow(dictionary, x, codes.z.detach() != 0)
    torch.testing.assert_close(codes.z, z)
    torch.testing.assert_close(dictionary.decode(codes), x_hat * units)
    atoms = dictionary.W_dec if dictionary.scale is None else dictionary.W_dec * dictionary.scale[:, None]
    blocks = atoms.split([b.d for b in case.layout.reconstructs], dim=1)
    norms = sum(block.norm(dim=1) for block in blocks)
    expected = 0.5 * ((x_hat - target / units) ** 2).sum(1).mean() + 0.05 * (z.abs() * norms).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for name, grad in fast.items():
        slowly = dictionary.get_parameter(name).grad
        assert grad is not None and slowly is not None, name
        torch.testing.assert_close(grad, slowly, msg=lambda text, name=name: f"{name}: {text}")


def test_permuting_latents_permutes_codes(case: Case, dictionary: Dictionary, generator: torch.Generator):
    order = torch.randperm(20, generator=generator)
    other = Dictionary(case.layout, 20, dictionary.select, dictionary.parametrisation)
    of_latents = {"W_dec", "W_enc", "b_enc", "scale"}
    state = {k: v[order] if k in of_latents else v for k, v in dictionary.state_dict().items()}
    other.load_state_dict(state)
    torch.testing.assert_close(other.encode(case.x).z, dictionary.encode(case.x).z[:, order])
    torch.testing.assert_close(other(case.x), dictionary(case.x), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(site_norms(other).share, site_norms(dictionary).share[order])


def test_a_row_is_coded_alone(case: Case, dictionary: Dictionary):
    torch.testing.assert_close(dictionary(case.x[7:8]), dictionary(case.x)[7:8], rtol=1e-4, atol=1e-3)


def test_batches_of_one_row_train(case: Case):
    stream = case.stream(batch=1)
    run = Run(case.method, latents=20, steps=3, batch=1)
    state = begin(run, case.layout, Batch(case.x, case.wanted))
    assert next(iter(train(run, stream, state))).step == 3


def test_codes_do_not_depend_on_a_site_s_units(case: Case):
    """Trained from the start on rows in other units: the same codes, and reconstructions in the new units.

    Powers of two round nothing, so equality is exact.
    """
    factors = torch.cat([torch.full((b.d,), 8.0 / 32.0**i) for i, b in enumerate(case.layout.reads)])
    out = factors if case.target is None else 4.0
    other = replace(case, x=case.x * factors, target=None if case.target is None else 4 * case.target)
    a, b = case.trained(steps=10), other.trained(steps=10)
    assert torch.equal(b.encode(other.x).z, a.encode(case.x).z)
    torch.testing.assert_close(b(other.x), out * a(case.x), rtol=1e-6, atol=0)


def test_round_trip(case: Case, dictionary: Dictionary, tmp_path: Path):
    save(dictionary, tmp_path / "d")
    again = load(tmp_path / "d")
    assert again.layout == case.layout == dictionary.layout
    assert torch.equal(again(case.x), dictionary(case.x))
    assert from_json(to_json(case.method)) == case.method


@pytest.mark.parametrize("method", [gba(groups=4), batch_topk(4)], ids=lambda m: m.name)
def test_an_abandoned_run_resumes_bit_for_bit(kind: str, method: Method, tmp_path: Path):
    case = case_of(kind, method)
    run = Run(case.method, latents=16, steps=20, batch=32, log_every=4, checkpoint_every=7)
    for name in ("whole", "parts"):
        claim_folder(tmp_path / name)
        records = execute(RunFolder.create(tmp_path / name, run), case.stream(32))
        for count, _ in enumerate(records, 1):
            if name == "parts" and count == 3:
                break
    list(execute(RunFolder.open(tmp_path / "parts"), case.stream(32)))
    whole, parts = (load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)


def test_frequencies_are_steered_on_untied_weights(rows: torch.Tensor):
    """The bias rule's start is a quantile of the encoder's own projections, whose rows stay on the sphere."""
    target = (rows @ torch.ones(12, 7)).relu() + rows[:, :7]
    method, layout = transcoder(gba(l0=4)), LAYOUTS["transcoder"]
    case = Case("transcoder", method, layout, rows, target)
    begun = start(Run(method, latents=40), case.stream()).dictionary
    assert begun.encode(rows).seen.frequency.sum() == pytest.approx(4, rel=0.15)
    dictionary = case.trained(steps=300)
    assert dictionary.encode(rows).seen.frequency.sum() == pytest.approx(4, rel=0.25)
    torch.testing.assert_close(dictionary.W_enc.detach().norm(dim=1), torch.ones(20))


def test_a_transcoder_starts_from_the_targets_mean(rows: torch.Tensor):
    """Centre and b_dec are means; the linear path is zero: with its latents silent it predicts the mean."""
    target = rows[:, :7] + 5
    stream = ArrayStream(rows, 64, target=target)
    dictionary = start(Run(transcoder(topk(4), skip=True), latents=20), stream).dictionary
    codes = dictionary.encode(rows)
    silent = codes.with_z(torch.zeros_like(codes.z))
    sample = torch.cat([next(stream).target for _ in range(128)])
    torch.testing.assert_close(dictionary.decode(silent), sample.mean(0).expand(600, -1))
    assert not dictionary.W_skip.any() and not torch.equal(dictionary.W_enc[:, :7], dictionary.W_dec)


def test_one_huge_row_does_not_move_the_scales(rows: torch.Tensor):
    layout = LAYOUTS["crosscoder"]

    def scales(x: torch.Tensor) -> torch.Tensor:
        dictionary = Dictionary(layout, 20, topk(4).select, topk(4).parametrisation)
        dictionary.measure_sites(x, x)
        assert dictionary.read_scale is not None
        return dictionary.read_scale

    spoilt = rows.clone()
    spoilt[3] *= 1000
    torch.testing.assert_close(scales(spoilt), scales(rows), rtol=0.02, atol=0)
    expected = torch.stack([part.norm(dim=1).median() for part in rows.split([5, 7], dim=1)])
    torch.testing.assert_close(scales(rows), expected * 2**0.5)


def test_scaling_a_row_scales_a_crosscoders_reconstruction(rows: torch.Tensor):
    dictionary = fit(dict(zip("ab", rows.split([5, 7], dim=1), strict=True)), topk(4), latents=20, steps=20)
    torch.testing.assert_close(dictionary(32 * rows), 32 * dictionary(rows), rtol=1e-6, atol=0)


def test_a_transcoder_finds_a_true_map_and_its_neurons():
    truth = ReLUMap(SparseMixture(48, 32, sparsities=(2, 4)))
    (x, y), (x_new, y_new) = truth.rows(20_000), truth.rows(3000, seed=9)
    dictionary = fit(x, transcoder(topk(6)), target=y, latents=192, steps=800)
    assert evaluate(dictionary, [Batch(x_new, y_new)]).explained_variance > 0.93
    assert recovery(dictionary.W_dec.detach(), truth.writes).frr[0.8] > 0.95
    assert recovery(dictionary.W_enc.detach(), truth.truth.features).mean_max_cosine > 0.8


def test_the_linear_path_takes_what_is_linear():
    truth = ReLUMap(SparseMixture(48, 32, sparsities=(2, 4)), linear=2.0)
    (x, y), held_out = truth.rows(10_000), Batch(*truth.rows(2000, seed=9))
    plain, skip = (fit(x, transcoder(topk(6), skip=s), target=y, latents=96, steps=300) for s in (False, True))
    with_path, without = (evaluate(d, [held_out]).normalised_mse for d in (skip, plain))
    assert with_path < without / 2


@pytest.mark.parametrize("method", [topk(3), l1(0.1)], ids=lambda m: m.name)
def test_a_crosscoder_knows_shared_features_from_exclusive_ones(method: Method):
    truth = site_mixture()
    x = truth.truth.rows(20_000).x
    dictionary = fit(truth.split(x), method, latents=192, steps=800)
    scale = dictionary.read_scale
    assert scale is not None
    features = truth.truth.features / torch.cat([s.expand(b.d) for s, b in zip(scale, truth.layout.reads, strict=True)])
    unit = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    best, latent = (torch.nn.functional.normalize(features, dim=1) @ unit.T).max(1)
    assert (best > 0.9).float().mean() > 0.95
    norms = site_norms(dictionary)
    whose = {site: set(norms.exclusive(site).tolist()) for site in norms.sites} | {"all": set(norms.shared().tolist())}
    for feature, found in enumerate(latent.tolist()):
        at = truth.present[feature].tolist()
        expected = "all" if all(at) else norms.sites[at.index(True)]
        assert [name for name, latents in whose.items() if found in latents] == [expected], feature


def test_site_norms_by_hand():
    dictionary = Dictionary(LAYOUTS["crosscoder"], 4, topk(2).select, topk(2).parametrisation)
    with torch.no_grad():
        dictionary.W_dec.zero_()
        dictionary.W_dec[0, :2] = torch.tensor([3.0, 4.0])
        dictionary.W_dec[1, 5] = 2.0
        dictionary.W_dec[2, [0, 11]] = 1.0
    norms = site_norms(dictionary)
    assert norms.sites == ("a", "b")
    torch.testing.assert_close(norms.norms, torch.tensor([[5.0, 0], [0, 2], [1, 1], [0, 0]]))
    torch.testing.assert_close(norms.share, torch.tensor([[1.0, 0], [0, 1], [0.5, 0.5], [0, 0]]))
    assert norms.exclusive("a").tolist() == [0] and norms.exclusive("b").tolist() == [1]
    assert norms.shared().tolist() == [2]
    with pytest.raises(ValueError, match="no site 'c'; the dictionary reconstructs a, b"):
        norms.exclusive("c")


def test_explained_variance_site_by_site(rows: torch.Tensor):
    x = torch.cat([3 * rows[:, :5], 40 * rows[:, 5:]], dim=1)
    dictionary = fit(dict(zip("ab", x.split([5, 7], dim=1), strict=True)), topk(4), latents=20, steps=30)
    found = evaluate(dictionary, x, batch=100)
    x_hat = dictionary.reconstruct(x)
    errors, variances = [], []
    for name, part in dictionary.layout.split(x).items():
        residual = part - dictionary.layout.split(x_hat)[name]
        centred = part - part.mean(0)
        expected = 1 - residual.square().sum() / centred.square().sum()
        assert found.site_explained_variance[name] == pytest.approx(float(expected), abs=1e-5)
        scale = part.norm(dim=1).median() ** 2  # sites count alike, whatever their units
        errors.append(residual.square().sum() / scale)
        variances.append(centred.square().sum() / scale)
    expected = float(1 - sum(errors) / sum(variances))
    assert found.explained_variance == pytest.approx(expected, abs=0.01), "the scale is of the first rows"
    assert "site_explained_variance" in found.summary()
    assert "site_explained_variance" not in evaluate(Dictionary(12, 4), x).summary()


ONES = torch.ones(9, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dictionary(LAYOUTS["transcoder"], 4), r"tied weights cannot .*overtone\.transcoder\(method\)"),
        (
            lambda: Dictionary(LAYOUTS["crosscoder"], 4, None, Parametrisation(skip=True)),
            r"skip=True with a \(d = 5\) \+ b",
        ),
        (lambda: Dictionary(4, 4, None, Parametrisation(skip=True)), "skip=True with rows"),
        (lambda: Layout((Block("a", 3), Block("a", 4))), "sites a, a must be at least one, and each of them once"),
        (lambda: Layout(()), r"sites \(none\)"),
        (lambda: Block("a", 0), "site 'a' has width d=0"),
        (lambda: fit(ONES, target=torch.ones(8, 3), latents=24), "9 rows and 8 targets"),
        (lambda: fit(ONES, gba(), target=ONES, latents=24), r"overtone\.transcoder"),
        (lambda: fit({"a": ONES}, target=ONES, latents=24), "target together with several sites"),
        (lambda: fit({"a": ONES, "b": torch.ones(8, 3)}, latents=24), "different numbers of rows"),
        (lambda: fit({"a": ONES, "b": 0 * ONES}, latents=24), "site 'b' is all zeros in the first"),
        (lambda: ArrayStream(ONES, 2, layout=LAYOUTS["crosscoder"]), "has width 3 and no target; the layout"),
        (lambda: ArrayStream(torch.ones(9, 12), 2, layout=LAYOUTS["transcoder"]), "width 12 and no target; the layout"),
        (lambda: site_mixture(widths=(3,)), "must be one number per site"),
    ],
)  # fmt: skip
def test_bad_combinations_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_transcoders_form_of_a_method_is_stable():
    once = transcoder(gba())
    assert transcoder(once) == once and transcoder(transcoder(gba(), skip=True)) == once
    assert transcoder(topk(4)).rules == topk(4).rules, "a trained bias has no need of unit encoder rows"
