"""The paper profile at its true sizes: does every stage run, how long does it take, how much memory does it need?

    python benchmarks/paper_sizes.py --dry-run                    the sizes alone, seconds
    python benchmarks/paper_sizes.py --image-size 256             a few steps of every stage of ADP (about 9 GB of disk)
    python benchmarks/paper_sizes.py --method anomalysd           the same of AnomalySD (about 5 GB, and 11 GB for a moment)
    python benchmarks/paper_sizes.py --method tgvig --image-size 256 --batch-size 4     of TGVIG with PatchCore (about 1.2 GB)

Writes randomly initialised checkpoints with the published configurations of Stable Diffusion 2.1 and of Stable Diffusion 1.5 inpainting
(U-Net, VAE, text encoder), of OpenCLIP's ViT-H/14, ViT-B/16-plus-240 and ViT-B/16 and of the ImageNet VQGAN with f = 16, in the layouts that the paper profile reads, then runs each
stage in a process of its own, so that its memory is its own and is given back. Random weights say nothing about scores: they show that shapes, keys, dtypes and memory
fit. Resumable: a checkpoint that is written stays, whatever its --dtype, and a stage that has run is not repeated. Delete the folder afterwards.
"""

import argparse
import importlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import open_clip  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from fsad_lib.foundation.clip import clip_of  # noqa: E402
from fsad_lib.foundation.device import best_device  # noqa: E402
from fsad_lib.profiles import load_profile  # noqa: E402
from fsad_lib.runs import Run, open_run, replacing, write_json  # noqa: E402

# The published configurations of Stable Diffusion 2.1.
UNET = dict(
    sample_size=96, in_channels=4, out_channels=4, center_input_sample=False, flip_sin_to_cos=True, freq_shift=0,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024,
    use_linear_projection=True, upcast_attention=True, norm_num_groups=32, norm_eps=1e-5, act_fn="silu",
)  # fmt: skip
VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=32, act_fn="silu",
    sample_size=768, scaling_factor=0.18215,
)  # fmt: skip
TEXT = dict(
    vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, projection_dim=512,
    max_position_embeddings=77, hidden_act="gelu", layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2, pad_token_id=1,
)  # fmt: skip
SCHEDULER = dict(
    _class_name="DDIMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
    prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1, clip_sample=False, trained_betas=None,
)  # fmt: skip
# What Stable Diffusion 1.5 inpainting has of its own: OpenAI's ViT-L/14 text tower, nine channels, convolutions as projections.
TEXT_15 = TEXT | dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")
UNET_15 = UNET | dict(sample_size=64, in_channels=9, attention_head_dim=8, cross_attention_dim=768, use_linear_projection=False, upcast_attention=False)
SCHEDULER_15 = SCHEDULER | dict(prediction_type="epsilon")
STAGES = {
    "adp": ("10_personalize", "20_synthesize", "40_evaluate"), "anomalysd": ("11_personalize", "21_synthesize", "41_evaluate"),
    "tgvig": ("22_synthesize", "32_augment", "42_evaluate"),
}  # fmt: skip
# The ImageNet VQGAN of taming-transformers: channels 128, 128, 256, 256, 512, attention at 16 x 16.
VQ = dict(
    down_block_types=["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"], up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
    block_out_channels=[128, 128, 256, 256, 512], layers_per_block=2, latent_channels=256, vq_embed_dim=256, num_vq_embeddings=16384, norm_num_groups=32,
    sample_size=256,
)  # fmt: skip


def _unet(config: dict) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(config)


def _vae() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_config(VAE)


def _text(config: dict) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config))


def _vqgan() -> torch.nn.Module:
    from diffusers import VQModel

    return VQModel(**VQ)


def _timm(name: str) -> Callable[[], torch.nn.Module]:
    import timm

    return lambda: timm.create_model(name)


def _clip(name: str) -> Callable[[], torch.nn.Module]:
    return lambda: open_clip.CLIP(**open_clip.get_model_config(name))


