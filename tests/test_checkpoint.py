"""Checkpoints: complete or absent, and readable without trusting them."""

import collections
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sdlab import files
from sdlab.live import checkpoint
from sdlab.live.diary import changes_in
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.prompts import PromptSettings
from sdlab.settings import from_toml, preset


@pytest.fixture
def parts():
    return {
        "scene": {"means": torch.arange(6.0).view(2, 3)},
        "optim": {"means": {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}},
        "session": {"skipped": 1, "seconds": 2.5, "nothing": {}},
    }


def test_round_trip(tmp_path, parts):
    checkpoint.save(tmp_path, 12, parts, {"settings.toml": "seed = 3\n"})
    step, back, texts, checked = checkpoint.load(tmp_path)
    assert (step, checked) == (12, True)
    assert texts == {"settings.toml": "seed = 3\n"}
    assert back["session"] == parts["session"]
    assert torch.equal(back["scene"]["means"], parts["scene"]["means"])
    assert torch.equal(back["optim"]["means"]["exp_avg"], parts["optim"]["means"]["exp_avg"])
    assert back["optim"]["means"]["step"] == 3.0


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path, parts):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, parts, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000010"]
    assert checkpoint.load(tmp_path)[0] == 10


def test_saving_a_step_again_replaces_it(tmp_path, parts):
    checkpoint.save(tmp_path, 5, parts, {})
    parts["session"]["skipped"] = 9
    checkpoint.save(tmp_path, 5, parts, {})
    assert checkpoint.load(tmp_path).parts["session"]["skipped"] == 9


def test_what_a_run_has_just_saved_stays_beside_later_checkpoints(tmp_path, parts):
    """A run that has passed over damaged ones has smaller steps than they have."""
    for step in (1, 6, 8):
        checkpoint.save(tmp_path, step, parts, {})
    checkpoint.save(tmp_path, 3, parts, {})
    assert (tmp_path / "00000003").is_dir()
    checkpoint.set_aside(tmp_path, 3)
    assert checkpoint.load(tmp_path).step == 3
    assert {"00000006.damaged", "00000008.damaged"} <= {p.name for p in tmp_path.iterdir()}


def test_sums_are_in_the_format_of_sha256sum(tmp_path, parts):
    folder = checkpoint.save(tmp_path, 1, parts, {"settings.toml": "seed = 3\n"})
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["settings.toml", "tensors.safetensors", "values.json"]
    for line in lines:
        expected, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "format", "list"])
def test_a_broken_newest_one_falls_back_to_the_one_before(tmp_path, parts, damage):
    checkpoint.save(tmp_path, 1, parts, {})
    newest = checkpoint.save(tmp_path, 2, parts, {})
    tensors, values = newest / "tensors.safetensors", newest / "values.json"
    header = json.loads(values.read_text())
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:40])
    elif damage == "gone":
        tensors.unlink()
    elif damage == "garbage":
        values.write_text("{")
    elif damage == "format":
        values.write_text(json.dumps({**header, "format": 99}))
    else:
        values.write_text(json.dumps({**header, "tensors": ["scene/other"]}))
    assert checkpoint.load(tmp_path)[0] == 1
    torch_file = tmp_path / "00000001" / "tensors.safetensors"
    torch_file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"00000002 is broken"):
        checkpoint.load(tmp_path)


def test_what_was_loaded_does_not_need_the_file(tmp_path, parts):
    folder = checkpoint.save(tmp_path, 1, parts, {})
    means = checkpoint.load(tmp_path).parts["scene"]["means"]
    with (folder / "tensors.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(bytes(size))
    assert torch.equal(means, parts["scene"]["means"])


def test_a_half_written_one_is_not_seen(tmp_path, parts):
    (tmp_path / ".00000009.123.tmp").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 3, parts, {})
    assert checkpoint.load(tmp_path)[0] == 3


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")


