import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_clip import build_model, config, tiny_clip

from fsad_lib.errors import FsadError
from fsad_lib.foundation.clip import CLIP, END_OF_TEXT, expand_token_rows, load_clip

PROMPTS = ["a photo of a gear", "a close-up photo of a damaged metal nut for visual inspection.", "gear"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def export(folder, model, weights="open_clip_model.safetensors", custom=False, **rest):
    folder.mkdir(exist_ok=True)
    model_cfg = config(**rest) | ({"custom_text": True} if custom else {})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / weights) if weights.endswith("safetensors") else torch.save(state, folder / weights)
    return folder


def test_images_agree_with_open_clip(clip):
    x = torch.rand(3, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    want = clip.model.encode_image((x - mean) / std, normalize=True)
    assert torch.allclose(clip.encode_image(x, batch_size=2), want, atol=1e-6)
    f, patches = clip.encode_tokens(clip.embed_patches(x))
    clip.model.visual.output_tokens = True
    _, tokens = clip.model.visual((x - mean) / std)
    clip.model.visual.output_tokens = False
    assert clip.grid == 4 and torch.allclose(f, want, atol=1e-6) and torch.allclose(patches, tokens, atol=1e-5)


def test_images_of_any_size_are_resized_to_the_square(clip):
    x = torch.rand(1, 3, 40, 90)
    resized = F.interpolate(x, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(clip.encode_image(x), clip.encode_image(resized), atol=1e-6)
    with pytest.raises(FsadError, match="B, 3, H, W"):
        clip.encode_image(torch.rand(3, 64, 64))
    with pytest.raises(FsadError, match="float"):
        clip.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("custom", [False, True])
def test_text_with_a_cut_context_equals_the_full_77(custom):
    clip = tiny_clip(custom=custom)
    want = clip.model.encode_text(open_clip.SimpleTokenizer()(PROMPTS), normalize=True)
    assert torch.allclose(clip.encode_text(PROMPTS), want, atol=1e-6)
    assert clip._tokenized(tuple(PROMPTS), ())[0].shape[1] < 20


def test_what_rounding_leaves_outside_the_range_keeps_its_gradient():
    """A picture that is being optimised has saturated pixels; resizing lifts some of them above 1 by a last bit."""
    from fsad_lib.foundation.images import check_images

    x = torch.tensor([-1e-6, 0.0, 0.5, 1.0, 1.0 + 1e-6]).expand(1, 3, 1, 5).requires_grad_()
    clamped = check_images(x)
    assert torch.equal(clamped, x.detach().clamp(0, 1))
    (gradient,) = torch.autograd.grad(clamped.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@pytest.mark.parametrize("bad", [lambda x: 255 * x, lambda x: x * torch.nan, lambda x: (255 * x).byte(), lambda x: x[0], lambda x: [x]])
def test_images_of_another_kind_are_refused(clip, bad):
    with pytest.raises(FsadError, match=r"\[0, 1\]"):
        clip.encode_image(bad(torch.rand(2, 3, 8, 8)))


def test_text_keeps_the_full_context_without_a_causal_mask():
    clip = tiny_clip(custom=True, text={"no_causal_mask": True})
    want = clip.model.encode_text(open_clip.SimpleTokenizer()(PROMPTS), normalize=True)
    assert clip._tokenized(tuple(PROMPTS), ())[0].shape[1] == 77
    assert torch.allclose(clip.encode_text(PROMPTS), want, atol=1e-6)


def test_injected_vector_equals_an_added_token(clip):
    """An enlarged table whose extra row is the vector, its id in the text in place of the placeholder."""
    c_n = torch.randn(64)
    grown = build_model(text={"vocab_size": 49409})
    state = dict(clip.model.state_dict())
    state["token_embedding.weight"] = torch.cat([state["token_embedding.weight"], c_n[None]])
    grown.load_state_dict(state)
    prompts = ["a photo of a <c_n> with damage", "<c_n>", "a <c_n> on a <c_n>"]
    ids = open_clip.SimpleTokenizer()([p.replace("<c_n>", "object") for p in prompts])
    ids[ids == 14115] = 49408
    # The end token's place is kept: pooled by its id ...
    grown.text_pool_type, grown.text_eos_id = "eos", END_OF_TEXT
    want = grown.encode_text(ids, normalize=True)
    got = clip.encode_text(prompts, {"<c_n>": c_n})
    assert torch.allclose(got, want, atol=1e-6)
    # ... whereas open_clip's default, the largest id, would read the new token instead of the end.
    grown.text_pool_type = "argmax"
    assert (grown.encode_text(ids, normalize=True) - want).abs().max() > 1e-2


def test_the_words_own_embedding_changes_nothing(clip):
    prompts = ["a photo of a flawless <c_n>"]
    got = clip.encode_text(prompts, {"<c_n>": clip.token_embedding("gear")})
    assert torch.allclose(got, clip.encode_text(["a photo of a flawless gear"]), atol=1e-6)


def test_gradient_reaches_the_vector_and_nothing_else(clip):
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    c_n, c_a = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    g = clip.encode_text(["a damaged <c_n>", "a gear"], {"<c_n>": c_n, "<c_a>": c_a})
    (g @ torch.randn(48)).sum().backward()
    assert c_n.grad.abs().sum() > 0 and c_a.grad is None
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in clip.model.state_dict().items())
    step = 1e-2 * F.normalize(torch.randn(64), dim=0)
    f = F.normalize(torch.randn(48), dim=0)

    def value(c):
        return (clip.encode_text(["a damaged <c_n>"], {"<c_n>": c}) @ f).sum()

    c = torch.randn(64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(c), c)
    with torch.no_grad():
        numeric = (value(c + step) - value(c - step)) / 2
    assert torch.allclose(slope @ step, numeric, rtol=0.05, atol=1e-5)


def test_start_words_must_be_one_token(clip):
    assert torch.equal(clip.token_embedding("object"), clip.model.token_embedding.weight[14115])
    for word in ("", "unblemished hexagon", "xqzzyplork"):
        with pytest.raises(FsadError, match="tokens"):
            clip.token_embedding(word)
    with pytest.raises(FsadError, match="<c_n>"):
        clip.encode_text(["a <c_n>"])
    with pytest.raises(FsadError, match="list of strings"):
        clip.encode_text("a gear")


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("custom", [False, True])
def test_folder_round_trip(tmp_path, weights, custom):
    model = build_model(custom=custom)
    clip = load_clip(export(tmp_path / "clip", model, weights, custom))
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(clip.encode_image(x), CLIP(model).encode_image(x))
    assert torch.equal(clip.encode_text(PROMPTS), CLIP(model).encode_text(PROMPTS))


def test_half_precision_and_trained_rows_only(tmp_path):
    model = build_model()
    folder = export(tmp_path / "clip", model)
    state = {key: value.half() for key, value in model.state_dict().items()}
    table, ids = state.pop("token_embedding.weight"), torch.tensor([320, 14115, END_OF_TEXT])
    state |= {"token_embedding.rows": table[ids], "token_embedding.ids": ids}
    save_file(state, folder / "open_clip_model.safetensors")
    one, two = load_clip(folder), load_clip(folder)
    loaded = one.model.token_embedding.weight
    assert loaded.dtype == torch.float32 and torch.equal(loaded, two.model.token_embedding.weight)
    assert torch.equal(loaded[ids], table[ids].float())
    rest = torch.ones(49408, dtype=torch.bool).index_fill(0, ids, False)
    assert abs(loaded[rest].std().item() - 0.02) < 1e-3
    assert torch.equal(loaded[rest], expand_token_rows(table[ids], ids, 49408)[rest])


def test_file_with_architecture_and_quickgelu(tmp_path, monkeypatch):
    """The '-quickgelu' name changes the activation and nothing else; OpenAI's weights need it."""
    monkeypatch.setattr(open_clip, "list_models", lambda: ["Tiny-16", "Tiny-16-quickgelu"])
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: config(**({"quick_gelu": True} if "quick" in name else {}))
    )
    model = build_model(quick_gelu=True)
    file = tmp_path / "weights.bin"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    x = torch.rand(1, 3, 64, 64)
    want = CLIP(model).encode_image(x)
    right, wrong = load_clip(file, "Tiny-16-quickgelu"), load_clip(file, "Tiny-16")
    assert torch.allclose(right.encode_image(x), want, atol=1e-6)
    assert (wrong.encode_image(x) - want).abs().max() > 1e-4
    file = file.rename(tmp_path / "Tiny-16-openai.bin")
    with pytest.raises(FsadError, match="Tiny-16-quickgelu"):
        load_clip(file, "Tiny-16")
    load_clip(file, "Tiny-16-quickgelu")
    with pytest.raises(FsadError, match="quick_gelu"):
        load_clip(export(tmp_path / "vit-openai", build_model()))


def test_architectures_of_the_papers_exist_in_open_clip():
    for name in ("ViT-H-14", "ViT-B-16-plus-240", "ViT-B-16-quickgelu"):
        assert open_clip.get_model_config(name)
    assert open_clip.get_model_config("ViT-B-16-quickgelu")["quick_gelu"] is True


def test_errors_of_loading(tmp_path):
    with pytest.raises(FsadError, match="no CLIP checkpoint"):
        load_clip(tmp_path / "missing")
    with pytest.raises(FsadError, match=r"open_clip_config\.json"):
        load_clip(tmp_path)
    folder = export(tmp_path / "clip", build_model())
    weights = folder / "open_clip_model.safetensors"
    with pytest.raises(FsadError, match="architecture"):
        load_clip(weights)
    with pytest.raises(FsadError, match="did you mean ViT-H-14"):
        load_clip(weights, "ViT-H14")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FsadError, match="incomplete"):
        load_clip(folder)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"nonsense")
    weights.unlink()
    with pytest.raises(FsadError, match="cannot be read"):
        load_clip(folder)
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(FsadError, match="no CLIP weights"):
        load_clip(folder)
    export(folder, build_model(), vision={"layers": 3})
    with pytest.raises(FsadError, match="do not fit"):
        load_clip(folder)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(FsadError, match="model_cfg"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"pool_type": "avg"}, "'avg' pooling"),
        ({"attentional_pool": True}, "'attention' pooling"),
        ({"layers": [1, 1, 1, 1], "width": 32}, "ModifiedResNet"),
        ({"image_size": [64, 32]}, "4x2"),
    ],
)
def test_other_image_towers_are_refused(vision, message):
    with pytest.raises(FsadError, match=message):
        tiny_clip(vision=vision)