def parts(method: str = "adp") -> dict[str, tuple[str, dict | None, Callable[[], torch.nn.Module]]]:
    """What a method needs -> (weights file within the folder, configuration written beside it, the model)."""
    profile = load_profile("paper")
    sd, h, b = (getattr(profile, section).checkpoint for section in ("diffusion", "clip", "winclip_clip"))
    if method == "tgvig":
        c, backbone, inception = profile.tgvig_clip, profile.baseline_backbone, profile.inception
        return {
            f"CLIP {c.architecture}": (f"{c.checkpoint}/open_clip_model.safetensors", None, _clip(c.architecture)),
            "VQGAN": (profile.vqgan.checkpoint, None, _vqgan), **{q.name: (q.checkpoint, None, _timm(q.name)) for q in (backbone, inception)},
        }  # fmt: skip
    if method == "anomalysd":
        clips = {f"CLIP {profile.winclip_clip.architecture}": (f"{b}/open_clip_model.safetensors", None, _clip(profile.winclip_clip.architecture))}
        return clips | _diffusion_parts("SD 1.5 inpainting", profile.inpainting.checkpoint, UNET_15, TEXT_15)
    clips = {
        f"CLIP {c.architecture}": (f"{folder}/open_clip_model.safetensors", None, _clip(c.architecture))
        for folder, c in ((h, profile.clip), (b, profile.winclip_clip))
    }
    return clips | _diffusion_parts("SD 2.1", sd, UNET, TEXT)


def _diffusion_parts(what: str, folder: str, unet: dict, text: dict) -> dict[str, tuple[str, dict | None, Callable[[], torch.nn.Module]]]:
    name = "diffusion_pytorch_model.safetensors"
    return {
        f"{what} text encoder": (f"{folder}/text_encoder/model.safetensors", text | {"model_type": "clip_text_model"}, lambda: _text(text)),
        f"{what} U-Net": (f"{folder}/unet/{name}", unet | {"_class_name": "UNet2DConditionModel"}, lambda: _unet(unet)),
        f"{what} VAE": (f"{folder}/vae/{name}", VAE | {"_class_name": "AutoencoderKL"}, _vae),
    }


def shapes(make: Callable[[], torch.nn.Module]) -> dict[str, torch.Size]:
    """Names and shapes of a model's weights; nothing is allocated."""
    with torch.device("meta"):
        return {name: value.shape for name, value in make().named_parameters()}


def count(make: Callable[[], torch.nn.Module]) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in shapes(make).values())


def random_weight(name: str, shape: torch.Size, noise: torch.Generator) -> torch.Tensor:
    """A norm's weight 1, a bias 0, all else N(0, 0.02²): activations stay finite."""
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(100.0))
    if len(shape) == 1 and not name.endswith("embedding"):
        return torch.full(shape, float(name.endswith("weight")))
    return torch.randn(shape, generator=noise).mul_(0.02)


def write_checkpoints(folder: Path, dtype: torch.dtype, method: str = "adp") -> None:
    """Every checkpoint that a method needs in the paper profile under ``folder``, atomically; those that are there stay."""
    from fsad_lib.foundation.diffusion import write_tokenizer

    for index, (what, (name, config, make)) in enumerate(parts(method).items()):
        file = folder / name
        if file.is_file():
            continue
        print(f"writing {what}", file=sys.stderr, flush=True)
        if method == "tgvig" and not what.startswith("CLIP"):
            _write_as_published(make(), file)
            continue
        noise = torch.Generator().manual_seed(index)
        prefix = "text_model." if what.endswith("text encoder") else ""  # as on the hub
        state = {
            prefix + key.removeprefix(prefix): random_weight(key, shape, noise).to(dtype) for key, shape in shapes(make).items()
        }
        if config is None:
            architecture = what.removeprefix("CLIP ")
            write_json(file.parent / "open_clip_config.json", {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}})
        else:
            write_json(file.parent / "config.json", config)
        with replacing(file) as temporary:
            save_file(state, temporary, {"format": "pt"})
        del state
    if method == "tgvig":
        return
    section = "inpainting" if method == "anomalysd" else "diffusion"
    sd = folder / getattr(load_profile("paper"), section).checkpoint
    write_json(sd / "scheduler/scheduler_config.json", SCHEDULER_15 if method == "anomalysd" else SCHEDULER)
    write_json(sd / "model_index.json", {"_class_name": f"StableDiffusion{'Inpaint' if method == 'anomalysd' else ''}Pipeline"})
    write_tokenizer(sd / "tokenizer")


