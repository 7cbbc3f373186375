"""The toybox prior: its networks have the documented shape, training learns and resumes, its folder loads anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdlab.priors.diffusers import DiffusersPrior
from sdlab.toybox import model, pictures, sample, words
from sdlab.training import cli, reading, train
from sdlab.training import judge as judge_training

TINY = model.Shape(channels=(16, 32), patch=2, text_width=32, text_layers=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: networks this small only lose with more, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- network and tokenizer


@pytest.mark.slow
def test_tokenizer_knows_all_caption_words_and_fits_the_longest_prompt() -> None:
    tokenizer = model.build_tokenizer()
    unknown = tokenizer.unk_token_id
    known = set(words.vocabulary())
    for i in range(3000):
        caption = pictures.describe(0, i).caption
        ids = tokenizer(caption).input_ids
        assert (unknown in ids) == bool(set(re.findall(r"\w+", caption)) - known), caption
    source = "a photo of a shiny orange mushroom, overhead view, " + ", ".join(words.DESCRIPTORS)
    ids = model.encode_captions(tokenizer, [source])[0]
    assert len(ids) == model.MAX_TOKENS
    assert tokenizer.eos_token_id in ids.tolist()  # nothing was truncated
    assert unknown not in ids.tolist()
    assert torch.equal(*model.encode_captions(tokenizer, ["A Red Bear,front view", "a red bear, front view"]))


def test_shipped_sizes() -> None:
    box = model.build()
    assert 9e6 < sum(p.numel() for p in box.unet.parameters()) < 10.5e6
    assert box.patch == 1
    assert box.scheduler.alphas_cumprod[999] < 1e-6  # the schedule ends in pure noise


def test_no_saved_file_is_large_and_none_of_an_earlier_save_is_left(tmp_path: Path) -> None:
    model.save(model.build(TINY), tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    box = model.build()
    model.save(box, tmp_path)
    assert max(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 10e6
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    again = model.load(tmp_path, CPU)
    for mine, theirs in zip(box.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.half(), theirs.half())


def test_space_to_depth_loses_nothing_and_keeps_lengths() -> None:
    box = model.build(TINY)
    rgb = torch.rand(2, 3, pictures.SIZE, pictures.SIZE, generator=torch.Generator().manual_seed(0))
    z = box.encode(rgb)
    assert z.shape == (2, 12, pictures.SIZE // 2, pictures.SIZE // 2)
    assert torch.allclose(box.decode(z), rgb, atol=1e-6)
    assert z.square().sum() == pytest.approx(float((2 * rgb - 1).square().sum()), rel=1e-5)


def test_start_takes_weights_over_and_words_by_name(tmp_path: Path) -> None:
    kept, box = model.build(TINY, seed=1), model.build(TINY, seed=2)
    model.save(kept, tmp_path / "kept")
    model.adopt(box, tmp_path / "kept")
    for mine, theirs in zip(box.parameters(), kept.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-3)  # float16 on disk
    config = tmp_path / "kept" / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(config.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["red"], ids["blue"] = ids["blue"], ids["red"]  # as if the other toybox had another word order
    config.write_text(json.dumps(tokenizer))
    model.adopt(box, tmp_path / "kept")
    mine, theirs = (b.text_encoder.get_input_embeddings().weight for b in (box, kept))
    ids = box.tokenizer.get_vocab()
    assert torch.allclose(mine[ids["red"]], theirs[ids["blue"]], atol=2e-3)
    assert torch.allclose(mine[ids["bear"]], theirs[ids["bear"]], atol=2e-3)
    with pytest.raises(ValueError, match=r"--start: .* different networks"):
        model.adopt(model.build(model.Shape(channels=(16, 48), text_width=32, text_layers=1)), tmp_path / "kept")


def test_a_network_of_blocks_starts_one_of_pixels(tmp_path: Path) -> None:
    """On uniform blocks, the network on blocks agrees on average with the one on pixels, one pixel per block."""
    blocks, pixels = model.build(TINY, seed=1), model.build(replace(TINY, size=TINY.size // 2, patch=1), seed=2)
    model.save(blocks, tmp_path / "kept")
    model.adopt(pixels, tmp_path / "kept")
    coarse = torch.rand(2, 3, TINY.size // 2, TINY.size // 2, generator=torch.Generator().manual_seed(0))
    even = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
    tokens = model.encode_captions(pixels.tokenizer, ["a red bear", "a blue car"])
    answers = []
    with torch.no_grad():
        for box, rgb in ((blocks, even), (pixels, coarse)):
            box.unet.eval(), box.text_encoder.eval()
            hidden = box.text_encoder(tokens)[0]
            t = torch.tensor([10, 500])
            answers.append(box.unet(box.encode(rgb), t, encoder_hidden_states=hidden, return_dict=False)[0])
    torch.testing.assert_close(answers[0].unflatten(1, (3, 4)).mean(2), answers[1], rtol=0.02, atol=5e-3)  # float16


# ---- trainer


@pytest.fixture(scope="module")
def pool() -> pictures.Pool:
    return pictures.make_pool(0, 64)


@pytest.mark.slow
def test_loss_falls_on_a_tiny_net(pool: pictures.Pool) -> None:
    trainer = train.Trainer(train.Plan(samples=8 * 240, batch=8, lr=6e-3, reading=0, shape=TINY), pool, CPU)
    losses = [float(trainer.train_step()) for _ in range(80)]
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])


def test_a_step_trains_every_weight_and_muon_the_matrices_in_place(pool: pictures.Pool) -> None:
    trainer = train.Trainer(train.Plan(samples=800, batch=8, shape=TINY), pool, CPU)
    before = [w.detach().clone() for w in trainer.weights]
    trainer.train_step()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.weights, strict=True))
    names = {id(w): name for name, w in trainer.box.unet.named_parameters()}
    by_muon = {names.get(id(weight), "") for weight, _ in trainer.matrices}
    assert {"mid_block.resnets.0.conv1.weight", "mid_block.attentions.0.proj_in.weight"} <= by_muon
    assert not by_muon & {"conv_in.weight", "conv_out.weight", "mid_block.resnets.0.norm1.weight"}
    for weight, matrix in trainer.matrices:
        assert weight.data_ptr() == matrix.data_ptr()
        assert matrix.shape == (len(weight), weight.numel() // len(weight))
    assert sum(w.numel() for o in trainer.optimisers for g in o.param_groups for w in g["params"]) == sum(
        w.numel() for w in trainer.weights
    )


def test_rate_and_order_follow_the_plan(pool: pictures.Pool) -> None:
    plan = train.Plan(samples=1000 * 24, batch=24, reading=0, shape=TINY)
    trainer = train.Trainer(plan, pool, CPU)
    assert trainer.rate() == pytest.approx(plan.lr / train.WARMUP_STEPS)
    trainer.step = 749
    assert trainer.rate() == plan.lr
    trainer.step = 750 + 250 // 4
    assert trainer.rate() == pytest.approx(plan.lr * 0.505, rel=0.01)  # 1 - sqrt(1 / 4)
    trainer.step = plan.steps
    assert trainer.rate() == pytest.approx(plan.lr * train.FINAL_RATE)
    seen = []
    for trainer.step in range(8):  # 192 = 3 epochs of 64
        seen += trainer.picture_indices().tolist()
    for epoch in range(3):
        assert sorted(seen[64 * epoch : 64 * epoch + 64]) == list(range(64))
    assert seen[:64] != seen[64:128]


def test_batch_is_captioned_noised_and_mirrored_as_said(pool: pictures.Pool) -> None:
    trainer = train.Trainer(train.Plan(samples=6400, batch=64, reading=0, shape=TINY), pool, CPU)
    dropped = mirrored = 0
    for trainer.step in range(12):
        which = trainer.picture_indices()
        z0, tokens, t, noise = trainer.batch()
        assert z0.min() >= -1
        assert z0.max() <= 1
        assert noise.std() == pytest.approx(1.0, abs=0.02)
        assert (t // 250).bincount().tolist() == pytest.approx([16] * 4, abs=1)  # stratified
        for row, z, caption in zip(which.tolist(), z0, tokens, strict=True):
            true, rgb = torch.from_numpy(pool.rgb[row]) / 255, trainer.box.decode(z[None])[0]
            if not torch.allclose(rgb, true, atol=1e-5):
                assert torch.allclose(rgb.flip(-1), true, atol=1e-5)
                assert pool.may_mirror[row]
                mirrored += 1
            if not torch.equal(caption, trainer.tokens[row].long()):
                assert torch.equal(caption, trainer.no_caption)
                dropped += 1
    assert dropped / 768 == pytest.approx(train.CAPTION_DROPOUT, abs=0.04)
    assert mirrored / 768 > 0.3


@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    plan = train.Plan(samples=64, batch=8, pictures=48, reading=0, shape=TINY)  # 8 steps
    whole = train.train(tmp_path / "whole", tmp_path, plan)
    countdown = iter([False] * 3)
    part = train.train(tmp_path / "part", tmp_path, plan, stop=lambda: next(countdown, True))
    assert part.step == 3
    other = train.Plan(samples=8, batch=4)  # ignored: a resumed run keeps its original plan
    rest = train.train(tmp_path / "part", tmp_path, other, resume=True)
    assert rest.step == whole.step == 8
    for a, b in zip(whole.weights + whole.average, rest.weights + rest.average, strict=True):
        assert torch.equal(a, b)
    log = json.loads((tmp_path / "part" / train.LOG).read_text())
    assert [line["samples"] for line in log] == [64]


@pytest.mark.slow
def test_finished_run_grows_from_before_its_rate_fell(tmp_path: Path) -> None:
    plan = train.Plan(samples=64, batch=8, pictures=48, reading=0, shape=TINY)  # 8 steps, decay from step 6
    train.train(tmp_path / "run", tmp_path, plan)
    with pytest.raises(ValueError, match=r"--samples: .* at least 64 needed"):
        train.train(tmp_path / "run", tmp_path, plan, resume=True, longer=32)
    longer = train.train(tmp_path / "run", tmp_path, plan, resume=True, longer=96)
    whole = train.train(tmp_path / "whole", tmp_path, replace(plan, samples=96))
    assert longer.step == whole.step == 12
    for a, b in zip(longer.weights + longer.average, whole.weights + whole.average, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_predicting_v_and_eps_train_the_same_mean(pool: pictures.Pool) -> None:
    """If the network outputs zero, the loss is the weighted mean square of the target, for either prediction type."""
    weights = {
        "v_prediction": lambda snr: (snr + 1).clamp(max=5) / (snr + 1),
        "epsilon": lambda snr: snr.clamp(max=5) / snr,
    }
    for prediction, weight in weights.items():
        shape = replace(TINY, prediction=prediction)
        trainer = train.Trainer(train.Plan(samples=640, batch=64, shape=shape), pool, CPU)
        for parameter in trainer.box.unet.conv_out.parameters():
            parameter.data.zero_()
        z0, _, t, noise = trainer.batch()
        alpha_bar = trainer.alphas_cumprod[t].view(-1, 1, 1, 1)
        target = noise if prediction == "epsilon" else alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z0
        snr = trainer.alphas_cumprod[t] / (1 - trainer.alphas_cumprod[t])
        expected = (target.square().mean((1, 2, 3)) * weight(snr)).mean()
        assert float(trainer.train_step()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_text_encoder_learns_to_read_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH", 32)
    box = model.build(replace(TINY, text_width=64))
    shares: list[float] = []
    reading.learn_to_read(box, 32 * 60, 0, lambda done, share: shares.append(share))
    assert len(shares) == 60
    assert np.mean(shares[-5:]) > np.mean(shares[:5]) + 0.2
    again = model.build(TINY), model.build(TINY)
    for one in again:
        reading.learn_to_read(one, 256, 5)
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), again[1].parameters(), strict=True))
    read, unread = (
        train.train(tmp_path / f"{n}", tmp_path, train.Plan(8, batch=8, pictures=16, reading=n, shape=TINY))
        for n in (256, 0)
    )
    pairs = zip(read.box.text_encoder.parameters(), unread.box.text_encoder.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)  # the two runs differ only in the pre-training


def test_runs_are_neither_overwritten_nor_invented(tmp_path: Path) -> None:
    plan = train.Plan(samples=8, batch=8, pictures=16, reading=0, shape=TINY)
    with pytest.raises(ValueError, match="--resume: no checkpoint"):
        train.train(tmp_path / "run", tmp_path, plan, resume=True)
    train.train(tmp_path / "run", tmp_path, plan)
    with pytest.raises(ValueError, match=r"--out: .* already holds a run"):
        train.train(tmp_path / "run", tmp_path, plan)
    (tmp_path / "run" / train.CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot be read"):
        train.train(tmp_path / "run", tmp_path, plan, resume=True)


# ---- saved folder, samples, commands


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toybox")
    model.save(model.build(TINY), folder)
    return folder


def test_saved_folder_loads_by_the_libraries_alone(saved: Path) -> None:
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel

    box = model.build(TINY)
    unet = UNet2DConditionModel.from_pretrained(saved, subfolder="unet")
    encoder = CLIPTextModel.from_pretrained(saved, subfolder="text_encoder", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(saved, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(saved, subfolder="scheduler")
    assert torch.allclose(scheduler.alphas_cumprod, box.scheduler.alphas_cumprod)
    assert scheduler.config["prediction_type"] == "v_prediction"
    tokens = tokenizer(["a red bear, back view"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(tokens, model.encode_captions(box.tokenizer, ["a red bear, back view"]))
    side = box.unet.config["sample_size"]
    z, t = torch.randn(1, 12, side, side, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    box.unet.eval()
    with torch.no_grad():
        theirs = unet(z, t, encoder(tokens)[0], return_dict=False)[0]
        ours = box.unet(z, t, box.text_encoder.eval()(tokens)[0], return_dict=False)[0]
    assert torch.allclose(theirs, ours, atol=5e-3)  # float16 on disk
    assert all("F16" in p.read_bytes()[:4000].decode("latin1") for p in saved.rglob("*.safetensors"))


def test_samples_are_reproducible_and_follow_the_prompt_not_the_company(saved: Path) -> None:
    prior = DiffusersPrior(path=str(saved), engine="torch", precision="fp32").load(CPU)
    alone = sample.sample(prior, ["a red bear"], scale=7.5, steps=3, seed=1)
    among = sample.sample(prior, ["a red bear", "a blue car"], scale=7.5, steps=3, seed=1)
    assert alone.shape == (1, pictures.SIZE, pictures.SIZE, 3)
    assert alone.min() >= 0
    assert alone.max() <= 1
    # alpha is 1e-4 at t = 999, so float32 rounding shows in single pixels of an untrained network's x0-hat
    assert np.abs(alone[0] - among[0]).mean() < 1e-4
    assert np.abs(alone - sample.sample(prior, ["a red bear"], scale=7.5, steps=3, seed=2)).mean() > 0.05


@pytest.mark.slow
def test_commands(saved: Path, tmp_path: Path) -> None:
    from PIL import Image

    grid = tmp_path / "deep" / "grid.png"
    arguments = ["sample", "a red bear, front view", "a blue car", "--weights", str(saved), "--steps", "2"]
    assert cli.main([*arguments, "--out", str(grid)]) == 0
    assert Image.open(grid).width == 2 * (sample.ZOOMED + 6)
    assert cli.main(["pictures", "--out", str(tmp_path / "p.png"), "--count", "5", "--columns", "5"]) == 0
    assert Image.open(tmp_path / "p.png").width == 5 * (sample.ZOOMED + 6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--out", "x", "--batch", "0"], "--batch"),
        (["train", "--out", "x", "--lr", "nan"], "--lr"),
        (["train", "--out", "x", "--samples", "many"], "--samples"),
        (["train", "--out", "x", "--device", "warp"], "--device"),
        (["sample", "a bear", "--out", "x.jpg"], "--out"),
        (["sample", "a bear", "--out", "x.png", "--weights", "/nowhere"], "--weights"),
        (["train", "--out", "nothing/there", "--resume"], "--resume"),
    ],
)
def test_bad_values_end_with_code_2_name_the_option_and_make_nothing(
    arguments: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
    assert not any(tmp_path.iterdir())


# ---- refused before any work


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data", "{folder}"),
        ("train-judge",),
        ("judge", "--only", "no-view"),
        ("sample", "a red bear"),
        ("pictures",),
    ],
)
def test_results_that_cannot_be_written_are_refused_at_once(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("it has begun")

    for module, name in ((train, "train"), (judge_training, "train"), (cli, "load_prior"), (pictures, "make_pool")):
        monkeypatch.setattr(module, name, no_work)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "grid.png"
    assert cli.main([a.format(folder=tmp_path) for a in arguments] + ["--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("toybox: --out ")
    assert "cannot write there" in line


def test_a_start_that_is_no_toybox_is_refused_before_pictures_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    arguments = ["train", "--out", tmp_path / "run", "--data", data, "--start", tmp_path / "nothing"]
    assert cli.main([str(a) for a in arguments]) == 2
    assert (
        capsys.readouterr().err == f"toybox: --start: {tmp_path / 'nothing'} is not a toybox folder: it has no unet/\n"
    )
    assert not data.exists()


def test_a_stop_while_pictures_are_drawn_is_heard_and_leaves_no_half_of_them(tmp_path: Path) -> None:
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        train.load_pool(train.Plan(64, pictures=3 * pictures.CHUNK), tmp_path, 1, lambda: next(asked))
    assert not list(tmp_path.iterdir())


def test_a_stop_while_captions_are_read_is_heard() -> None:
    pool = pictures.make_pool(0, 8)
    trainer = train.Trainer(train.Plan(64, 4, pictures=8, reading=10**9, shape=TINY), pool, CPU)
    with pytest.raises(KeyboardInterrupt):
        trainer.learn_to_read(lambda: True)


def test_a_long_caption_is_cut_off_under_its_picture(tmp_path: Path) -> None:
    sample.save_grid(np.ones((2, 32, 32, 3), np.float32), ["a bear", "word " * 600], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height < 2 * sample.ZOOMED