def test_other_text_towers_are_refused(tmp_path):
    with pytest.raises(FsadError, match="class token"):
        tiny_clip(custom=True, text={"embed_cls": True})
    with pytest.raises(FsadError, match="'last' pooling"):
        tiny_clip(custom=True, text={"pool_type": "last"})
    with pytest.raises(FsadError, match="vocabulary"):
        tiny_clip(text={"vocab_size": 1000})
    folder = export(tmp_path / "clip", build_model(), text={"hf_tokenizer_name": "some/tokenizer"})
    with pytest.raises(FsadError, match="hf_tokenizer_name"):
        load_clip(folder)


@pytest.mark.parametrize("held", [[1], {"state_dict": {"a": 1}}, {1: torch.zeros(1)}])
def test_files_without_named_weights_are_refused(tmp_path, held):
    torch.save(held, tmp_path / "odd.pt")
    with pytest.raises(FsadError, match="odd.pt holds no named weights"):
        load_clip(tmp_path / "odd.pt", architecture="ViT-B-32")


def test_the_shortcut_from_the_learned_word_on_is_exact(clip, monkeypatch):
    prompts = ["a photo of a damaged <c>", "the <c>", "a <d> beside the <c> with damage", "<d>", "a close-up photo of one <c> and a <c>."]
    c, d = (torch.randn(clip.token_dim, generator=torch.Generator().manual_seed(i)).mul_(0.1).requires_grad_() for i in (0, 1))
    weights = torch.randn(len(prompts), clip.embed_dim, generator=torch.Generator().manual_seed(2))

    def all_of_it():
        g = clip.encode_text(prompts, {"<c>": c, "<d>": d})
        return g, *torch.autograd.grad((g * weights).sum(), [c, d])

    assert clip._before(tuple(prompts), ("<c>", "<d>"), clip.device) is not None
    short = all_of_it()
    monkeypatch.setattr(clip, "_before", lambda *_: None)
    for value, want in zip(short, all_of_it(), strict=True):
        torch.testing.assert_close(value, want, atol=1e-5, rtol=1e-5)
