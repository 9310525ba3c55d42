"""Both stages end to end at small size: what is trained, exact resume, the loss itself."""

import io
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
from torch.nn import functional as F

from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.checkpoints.adapters import read_adapter
from llava.checkpoints.files import read_safetensors, write_safetensors
from llava.checkpoints.native import load_native
from llava.config import EfficientNetLiteConfig
from llava.errors import LlavaError
from llava.models.llava import IMAGE_TOKEN
from llava.models.projectors import build_projector
from llava.processor import IGNORE
from llava.train import loop
from llava.train.data import batch_order
from llava.train.log import read_log
from llava.train.loop import language_loss, rate_at, set_up, train
from llava.train.matching import FLOOR, MOST_CAPTIONS, TEMPERATURE, caption_of, move_origin, scatter_as_words
from llava.train.precision import faster_precision
from llava.train.preview import preview
from llava.train.recipe import Recipe
from llava.train.stages import save_trained
from tests.train.helpers import Watcher, recipe_values, write_base, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_base(tmp_path)
    write_data(tmp_path)
    return tmp_path


def recipe(folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(recipe_values(folder, **changes))


def finetune(folder: Path, **changes: Any) -> Recipe:
    values = {"stage": "finetune", "model": str(folder / "out"), "output": str(folder / "out2"), **changes}
    return recipe(folder, **values)


def weights(output: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(output.glob("**/*.safetensors")):
        found.update({f"{path.name}:{name}": tensor for name, tensor in read_safetensors(path).items()})
    return found


def test_align_trains_the_projector_alone_and_the_loss_falls(folder: Path) -> None:
    watcher = Watcher()
    output = train(recipe(folder, max_steps=40, epochs=9, learning_rate=0.1, checkpoint_every=20), watcher)
    assert [log.step for log in watcher.logs] == list(range(1, 41))
    assert sum(log.loss for log in watcher.logs[-5:]) < 0.9 * sum(
        log.loss for log in watcher.logs[:5]
    )  # the LLM stays random
    assert sorted(path.name for path in output.glob("*.safetensors")) == ["projector.safetensors"]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "tensorboard").glob("events.*"))
    assert not (output / "checkpoints").exists()
    assert len(read_log(output / "log.jsonl")) == 40
    before, after = set_up(recipe(folder), Watcher()).model, load_native(output).model
    assert all(torch.equal(a, b) for a, b in zip(before.llm.parameters(), after.llm.parameters(), strict=True))


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4, "dropout": 0.1}], ids=["full", "lora"])
def test_finetune_starts_from_align_and_its_output_answers_as_trained(
    folder: Path, lora: dict[str, Any] | None
) -> None:
    train(recipe(folder), Watcher())
    long: dict[str, Any] = {
        "max_steps": 160,
        "epochs": 60,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "checkpoint_every": 80,
    }
    output = train(finetune(folder, lora=lora, **long), Watcher())
    names = {path.name for path in output.iterdir()}
    assert ("adapter" in names) == (lora is not None) and ("llm.safetensors" in names) == (lora is None)
    assistant = Assistant(load_native(output))
    if lora is None:  # enough capacity to learn the four colours by heart
        answers = [
            assistant.chat([Message.user(Image(folder / "images" / f"{i}.png"), "colour?")], max_new_tokens=8)
            for i in range(4)
        ]
        assert answers == ["red", "green", "blue", "black"]


def test_align_trains_lora_on_request_and_finetune_goes_on_with_it(folder: Path) -> None:
    aligned = train(recipe(folder, lora={"rank": 2, "alpha": 4}, learning_rate=0.01), Watcher())
    before = read_adapter(aligned / "adapter")
    assert any(bool(b.any()) for _, b in before.values()) and not (aligned / "llm.safetensors").exists()
    tuned = train(finetune(folder, lora={"rank": 2, "alpha": 4}, learning_rate=1e-9), Watcher())
    for name, (a, b) in read_adapter(tuned / "adapter").items():
        assert torch.allclose(b @ a, before[name][1] @ before[name][0], atol=1e-5)