def test_pickles_are_not_read(tmp_path, parts):
    folder = checkpoint.save(tmp_path, 1, parts, {})
    torch.save({"scene": 1}, folder / "tensors.safetensors")
    with pytest.raises(ValueError, match="broken"):
        checkpoint.load(tmp_path)


# ---- damage --------------------------------------------------------------------------------------------------------


DAMAGES = ("cut", "flip", "flip", "zero", "empty", "missing")


def damage(file: Path, how: str, rng: random.Random) -> None:
    raw = bytearray(file.read_bytes())
    at = rng.randrange(len(raw))
    if how == "missing":
        file.unlink()
        return
    if how == "cut":
        del raw[at:]
    elif how == "flip":
        raw[at] ^= 1 << rng.randrange(8)
    elif how == "zero":
        raw[at : at + 4096] = bytes(len(raw[at : at + 4096]))
    else:
        raw.clear()
    file.write_bytes(raw)


@pytest.mark.parametrize("times", [60, pytest.param(200, marks=pytest.mark.nightly)])
def test_a_damaged_checkpoint_is_never_restored_in_silence(times, quick, tmp_path):
    session = Session(quick)
    states = {}
    for step in (4, 6):
        session.run(until=step)
        session.save(tmp_path / "good", {"run.json": "{}"})
        states[step] = leaves(session.moment().parts)
    rng, outcomes = random.Random(11), collections.Counter()
    for _ in range(times):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        newest = tmp_path / "bad" / "00000006"
        file = rng.choice(sorted(newest.iterdir()))
        before = file.read_bytes()
        damage(file, rng.choice(DAMAGES), rng)
        unchanged = file.exists() and file.read_bytes() == before  # zeros over zeros
        note = session.restore(tmp_path / "bad")
        assert session.state.step == (6 if unchanged else 4)
        assert ("00000006 is broken" in note) != unchanged, note
        restored = leaves(session.moment().parts)
        assert all(equal(value, restored[path]) for path, value in states[session.state.step].items()), file
        outcomes["unchanged" if unchanged else "older one, said"] += 1
    print(dict(outcomes))
    assert outcomes["older one, said"] >= 0.9 * times


ODD = ("", "\n", "seed = 3\n", '[scene]\nkind = "splats"\n', "prior = 3\nscene = 4\n", "[", None)


@pytest.mark.parametrize("text", ODD)
def test_odd_settings_are_refused_with_and_without_hashes(text, quick, tmp_path):
    session = Session(quick)
    session.run(until=3)
    good = session.save(tmp_path)
    parts = session.moment().parts
    checkpoint.save(tmp_path, 5, parts, {"settings.toml": text} if text is not None else {})
    with pytest.raises(ValueError, match=r"settings\.toml"):
        session.restore(tmp_path)
    newest = tmp_path / "00000005"
    as_version_0_1(newest)
    assert "settings.toml" in session.restore(tmp_path), "without hashes it is damage: the older one is taken"
    assert session.state.step == 3
    assert good.is_dir()


def as_version_0_1(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    values = json.loads((folder / "values.json").read_text())
    (folder / "values.json").write_text(json.dumps({**values, "format": 1}))


def test_an_intact_checkpoint_that_cannot_be_restored_is_not_passed_over(quick, tmp_path, monkeypatch):
    """Memory may have run out: an older checkpoint would not help, and would cost the newer one."""
    session = Session(quick)
    for step in (2, 4):
        session.run(until=step)
        session.save(tmp_path)

    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(session._builder), "put_back", fails)
    with pytest.raises(ValueError, match="out of memory"):
        session.restore(tmp_path)


# ---- processes that are killed, and full disks ---------------------------------------------------------------------


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a fork; return its exit code, 0 when it came to its end, 1 after an error."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


