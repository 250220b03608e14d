import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer

import pytest
import torch
from safetensors.torch import load_file, save_file

from overtone import (
    ArrayStream,
    CheckpointError,
    CountIdle,
    DeadResampling,
    Method,
    Run,
    RunFolder,
    anchored,
    execute,
    files,
    fit,
    gba,
    gba_paper,
    import_rows,
    jumprelu,
    l1,
    load,
    matching_pursuit,
    matryoshka,
    resumption,
    save,
    topk,
)
from overtone import checkpoint as checkpoints
from overtone.config import from_json, to_json
from overtone.runs import claim_folder
from small_methods import SMALL


def resampled(method: Method) -> Method:
    """With rules for dead latents that act several times in 30 steps."""
    return replace(
        method,
        name=f"{method.name}-resampled",
        rules=(*method.rules, CountIdle(), DeadResampling(interval=5, after=64, until=25)),
        parametrisation=replace(method.parametrisation, counts_idle=True),
    )


METHODS = [
    *SMALL.values(),
    *(gba(groups=3, activation="relu"), gba(l0=3, groups=3), gba_paper(groups=3, interval=5), jumprelu(3)),
    *(topk(3, aux_after=64), matching_pursuit(3, residual=0.4)),
    anchored(topk(3), torch.eye(12)[:2]),
    resampled(topk(3)),
    replace(matryoshka(3, sampled=3), name="matryoshka-sampled"),
]


@pytest.fixture(params=METHODS, ids=lambda m: f"{m.name}-{type(m.select).__name__}")
def method(request: pytest.FixtureRequest):
    return request.param


@pytest.fixture
def saved(rows: torch.Tensor, tmp_path: Path) -> Path:
    save(fit(rows, gba(groups=3), latents=16, steps=5, batch=32), tmp_path / "dictionary")
    return tmp_path / "dictionary"


def test_round_trip(method, rows: torch.Tensor, tmp_path: Path):
    dictionary = fit(rows, method, latents=16, steps=5, batch=32)
    save(dictionary, tmp_path / "d", {"model": "tiny"})
    again = load(tmp_path / "d")
    assert again.select == dictionary.select
    assert again.parametrisation == dictionary.parametrisation
    assert torch.equal(again(rows), dictionary(rows))


def test_configurations_round_trip(method):
    assert from_json(json.loads(json.dumps(to_json(method)))) == method


def test_files_are_safetensors_and_json_alone(saved: Path):
    assert sorted(p.name for p in saved.iterdir()) == ["dictionary.json", "dictionary.safetensors"]
    assert set(load_file(saved / "dictionary.safetensors")) == {"W_dec", "b_enc", "b_dec", "scale"}
    assert json.loads((saved / "dictionary.json").read_text())["version"] == 1


def test_nothing_is_overwritten(saved: Path):
    with pytest.raises(FileExistsError, match="is not overwritten"):
        save(load(saved), saved)