def test_runs_may_share_their_features(folder: Path) -> None:
    shared = folder / "features"
    train(recipe(folder, cache=str(shared)), Watcher())
    (file,) = shared.iterdir()
    made = file.stat().st_mtime_ns
    train(finetune(folder, cache=str(shared), lora={"rank": 2}), Watcher())
    assert [path.stat().st_mtime_ns for path in shared.iterdir()] == [made]
    assert not (folder / "out" / "cache").exists()


def test_a_later_stage_reads_the_encoder_out_as_its_recipe_says(folder: Path) -> None:
    values = recipe_values(folder, cache_features=False, max_steps=1)
    encoder = EfficientNetLiteConfig(image_size=64, stages=(7,), grid=2)
    values["model"] |= {"vision": "efficientnet-lite0", "encoder": encoder.model_dump(), "image": {"size": 64}}
    train(Recipe.model_validate(values), Watcher())
    finer = encoder.model_copy(update={"grid": 3, "image_size": 96})
    output = train(finetune(folder, encoder=finer.model_dump(), cache_features=False, max_steps=1), Watcher())
    one, other = (load_native(path).model for path in (folder / "out", output))
    assert (one.vision.num_tokens, other.vision.num_tokens) == (4, 9) and other.config.vision == finer
    assert (one.config.image.size, other.config.image.size) == (64, 96)
    assert all(torch.equal(a, b) for a, b in zip(one.vision.parameters(), other.vision.parameters(), strict=True))
    wider = encoder.model_copy(update={"stages": (6, 7)})
    with pytest.raises(LlavaError, match=r"encoder: .* grid and image_size; stages is \(6, 7\), was \(7,\)"):
        set_up(finetune(folder, encoder=wider.model_dump()), Watcher())
    scaled = encoder.model_copy(update={"normalize": True})  # as many features, but others
    with pytest.raises(LlavaError, match="normalize is True, was False"):
        set_up(finetune(folder, encoder=scaled.model_dump()), Watcher())