KILLED = 77
CHANGES = [  # everything by which `save` changes the folder
    (checkpoint, "save_file"),
    (checkpoint, "flush"),
    (checkpoint, "remove"),
    (checkpoint, "sweep"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (Path, "rename"),
]


def killed_at(number: int, work: Callable[[], object]) -> int:
    """Run `work` in a fork that dies without clean-up before its `number`-th change of the folder."""
    left = [number]

    def dying(change):
        def instead(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)
            return change(*args, **kwargs)

        return instead

    def patched() -> None:
        for owner, name in CHANGES:
            setattr(owner, name, dying(getattr(owner, name)))
        work()

    return fork(patched)


@pytest.mark.parametrize("rewrites", [False, True], ids=["a new step", "the same step"])
@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(rewrites, earlier, tmp_path):
    kills = 0
    for number in range(1, 100):
        folder = tmp_path / str(number)
        for step in range(earlier):
            checkpoint.save(folder, step, {"a": {"x": torch.full((4,), float(step)), "n": step}}, {})
        if rewrites:
            checkpoint.save(folder, 7, {"a": {"x": torch.full((4,), 7.0), "n": 7}}, {})
        code = killed_at(
            number, lambda to=folder: checkpoint.save(to, 7, {"a": {"x": torch.full((4,), 8.0), "n": 8}}, {})
        )
        if code == 0:
            break
        assert code == KILLED
        kills += 1
        if rewrites or earlier:
            saved = checkpoint.load(folder)
            assert saved.step == 7 if rewrites else saved.step in (7, earlier - 1)
            assert bool((saved.parts["a"]["x"] == saved.parts["a"]["n"]).all())
        checkpoint.save(folder, 9, {"a": {"x": torch.ones(1)}}, {})
        assert not [p.name for p in folder.iterdir() if p.name.startswith(".")], "the next save sweeps"
    assert kills >= 10
    assert checkpoint.load(folder).parts["a"]["n"] == 8, "the last one came to its end"


LOOP = """
import sys, pathlib, torch
from sdlab.live import checkpoint
folder, same, n = pathlib.Path(sys.argv[1]), sys.argv[2] == "same", 0
x = torch.zeros(1_000_000)
while True:
    checkpoint.save(folder, 7 if same else n, {"a": {"x": x + n, "n": n}}, {"settings.toml": "a = 1"})
    if n == 0:
        print("saved", flush=True)
    n += 1
"""


@pytest.mark.parametrize(
    "times", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("mode", ["rising", "same"])
def test_kill_9_in_a_loop_that_saves(mode, times, tmp_path):
    rng, interrupted = random.Random(1), 0
    for trial in range(times):
        folder = tmp_path / str(trial)
        loop = [sys.executable, "-c", LOOP, str(folder), mode]
        process = subprocess.Popen(loop, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        time.sleep(0.1 + 0.4 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        interrupted += any(p.name.startswith(".") for p in folder.iterdir())
        saved = checkpoint.load(folder)
        assert saved.checked
        assert bool((saved.parts["a"]["x"] == saved.parts["a"]["n"]).all())
    print(f"{interrupted} of {times} in the middle of a save")


@pytest.mark.parametrize("limit", [0, 1, 100, 500, 1000, 3000, 5000, 7000, 9000])
@pytest.mark.parametrize("same", [False, True])
def test_a_full_disk_leaves_the_earlier_checkpoint(limit, same, tmp_path):
    """The limit is on every file; a child has it, since it cannot be lifted for a process that is not privileged."""
    old, new = ({"a": {"x": torch.full((2000,), n), "n": n}} for n in (1.0, 2.0))
    checkpoint.save(tmp_path, 5, old, {"settings.toml": "old"})

    def save() -> None:
        sys.dont_write_bytecode = True  # Python 3.11 does not notice that a .pyc file was cut off
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r"File too large|too large"):
            checkpoint.save(tmp_path, 5 if same else 6, new, {"settings.toml": "new"})

    enough = limit >= 9000
    assert fork(save) == (1 if enough else 0)
    saved = checkpoint.load(tmp_path)
    assert saved.parts["a"]["n"] == (2.0 if enough else 1.0)
    assert bool((saved.parts["a"]["x"] == saved.parts["a"]["n"]).all())
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "what was begun is removed"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("at", range(1, 25))
def test_an_error_at_any_point_of_a_rewrite_keeps_the_checkpoint(error, at, tmp_path, parts, monkeypatch):
    checkpoint.save(tmp_path, 5, parts, {"settings.toml": "old"})
    left = [at]

    def failing(change):
        def instead(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise error
            return change(*args, **kwargs)

        return instead

    names = ("save_file",) if isinstance(error, SafetensorError) else ("save_file", "flush", "digest")
    for name in names:
        monkeypatch.setattr(checkpoint, name, failing(getattr(checkpoint, name)))
    monkeypatch.setattr(Path, "rename", failing(Path.rename))
    try:
        checkpoint.save(tmp_path, 5, parts, {"settings.toml": "new"})
        told = False
    except (OSError, SafetensorError):
        told = True
    assert told == (left[0] <= 0)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path).texts["settings.toml"] in (("old", "new") if told else ("new",))


def test_sweeping_leaves_what_a_living_process_writes(tmp_path):
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.{alive.pid}.tmp", f".00000003.{dead.pid}.tmp", f".film.{dead.pid}.tmp.mp4", ".hidden", "x.tmp"):
        (tmp_path / name).mkdir()
    files.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f".a.{alive.pid}.tmp", ".hidden", "x.tmp"}
    alive.communicate(b"\n")


# ---- a run of version 0.1.0: SDS, from step 6 on DDS, from step 9 on VDM -------------------------------------------

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "data" / "run_of_0_1"


def leaves(node, path=""):
    if not isinstance(node, dict):
        return {path: node}
    return {p: leaf for key, value in node.items() for p, leaf in leaves(value, f"{path}/{key}").items()}


def equal(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_checkpoint_of_0_1_restores_every_part_and_steps_on():
    session = Session(preset("mixture"))
    session.prepare()
    session.restore(OLD / "checkpoint")
    step, parts, texts, checked = checkpoint.load(OLD / "checkpoint")
    assert not checked, "it has no hashes"
    saved, restored = leaves(parts), leaves(session.moment().parts)
    assert saved.keys() <= restored.keys()
    later = {path.rpartition("/")[2]: restored[path] for path in restored.keys() - saved.keys()}
    assert all(value == getattr(PromptSettings(), name) for name, value in later.items()), "knobs that came later"
    for path, value in saved.items():
        assert equal(value, restored[path]), path
    assert session.settings == from_toml(texts["settings.toml"], "old settings")
    assert session.settings.active == "vdm"
    assert session.state.step == step == 12
    assert session.state.aux["vdm"].fitted == 5
    assert session.state.reference.prompt.text == "a red ball"
    session.run(until=20)
    assert (session.state.step, session.state.aux["vdm"].fitted, session.state.skipped) == (20, 13, 0)
    session.do(Patch.one("active", "dds"))
    session.run(until=22)
    assert session.state.reference.prompt.text == "a red ball", "kept, since it was frozen with the same knobs"


def test_a_run_of_0_1_replays_from_its_settings_and_diary():
    settings = from_toml((OLD / "settings.toml").read_text(), "old settings")
    changes, last = changes_in(OLD / "metrics.jsonl")
    assert (settings.active, settings.prompt.text, settings.losses["sds"].cfg) == ("sds", "a red ball", 20.0)
    assert changes == [(6, [("active", "dds"), ("prompt.text", "a blue ball")]), (9, [("active", "vdm")])]
    assert last == 12
    session = Session(settings)
    for step, at_once in changes:
        session.plan(step, Patch(tuple(at_once)))
    session.run(until=last)
    saved = checkpoint.load(OLD / "checkpoint")[1]["scene"]
    for name, tensor in session.state.scene.state_dict().items():  # bit for bit only on the machine of the run
        torch.testing.assert_close(tensor, saved[name], rtol=1e-2, atol=1e-2)