def rewrite(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "truncated weights": (
        lambda d: (d / "dictionary.safetensors").write_bytes((d / "dictionary.safetensors").read_bytes()[:-50]),
        "truncated or not a safetensors file",
    ),
    "empty weights": (lambda d: (d / "dictionary.safetensors").write_bytes(b""), "truncated or not a safetensors file"),
    "a pickle": (lambda d: torch.save({}, d / "dictionary.safetensors"), "truncated or not a safetensors file"),
    "no weights": (lambda d: (d / "dictionary.safetensors").unlink(), "is missing"),
    "truncated JSON": (lambda d: (d / "dictionary.json").write_text('{"form'), "not valid JSON"),
    "foreign JSON": (lambda d: (d / "dictionary.json").write_text('{"architecture": "topk"}'), "not written by overtone"),
    "JSON list": (lambda d: (d / "dictionary.json").write_text("[]"), "not written by overtone"),
    "newer version": (lambda d: rewrite(d / "dictionary.json", version=99), "reads 1 to 1; update overtone"),
    "unknown part": (lambda d: rewrite(d / "dictionary.json", select={"type": "os.system"}), "unknown part 'os.system'"),
    "part with a foreign field": (
        lambda d: rewrite(d / "dictionary.json", select={"type": "TopK", "k": 3, "x": 1}), "TopK has no field x"
    ),
    "other width": (lambda d: rewrite(d / "dictionary.json", latents=17), r"W_dec: expected \(17, 12\), found \(16, 12\)"),
    "foreign tensors": (lambda d: save_file({"W": torch.zeros(2)}, d / "dictionary.safetensors"), "does not fit"),
    "NaN": (
        lambda d: save_file(
            {k: v * float("nan") for k, v in load_file(d / "dictionary.safetensors").items()},
            d / "dictionary.safetensors",
        ),
        "has NaN or Inf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_and_foreign_files_are_refused(case: str, saved: Path):
    spoil, message = DAMAGE[case]
    spoil(saved)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_a_path_with_nothing_there(tmp_path: Path):
    (tmp_path / "run-1").mkdir()
    with pytest.raises(FileNotFoundError, match="folders beside it: run-1"):
        load(tmp_path / "run-2")
    with pytest.raises(FileNotFoundError, match="neither a dictionary nor a run"):
        load(tmp_path / "run-1")


def make_run(method, **changes) -> Run:
    options = {"method": method, "latents": 16, "steps": 30, "batch": 32, "log_every": 4, "checkpoint_every": 7}
    return Run(**(options | changes))


def finished(path: Path, run: Run, rows: torch.Tensor, stop_after: int | None = None) -> dict[str, torch.Tensor] | None:
    """Execute a run folder, or abandon it after some records; its final weights."""
    folder = RunFolder.open(path) if (path / "config.json").exists() else None
    if folder is None:
        claim_folder(path)
        folder = RunFolder.create(path, run)
    for count, _ in enumerate(execute(folder, ArrayStream(rows, run.batch, seed=run.seed)), 1):
        if count == stop_after:
            return None
    return load_file(path / "dictionary" / "dictionary.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stop_after", [1, 2, 4, 7])
def test_an_abandoned_run_resumes_bit_for_bit(method, stop_after: int, rows: torch.Tensor, tmp_path: Path):
    run = make_run(method)
    whole = finished(tmp_path / "whole", run, rows)
    assert finished(tmp_path / "parts", run, rows, stop_after) is None
    parts = finished(tmp_path / "parts", run, rows)
    assert whole is not None and parts is not None and same(whole, parts)
    steps = [r["step"] for r in RunFolder.open(tmp_path / "parts").records()]
    assert steps == [4, 8, 12, 16, 20, 24, 28, 30]
    for a, b in zip(*(RunFolder.open(tmp_path / n).records() for n in ("whole", "parts")), strict=True):
        assert {k: a[k] for k in ("loss", "l0", "alive")} == {k: b[k] for k in ("loss", "l0", "alive")}


def test_resuming_with_other_settings_is_refused(rows: torch.Tensor, tmp_path: Path):
    finished(tmp_path / "run", make_run(gba(groups=3)), rows, stop_after=5)
    newest = checkpoints.checkpoints(tmp_path / "run")[-1]
    with pytest.raises(CheckpointError, match="belongs to a run with other settings"):
        resumption.load_state(make_run(gba(groups=4)), ArrayStream(rows, 32), newest)
    with pytest.raises(ValueError, match="the saved position was of rows=600"):
        resumption.load_state(make_run(gba(groups=3)), ArrayStream(rows[:300], 32), newest)


def test_resuming_with_other_rows_is_refused(rows: torch.Tensor, tmp_path: Path):
    run = make_run(gba(groups=3))
    finished(tmp_path / "run", run, rows, stop_after=5)
    with pytest.raises(ValueError, match=r"checksum=.* resume with the same data"):
        finished(tmp_path / "run", run, rows * 2)
    with pytest.raises(ValueError, match="batch=16, the saved position was of batch=32"):
        list(execute(RunFolder.open(tmp_path / "run"), ArrayStream(rows, 16)))


@pytest.mark.parametrize("lost", ["optimiser.W_dec.exp_avg", "window_loss", "rule.2.fired", "window.peak"])
def test_an_incomplete_state_is_refused(lost: str, rows: torch.Tensor, tmp_path: Path):
    finished(tmp_path / "run", make_run(gba(groups=3)), rows, stop_after=5)
    file = checkpoints.checkpoints(tmp_path / "run")[-1] / "state.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != lost}, file)
    with pytest.raises(CheckpointError, match=f"{lost} is missing"):
        finished(tmp_path / "run", make_run(gba(groups=3)), rows)


@pytest.mark.parametrize(
    "change", [{"run": 3}, {"run": {"type": "Run"}, "data": 1}, {"run": {"type": "Run", "steps": "x"}}, {"data": None}]
)
def test_a_damaged_run_configuration(change: dict, rows: torch.Tensor, tmp_path: Path):
    finished(tmp_path / "run", make_run(gba(groups=3)), rows, stop_after=1)
    rewrite(tmp_path / "run" / "config.json", **change)
    with pytest.raises(CheckpointError, match="does not describe a run"):
        RunFolder.open(tmp_path / "run")


def test_a_diverging_run_keeps_its_last_good_checkpoint(rows: torch.Tensor, tmp_path: Path):
    run = make_run(l1(), lr=1e10, warmup=1.0, decay=0.0, checkpoint_every=1, log_every=30)
    with pytest.raises(FloatingPointError, match="no longer finite"):
        finished(tmp_path / "run", run, rows)
    for path in checkpoints.checkpoints(tmp_path / "run"):
        assert all(v.isfinite().all() for v in load_file(path / "dictionary.safetensors").values())


def test_a_dictionary_described_by_its_width_loads(saved: Path):
    """As dictionaries were written before they had sites."""
    before, path = load(saved), saved / "dictionary.json"
    description = json.loads(path.read_text())
    del description["layout"]
    path.write_text(json.dumps(description | {"d": before.d}))
    after = load(saved)
    assert after.layout == before.layout
    assert all(
        torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )


def test_precision_is_kept(rows: torch.Tensor, tmp_path: Path):
    dictionary = fit(rows, gba(groups=3), latents=16, steps=5, batch=32).double()
    save(dictionary, tmp_path / "d")
    assert torch.equal(load(tmp_path / "d")(rows.double()), dictionary(rows.double()))


def test_an_existing_run_is_never_overwritten(rows: torch.Tensor, tmp_path: Path):
    finished(tmp_path / "run", make_run(gba(groups=3)), rows)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        claim_folder(tmp_path / "run")
    with pytest.raises(FileExistsError, match="already holds a run"):
        RunFolder.create(tmp_path / "run", make_run(topk(3)))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_an_unwritable_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to"):
        claim_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize("where", ["_write", "_sync"])
def test_a_disk_that_fills_up_loses_nothing(
    where: str, rows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While a checkpoint is written, or in the background, while it is put on the disk."""
    path = tmp_path / "run"
    finished(path, make_run(gba(groups=3)), rows, stop_after=3)
    [kept] = checkpoints.checkpoints(path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, where, full)
        with pytest.raises(OSError, match="No space left"):
            finished(path, make_run(gba(groups=3)), rows)
    assert checkpoints.checkpoints(path) == [kept]
    assert not [p for p in kept.parent.iterdir() if p.name.startswith(".")], "no half-written folder stays"
    assert finished(path, make_run(gba(groups=3)), rows) is not None


def test_training_goes_on_while_a_checkpoint_reaches_the_disk(
    rows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One at a time: the next one waits. What a checkpoint holds is the state at its step."""
    path, run = tmp_path / "run", make_run(gba(groups=3), log_every=1)
    claim_folder(path)
    training, slow, commits = execute(RunFolder.create(path, run), ArrayStream(rows, run.batch)), Event(), []
    real = files.NewFolder.commit

    def commit(folder: files.NewFolder) -> None:
        commits.append(folder.path.name)
        assert slow.wait(20)
        real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(files.NewFolder, "commit", commit)
        for _ in range(14):
            assert next(training)
        assert commits == ["000000007"] and checkpoints.checkpoints(path) == []
        Timer(0.2, slow.set).start()
        assert next(training).step == 15, "the second checkpoint has waited for the first"
        training.close()
    assert commits == ["000000007", "000000014"]
    assert [p.name for p in checkpoints.checkpoints(path)] == ["000000014"]
    assert finished(path, run, rows) is not None
    whole = finished(tmp_path / "whole", run, rows)
    assert whole is not None and same(whole, load_file(path / "dictionary" / "dictionary.safetensors"))


def test_a_checkpoint_that_fails_at_last_is_no_finished_run(
    rows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing comes after the last checkpoint that could meet its error by chance."""
    real, path, run = files._sync, tmp_path / "run", make_run(gba(groups=3))

    def sync(written: Path) -> None:
        if "000000030" in str(written):
            raise OSError(5, "Input/output error")
        real(written)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", sync)
        with pytest.raises(OSError, match="Input/output error"):
            finished(path, run, rows)
    assert not RunFolder.open(path).finished
    assert finished(path, run, rows) is not None


SCRIPT = """
import sys, torch
from pathlib import Path
from overtone import ArrayStream, Run, RunFolder, Store, StoreStream, execute, gba
from overtone.runs import claim_folder
torch.set_num_threads(1)
path, steps, store = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
rows = torch.randn(2000, 24, generator=torch.Generator().manual_seed(0))
if not (path / "config.json").exists():
    claim_folder(path)
    RunFolder.create(path, Run(method=gba(groups=4), latents=96, steps=steps, batch=128, log_every=20, checkpoint_every=25))
folder = RunFolder.open(path)
batch = folder.run.batch
stream = StoreStream(Store(store), batch, memory_mib=1) if store else ArrayStream(rows, batch)
for record in execute(folder, stream):
    print(record.step, flush=True)
"""


@pytest.mark.parametrize("kind", ["array", "store"])
def test_killed_processes_resume_bit_for_bit(tmp_path: Path, kind: str):
    """Real processes, real SIGKILLs, at moments drawn over the whole run (the slow test below does twenty)."""
    kill_and_compare(tmp_path, kind, 2, steps=900)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "store"])
def test_twenty_kills(tmp_path: Path, kind: str):
    kill_and_compare(tmp_path, kind, 20, steps=6000)


def kill_and_compare(tmp_path: Path, kind: str, kills: int, steps: int) -> None:
    script, store = tmp_path / "job.py", ""
    script.write_text(SCRIPT)
    if kind == "store":  # several windows of 5461 rows
        chunks = (torch.randn(5000, 24, generator=torch.Generator().manual_seed(i)) for i in range(4))
        made = import_rows(chunks, tmp_path / "rows", site="x", origin="test", dtype="float32", shard_mib=0.3)
        store = str(made.path)

    def process(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, script, tmp_path / name, str(steps), store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = process("whole")
    _, errors = whole.communicate(timeout=240)
    assert whole.returncode == 0, errors
    generator = torch.Generator().manual_seed(7)
    killed = 0
    for _ in range(kills):
        job = process("parts")
        assert job.stdout is not None
        assert job.stdout.readline()  # training, not importing, is what gets killed
        time.sleep(float(torch.rand((), generator=generator)) * 0.25)
        killed += job.poll() is None
        job.kill()
        job.wait()
        job.communicate()
    assert killed == kills, "every kill has to hit a running process"
    last = process("parts")
    _, errors = last.communicate(timeout=240)
    assert last.returncode == 0, errors
    weights = [load_file(tmp_path / n / "dictionary" / "dictionary.safetensors") for n in ("whole", "parts")]
    assert same(*weights)
    assert [r["step"] for r in RunFolder.open(tmp_path / "parts").records()] == list(range(20, steps + 1, 20))