@pytest.mark.parametrize(
    "second",
    [{}, {"lora": {"rank": 2, "alpha": 4}}, {"stage": "align"}, {"stage": "align", "lora": {"rank": 2, "alpha": 4}}],
    ids=["full", "lora", "align", "align with lora"],
)
def test_what_is_saved_is_what_was_trained_also_on_a_tuned_model(folder: Path, second: dict[str, Any]) -> None:
    train(recipe(folder), Watcher())
    tuned = train(finetune(folder, lora={"rank": 2}, output=str(folder / "tuned")), Watcher())
    chosen = finetune(folder, model=str(tuned), output=str(folder / "again"), **second)
    run = set_up(chosen, Watcher())
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_trained(chosen.output, run.model, chosen)
    batch = run.batch(list(range(6)))
    with torch.inference_mode():
        expected, found = (
            model.llm.logits(model(batch.ids, model.project(run.features(batch), batch.layouts)))
            for model in (run.model.eval(), load_native(chosen.output).model)
        )
    assert torch.allclose(expected, found, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_lora_goes_on_with_the_adapter_of_the_model_that_it_starts_from(folder: Path, rank: int) -> None:
    train(recipe(folder), Watcher())
    tuned = train(finetune(folder, lora={"rank": 2, "alpha": 4}, output=str(folder / "tuned")), Watcher())
    chosen = finetune(folder, model=str(tuned), lora={"rank": rank, "alpha": 5}, output=str(folder / "again"))
    run = set_up(chosen, Watcher())
    save_trained(chosen.output, run.model, chosen)
    assert not (chosen.output / "llm.safetensors").exists()
    before, after = (read_adapter(path / "adapter") for path in (tuned, chosen.output))
    assert before.keys() == after.keys()
    for name, (a, b) in before.items():
        u, s, v = torch.linalg.svd(b @ a)
        a_now, b_now = after[name]
        assert len(a_now) == rank
        assert torch.allclose(b_now @ a_now, u[:, :rank] @ s[:rank].diag() @ v[:rank], atol=1e-5)
    trained = read_adapter(train(chosen.model_copy(update={"output": folder / "trained"}), Watcher()) / "adapter")
    assert any(not torch.equal(b, trained[name][1]) for name, (_, b) in after.items())


def test_an_adapter_of_another_llm_is_one_clear_error(folder: Path) -> None:
    train(recipe(folder), Watcher())
    tuned = train(finetune(folder, lora={"rank": 2}), Watcher())
    file = tuned / "adapter" / "adapter_model.safetensors"
    tensors = read_safetensors(file)
    write_safetensors(file, {name.replace("layers.0.", "layers.7."): tensor for name, tensor in tensors.items()})
    with pytest.raises(LlavaError, match="does not fit the model"):
        set_up(finetune(folder, model=str(tuned), lora={"rank": 2}, output=str(folder / "again")), Watcher())


def test_of_the_encoder_only_what_was_trained_is_saved(folder: Path) -> None:
    output = train(recipe(folder, train_vision=("encoder.layers.1.",), cache_features=False), Watcher())
    saved = read_safetensors(output / "vision.safetensors")
    assert saved and all(name.startswith("encoder.layers.1.") for name in saved)
    tower = load_native(output).model.vision.state_dict()
    first = read_safetensors(folder / "clip.safetensors")
    assert all(torch.equal(tower[name], saved.get(name, first[name])) for name in tower)
    assert any(not torch.equal(saved[name], first[name]) for name in saved)
    later = train(finetune(folder, lora={"rank": 2}), Watcher())  # what was trained before is kept
    assert weights(later).keys() >= {f"vision.safetensors:{name}" for name in saved}


def test_restart_leaves_nothing_of_the_run_before(folder: Path) -> None:
    train(recipe(folder), Watcher())
    tuned = train(finetune(folder, lora={"rank": 2}), Watcher())
    assert (tuned / "adapter").exists()
    train(finetune(folder), Watcher(), restart=True)
    assert not (tuned / "adapter").exists() and (tuned / "llm.safetensors").exists()
    with pytest.raises(LlavaError, match="data cannot be read"):
        train(finetune(folder, data={"path": "none.json", "images": "none"}), Watcher(), restart=True)
    assert (tuned / "llm.safetensors").exists()


@pytest.mark.parametrize("stage", ["match", "align", "align with lora", "finetune"])
@pytest.mark.parametrize("stop_after", [3, 5])
def test_an_interrupted_run_goes_on_exactly(
    folder: Path, stage: str, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 3 or 5 (checkpoints at 2 and 4), resumed: bit-equal weights and log."""
    if stage == "match":
        pictures_only(folder)
    monkeypatch.setattr(loop, "faster_precision", lambda device: "float32")
    train(recipe(folder), Watcher())
    changes: dict[str, Any] = {"accumulation": 2, "max_steps": 7, "weight_decay": 0.01, "precision": "auto"}
    if stage == "match":
        changes |= {"stage": "match", "cache_features": False, "train_vision": ["encoder.layers.1."]}
    if stage == "align with lora":
        changes |= {"lora": {"rank": 2, "dropout": 0.2}}
    if stage == "finetune":
        changes |= {"stage": "finetune", "model": str(folder / "out"), "lora": {"rank": 2, "dropout": 0.2}}
    whole = train(recipe(folder, output=str(folder / "whole"), **changes), Watcher())
    broken = recipe(folder, output=str(folder / "broken"), **changes)
    with pytest.raises(KeyboardInterrupt):
        train(broken, Watcher(stop_after))
    assert not (folder / "broken" / "projector.safetensors").exists()
    watcher = Watcher()
    monkeypatch.setattr(loop, "faster_precision", lambda device: "bfloat16")  # a machine that chooses otherwise
    resumed = train(broken, watcher)
    assert watcher.logs[0].step == (3 if stop_after == 3 else 5)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[(log.step, log.loss) for log in read_log(path / "log.jsonl")] for path in (whole, resumed)]
    assert losses[0] == losses[1]


def test_a_run_with_another_recipe_is_not_resumed(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(folder), Watcher(stop_after=3))
    with pytest.raises(LlavaError, match="another recipe \\(changed: learning_rate\\)"):
        train(recipe(folder, learning_rate=1e-3), Watcher())
    train(recipe(folder, learning_rate=1e-3), Watcher(), restart=True)
    with pytest.raises(LlavaError, match="finished run"):
        train(recipe(folder, learning_rate=1e-3), Watcher())


def test_a_run_on_other_data_or_from_another_model_is_not_resumed(folder: Path) -> None:
    train(recipe(folder), Watcher())
    with pytest.raises(KeyboardInterrupt):
        train(finetune(folder, lora={"rank": 2}), Watcher(stop_after=3))
    data = Path(finetune(folder).data.path)
    rows, text = json.loads(data.read_text()), data.read_text()
    data.write_text(json.dumps(rows[:-1]))
    with pytest.raises(LlavaError, match="on other data, or from another model"):
        train(finetune(folder, lora={"rank": 2}), Watcher())
    data.write_text(text)
    train(recipe(folder, seed=1), Watcher(), restart=True)
    with pytest.raises(LlavaError, match="on other data, or from another model"):
        train(finetune(folder, lora={"rank": 2}), Watcher())


def test_base_files_are_found_from_anywhere_and_known_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = recipe_values(folder)
    monkeypatch.chdir(folder)
    train(Recipe.model_validate(values | {"model": values["model"] | {"llm": "llm.gguf"}}), Watcher())
    monkeypatch.chdir("/")
    base = load_native(folder / "out").model.config.base
    assert base is not None and base.llm == str(folder / "llm.gguf")
    with pytest.raises(KeyboardInterrupt):
        train(finetune(folder, lora={"rank": 2}), Watcher(stop_after=3))
    file = folder / "llm.gguf"
    content = bytearray(file.read_bytes())
    content[-4:] = b"\0\0\0\0"  # a weight
    file.write_bytes(content)
    with pytest.raises(LlavaError, match="on other data, or from another model"):
        train(finetune(folder, lora={"rank": 2}), Watcher())


def test_a_model_is_not_replaced_unasked(folder: Path) -> None:
    aligned = train(recipe(folder), Watcher())
    for restart in (False, True):
        with pytest.raises(LlavaError, match="is the model that the run starts from"):
            train(finetune(folder, output=str(aligned)), Watcher(), restart=restart)
    (aligned / "run.json").unlink()
    with pytest.raises(LlavaError, match="holds a model"):
        train(recipe(folder), Watcher())
    assert (aligned / "projector.safetensors").exists()


def test_parts_of_an_earlier_model_never_become_part_of_a_run(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "llm.safetensors").write_bytes(b"of a run that was cut off")
    with pytest.raises(LlavaError, match=r"holds llm\.safetensors of a run that cannot be gone on with"):
        train(recipe(folder), Watcher())
    train(recipe(folder), Watcher(), restart=True)
    assert not (folder / "out" / "llm.safetensors").exists()


def test_a_run_whose_model_could_not_be_written_goes_on_where_it_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LlavaError("no room")

    expected = weights(train(recipe(folder, output=str(folder / "whole")), Watcher()))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_trained", full)
        with pytest.raises(LlavaError, match="no room"):
            train(recipe(folder), Watcher())
    watcher = Watcher()
    found = weights(train(recipe(folder), watcher))
    assert watcher.logs == []
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_published_model_is_refused_before_it_is_fetched(folder: Path) -> None:
    with pytest.raises(LlavaError, match=r"^liuhaotian/llava-v1.5-7b: published models can be run, .* not trained"):
        train(finetune(folder, model="liuhaotian/llava-v1.5-7b"), Watcher())
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(LlavaError, match="hub: is not of the native layout, and stands on no base parts"):
        train(finetune(folder, model=str(folder / "hub")), Watcher())


def test_features_that_no_disk_holds_are_told_with_their_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(LlavaError, match=r"features of all pictures take .* GB, 0\.0 GB are free; .* cache_features"):
        train(recipe(folder), Watcher())
    train(recipe(folder, cache_features=False), Watcher())


def test_what_else_lies_beside_checkpoints_stays(folder: Path) -> None:
    other = folder / "out" / "checkpoints" / "llava-v1.5-7b"
    killed = other.with_name(".step-00000002.x.tmp")
    for made in (other, killed):
        made.mkdir(parents=True)
    train(recipe(folder), Watcher())
    assert [path.name for path in other.parent.iterdir()] == ["llava-v1.5-7b"]


def test_an_unknown_template_is_told_before_anything_is_trained(folder: Path) -> None:
    chosen = recipe(folder)
    assert not isinstance(chosen.model, Path)
    model = chosen.model.model_copy(update={"template": "chatmll"})
    with pytest.raises(LlavaError, match="unknown template 'chatmll'"):
        set_up(chosen.model_copy(update={"model": model}), Watcher())


def test_missing_packages_are_told_before_anything_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LlavaError, match=r"pip install 'llava\[train\]'"):
        train(recipe(folder), Watcher())
    assert not (folder / "out").exists()


def test_a_full_disk_is_one_clear_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(LlavaError, match="the checkpoint cannot be written"):
            train(recipe(folder), Watcher())
    train(recipe(folder), Watcher())


def test_every_batch_of_an_epoch_is_a_step(folder: Path) -> None:
    run = set_up(recipe(folder, epochs=1, max_steps=None, batch_size=5), Watcher())
    assert len(run.data.samples) == 25  # one of which has no picture, and a batch of its own
    assert run.steps == len(batch_order(run.data.samples, 5, 0, epoch=0)) == 6


def test_a_damaged_checkpoint_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe(folder), Watcher(stop_after=3))
    (state,) = (folder / "out" / "checkpoints").glob("*/optimizer.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(LlavaError, match="damaged checkpoint"):
        train(recipe(folder), Watcher())


def test_the_loss_equals_cross_entropy_over_full_logits(folder: Path) -> None:
    """Also: accumulated micro-batches of any split give the gradient of the whole batch."""
    run = set_up(finetune(folder, model=recipe_values(folder)["model"]), Watcher())
    batch = run.batch(list(range(6)))
    loss = run.loss_sum(batch)
    images = run.model.projector(batch.visual).flatten(0, 1)
    logits = run.model.llm.logits(run.model(batch.ids, images))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert batch.supervised == int((batch.labels[:, 1:] != IGNORE).sum())
    parts = sum(run.loss_sum(run.batch(indices)) for indices in ([0, 3], [1, 2, 4, 5]))
    assert torch.allclose(torch.as_tensor(parts), loss, rtol=1e-5)


def test_bfloat16_is_near_float32_and_what_is_trained_stays_float32(folder: Path) -> None:
    run = set_up(finetune(folder, model=recipe_values(folder)["model"], precision="bfloat16"), Watcher())
    batch = run.batch(list(range(6)))
    precisions = ("float32", "bfloat16")
    exact, rounded = (language_loss(run.model, batch, batch.visual, precision) for precision in precisions)
    assert rounded.dtype == torch.float32
    assert exact != rounded  # it did compute in another precision
    assert torch.allclose(exact, rounded, rtol=1e-2)  # bfloat16 keeps 8 bits of a number: 0.4%
    rounded.backward()  # type: ignore[no-untyped-call]
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)
    train(recipe(folder, precision="bfloat16"), Watcher())
    assert all(math.isfinite(log.loss) for log in read_log(folder / "out" / "log.jsonl"))


@pytest.mark.parametrize(("seconds", "expected"), [((2.0, 1.0), "bfloat16"), ((1.0, 2.0), "float32")])
def test_the_faster_precision_is_taken_where_the_recipe_leaves_it_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], expected: str
) -> None:
    times = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
    monkeypatch.setattr("llava.train.precision._seconds", lambda dtype, device: times[dtype])
    assert set_up(recipe(folder, precision="auto"), Watcher()).precision == expected


def test_both_precisions_can_be_measured() -> None:
    assert faster_precision(torch.device("cpu")) in ("float32", "bfloat16")


def test_cached_features_are_what_a_run_without_them_computes(folder: Path) -> None:
    computed = {}
    for precision, tolerance in (("float32", 1e-6), ("bfloat16", 2**-7)):  # a batch may be rounded otherwise
        cached = set_up(recipe(folder, cache=str(folder / "cache"), precision=precision), Watcher())
        plain = set_up(recipe(folder, cache_features=False, precision=precision), Watcher())
        indices = list(range(len(cached.data.samples)))
        ours, theirs = (run.features(run.batch(indices)) for run in (cached, plain))
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
        losses = [run.loss_sum(run.batch(indices)) for run in (cached, plain)]
        assert torch.allclose(losses[0], losses[1], rtol=tolerance)
        computed[precision] = ours
    assert not torch.equal(computed["float32"], computed["bfloat16"])


def test_workers_give_the_batches_of_one_process(folder: Path) -> None:
    alone, helped = Watcher(), Watcher()
    train(recipe(folder, max_steps=3, cache_features=False), alone)
    train(recipe(folder, max_steps=3, cache_features=False, workers=1, output=str(folder / "w")), helped)
    assert [log.loss for log in helped.logs] == [log.loss for log in alone.logs]


def test_corrupt_pictures_found_late_are_left_out_and_counted(folder: Path) -> None:
    path = folder / "images" / "5.png"
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 90).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])  # the header is whole
    values = recipe_values(folder, cache_features=False, max_steps=12)
    values["data"]["max_dropped"] = 0.5
    watcher = Watcher()
    output = train(Recipe.model_validate(values), watcher)
    corrupt = json.loads((output / "run.json").read_text())["corrupt"]
    assert corrupt >= 1 and watcher.texts == [f"{corrupt} samples were left out: their pictures turned out corrupt"]
    values["data"]["max_dropped"] = 0.0
    with pytest.raises(LlavaError, match="1 samples had corrupt images"):
        train(Recipe.model_validate(values), Watcher(), restart=True)


def test_rows_that_cannot_be_used_are_told_and_kept_in_the_run(folder: Path) -> None:
    rows = json.loads((folder / "data.json").read_text())
    rows[3]["image"] = "gone.png"
    (folder / "data.json").write_text(json.dumps(rows))
    values, watcher = recipe_values(folder, max_steps=1), Watcher()
    values["data"]["max_dropped"] = 0.5
    output = train(Recipe.model_validate(values), watcher)
    assert watcher.texts == ["1 of 25 rows cannot be used: 1 x image not found"]
    assert json.loads((output / "run.json").read_text())["dropped"] == {"image not found": 1}


def test_a_dry_run_shows_a_sample_and_trains_nothing(folder: Path) -> None:
    report = preview(recipe(folder, stage="finetune"), Watcher())
    assert [piece.kind for piece in report.pieces][:4] == ["context", "image", "context", "supervised"]
    assert report.pieces[3].text == "red<|im_end|>"
    assert report.pieces[1].tokens == 1
    assert (report.rows, report.samples) == (25, 25)
    assert report.seconds > 0 and report.memory > 0 and 0 < report.trainable < report.parameters
    assert not (folder / "out" / "projector.safetensors").exists()


def pictures_only(folder: Path) -> None:
    rows = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([row for row in rows if "image" in row]))


def test_match_trains_projector_and_encoder_and_the_next_stages_keep_them(folder: Path) -> None:
    pictures_only(folder)
    before = load_native(train(recipe(folder, max_steps=1, learning_rate=1e-9), Watcher())).model.vision.state_dict()
    watcher, changes = Watcher(), {"stage": "match", "cache_features": False, "train_vision": ["encoder.layers.1."]}
    matched = train(
        recipe(
            folder,
            max_steps=120,
            epochs=24,
            checkpoint_every=60,
            output=str(folder / "matched"),
            **changes,
            learning_rate=0.03,
        ),
        watcher,
    )
    assert sum(log.loss for log in watcher.logs[-5:]) < 0.5 * sum(log.loss for log in watcher.logs[:5])
    after = load_native(matched).model.vision.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("encoder.layers.1.") for name in changed)
    aligned = train(recipe(folder, model=str(matched), output=str(folder / "aligned")), Watcher())
    tuned = train(finetune(folder, model=str(aligned)), Watcher())
    kept = load_native(tuned).model.vision.state_dict()
    assert all(torch.equal(kept[name], after[name]) for name in after)
    answers = Assistant(load_native(tuned)).chat([Message.user(Image(folder / "images" / "1.png"), "colour?")])
    assert isinstance(answers, str)


def test_the_matching_loss_equals_one_picture_at_a_time(folder: Path) -> None:
    pictures_only(folder)
    run = set_up(recipe(folder, stage="match"), Watcher())
    assert run.captions is not None and run.mean is not None
    every = torch.cat([run.batch([i]).visual for i in range(len(run.data.samples))])
    assert torch.allclose(run.mean, every.mean((0, 1)), atol=1e-5)
    ids = list(run.captions.place)
    assert len(ids) == 8 <= MOST_CAPTIONS  # four colours, of which some are sure
    batch = run.batch([0, 1, 5, 7])
    table = run.model.llm.embed_tokens.weight
    texts = torch.stack([table[list(caption)].mean(0) for caption in ids])
    away = texts - texts.mean(0)
    spread = away.T @ away / len(away)
    whitened = torch.linalg.inv(spread + FLOOR * spread.diagonal().mean() * torch.eye(len(spread)))

    def product(x: torch.Tensor, y: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
        return torch.einsum("...i, ij, ...j", x, metric, y)

    expected = 0.0
    for row, features in zip(batch.labels.tolist(), batch.visual, strict=True):
        picture = run.model.projector(features - run.mean).mean(0)
        for m in (whitened, torch.eye(len(spread))):
            scores = product(away, picture, m) / (product(away, away, m) * product(picture, picture, m)).sqrt()
            expected -= torch.log_softmax(scores / TEMPERATURE, 0)[ids.index(caption_of(row))].item() / 2
    assert run.loss_sum(batch).item() == pytest.approx(expected, rel=1e-3)  # two ways to invert a matrix
    assert run.weight(batch) == 4


def test_a_projector_whose_origin_is_moved_gives_the_same_of_moved_features() -> None:
    for name in ("linear", "mlp2x_gelu"):
        projector, x, by = build_projector(name, 8, 16), torch.randn(2, 3, 8), torch.randn(8)
        expected = projector(x)
        move_origin(projector, by)
        assert torch.allclose(projector(x - by), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "mlp2x_gelu"])
def test_tokens_are_made_to_scatter_as_embeddings_do_in_the_same_directions(name: str) -> None:
    torch.manual_seed(0)
    projector, x, table = build_projector(name, 8, 16), torch.randn(6, 5, 8), 3 + 2 * torch.randn(100, 16)
    before = projector(x)
    scatter_as_words(projector, x.split(4), table)
    away, words = projector(x) - table.mean(0), table - table.mean(0)
    assert torch.allclose(F.cosine_similarity(away, before, dim=-1), torch.ones(6, 5), atol=1e-5)
    assert torch.allclose(away.square().sum(-1).mean(), words.square().sum(-1).mean(), rtol=1e-4)


def test_match_leaves_tokens_of_the_size_of_words(folder: Path) -> None:
    pictures_only(folder)
    model = load_native(train(recipe(folder, stage="match"), Watcher())).model
    run = set_up(recipe(folder, stage="match", model=str(folder / "out"), output=str(folder / "again")), Watcher())
    features = run.features(run.batch(list(range(len(run.data.samples)))))
    table = model.llm.embed_tokens.weight
    size, words = (((x - table.mean(0)).square().sum(-1)).mean() for x in (model.projector(features), table))
    assert torch.allclose(size, words, rtol=1e-4)  # all samples are among the thousand


def test_match_needs_one_picture_a_row(folder: Path) -> None:
    with pytest.raises(LlavaError, match="rows of one picture"):
        set_up(recipe(folder, stage="match"), Watcher())


def test_an_unknown_part_of_the_encoder_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(LlavaError, match=r"no part .* begins with 'blocks'; it has .*encoder"):
        set_up(recipe(folder, cache_features=False, train_vision=["encoder", "blocks"]), Watcher())


def test_a_new_model_with_a_newline_that_nothing_would_train_is_one_clear_error(folder: Path) -> None:
    model = recipe_values(folder)["model"] | {"image": {"size": 14, "tiling": {"pinpoints": [[14, 28]]}}}
    with pytest.raises(LlavaError, match="must be 'flat' or 'spatial'"):
        set_up(recipe(folder, model=model), Watcher())


def test_text_only_and_image_rows_go_into_different_batches(folder: Path) -> None:
    run = set_up(recipe(folder, stage="finetune"), Watcher())
    text = next(i for i, sample in enumerate(run.data.samples) if not sample.sizes)
    batch = run.batch([text])
    assert len(batch.visual) == 0 and not (batch.ids == IMAGE_TOKEN).any()
    assert run.loss_sum(batch).isfinite()


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates == [*rates[:10], *sorted(rates[10:], reverse=True)]
    assert rates[-1] < 0.001 and rate_at(0, 1, 0.0) == 1.0