def _write_as_published(model: torch.nn.Module, file: Path) -> None:
    """A VQGAN with its loss's networks as taming-transformers writes it; timm's networks with the statistics that they start with."""
    from fsad_lib.foundation.vqgan import VQGAN, PatchDiscriminator, VggLpips, export_taming

    if file.suffix == ".ckpt":
        export_taming(VQGAN(model, PatchDiscriminator(), VggLpips()), file.parent)
        return
    noise = torch.Generator().manual_seed(0)
    state = model.state_dict() | {name: random_weight(name, value.shape, noise) for name, value in model.named_parameters()}
    with replacing(file) as temporary:
        save_file(state, temporary, {"format": "pt"})


def write_images(folder: Path) -> None:
    """One normal image to learn from, one normal and one defective image to judge."""
    from PIL import Image

    for i, name in enumerate(("train/good", "test/good", "test/hole")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        noise = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 256, (64, 64, 3), generator=noise, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((512, 512)).save(folder / name / "0.png")


def overrides(args: argparse.Namespace) -> str:
    """As few steps as the arguments say."""
    if args.method == "anomalysd":
        values = {
            "perceptual.checkpoint": str(ROOT / "data/models/mini/lpips"), "inpainting.image_size": args.image_size,
            "anomalysd.steps_unet": args.steps, "anomalysd.steps_decoder": args.steps, "anomalysd.train_batch_size": args.batch_size,
            "anomalysd.num_inference_steps": 5, "anomalysd.scales": [2], "anomalysd.precision": args.precision,
        }  # fmt: skip
    elif args.method == "tgvig":
        values = {
            "perceptual.checkpoint": str(ROOT / "data/models/mini/lpips"), "vqgan.image_size": args.image_size, "tgvig.iterations": args.steps, "tgvig.images": args.batch_size,
            "tgvig.augmented": max(2, args.batch_size), "baselines.names": ["patchcore"],
        }  # fmt: skip
    else:
        values = {
            "diffusion.image_size": args.image_size, "adp.steps_ti": args.steps, "adp.steps_normal": args.steps,
            "adp.steps_anomaly": args.steps, "adp.batch_size": args.batch_size, "adp.templates": args.templates,
            "adp.n_pseudo": 1, "adp.n_pseudo_tuning": 1, "adp.num_inference_steps": 2 * args.steps,
        }  # fmt: skip
    return ",".join(f"{key}={json.dumps(value)}" for key, value in ({"models_root": str(args.folder)} | values).items())


def load(run: Run, stage: str, method: str) -> list[torch.nn.Module]:
    """What a stage holds in memory. ADP's are kept for the stage itself; AnomalySD loads its own anew, since fine-tuning changes them."""
    from fsad_lib.foundation.backbones import load_backbone

    p = run.profile
    if method == "tgvig":
        from fsad_lib.tgvig import stages

        vqgan, clip = stages.load_models(p)
        return [vqgan.model, vqgan.discriminator, vqgan.perceptual, clip.model]
    if method == "anomalysd":
        from fsad_lib.anomalysd import stages

        model, lpips = stages.load_models(p)
        return [model.text_encoder, model.unet, model.vae, lpips]
    from fsad_lib.adp import stages

    if stage == "40_evaluate":
        clips = [clip_of(p, section) for section in ("clip", "winclip_clip")]
        return [c.model for c in clips] + [load_backbone(p.backbone.name, p.path("backbone"), p.backbone.image_size).model]
    clip, diffusion = stages.load_models(p)
    return [clip.model, diffusion.text_encoder, diffusion.unet, diffusion.vae]


def run_stage(stage: str, args: argparse.Namespace) -> dict:
    """Load what the stage needs, run it; seconds, peak memory, number of parameters in memory."""
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    stages = importlib.import_module(f"fsad_lib.{args.method}.stages")
    project = args.folder / "project"
    os.environ["FSAD_HOME"] = str(project)
    write_images(project / "parts/part")
    shutil.copytree(ROOT / "data/wordnet", project / "data/wordnet", dirs_exist_ok=True)
    run = open_run(stage, args.method, profile="paper", dataset="folder", category="part", shots=1, seed=0, data_root=str(project / "parts"),
                   overrides=overrides(args))  # fmt: skip
    run.check_inputs()
    _ = run.fingerprint  # reads the checkpoints once, for the record of the run

    device = best_device()
    started, worked = time.perf_counter(), time.process_time()
    models = load(run, stage, args.method)
    parameters = sum(q.numel() for model in models for q in model.parameters())
    del models
    loaded, worked_loading = time.perf_counter(), time.process_time()
    getattr(stages, stage.partition("_")[2])(run)
    if device == "cuda":
        torch.cuda.synchronize()
    ended = time.perf_counter()
    scale = 2**30 if sys.platform == "darwin" else 2**20
    return {
        "load_seconds": loaded - started, "seconds": ended - loaded, "load_processor_seconds": worked_loading - worked,
        "processor_seconds": time.process_time() - worked_loading, "device": device, "threads": torch.get_num_threads(),
        "parameters": parameters, "rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale,
        "cuda_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }  # fmt: skip


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sizes(dtype: torch.dtype, method: str = "adp") -> str:
    """Parameters and bytes on disk of each checkpoint, as Markdown."""
    rows, total = [], 0
    for what, (_, _, make) in parts(method).items():
        n = count(make)
        total += n
        rows.append([what, f"{n:,}", f"{n * dtype.itemsize / 1e9:.2f}"])
    rows.append(["all", f"{total:,}", f"{total * dtype.itemsize / 1e9:.2f}"])
    return table(["checkpoint", "parameters", f"GB on disk, {str(dtype).removeprefix('torch.')}"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=tuple(STAGES), default="adp")
    parser.add_argument("--folder", type=Path, default=ROOT / "data/models/paper-random", help="where the checkpoints go")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="on disk; computed in float32 always")
    parser.add_argument("--image-size", type=int, default=768, help="of the diffusion model, a multiple of 64")
    parser.add_argument("--steps", type=int, default=2, help="training steps of each kind, and denoising steps of an edit; TGVIG's iterations")
    parser.add_argument("--batch-size", type=int, default=1, help="of training; TGVIG: generated and augmented images of an iteration")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of AnomalySD's U-Net; ADP computes in float32")
    parser.add_argument("--templates", type=int, default=27)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto: the GPU if there is one")
    parser.add_argument("--dry-run", action="store_true", help="print the sizes and stop")
    parser.add_argument("--stage", choices=sum(STAGES.values(), ()), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    dtype = getattr(torch, args.dtype)
    if args.stage:
        write_json(args.folder / "measured.json", run_stage(args.stage, args))
        return 0
    print(sizes(dtype, args.method))
    if args.dry_run:
        return 0

    write_checkpoints(args.folder, dtype, args.method)
    store = args.folder / "results.json"
    results = json.loads(store.read_text()) if store.is_file() else {}
    settings = f"{args.image_size} {args.steps} {args.batch_size} {args.templates} {args.device} {args.dtype} {args.precision}"
    for stage in STAGES[args.method]:
        key = f"{stage} {settings}"
        if key not in results:
            print(f"running {stage}", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--stage", stage], check=True)
            results[key] = json.loads((args.folder / "measured.json").read_text())
            write_json(store, results)
    keys = [f"{stage} {settings}" for stage in STAGES[args.method]]
    rows = []
    for stage, r in ((key.split()[0], results[key]) for key in keys):
        gpu = [f"{r['cuda_gib']:.1f}"] if r["cuda_gib"] is not None else []
        seconds = [f"{r['load_' + kind]:.0f} + {r[kind]:.0f}" for kind in ("seconds", "processor_seconds")]
        rows.append([stage, *seconds, f"{r['rss_gib']:.1f}", *gpu, f"{r['parameters']:,}"])
    gpu = ["peak GPU memory, GiB"] if results[keys[0]]["cuda_gib"] is not None else []
    first = results[keys[0]]
    print(f"\n{first['device']}, {first['threads']} threads, images of {args.image_size} pixels, {args.steps} steps of each kind\n")
    print(table(["stage", "loading + running, s", "of processor time, s", "peak resident memory, GiB", *gpu, "parameters in memory"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
