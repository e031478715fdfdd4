"""What the library's short cuts are worth, as ratios against the obvious way, both measured in this run on this machine.

    python benchmarks/speed.py

Processor time of one thread, the best of several alternating repetitions, so that a busy machine does not matter. Both ways must give the
same numbers; the largest difference stands in the table.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import open_clip  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from fsad_lib.adp.concepts import learn_concept  # noqa: E402
from fsad_lib.adp.prompts import templates  # noqa: E402
from fsad_lib.foundation.clip import load_clip  # noqa: E402
from fsad_lib.foundation.diffusion import load_diffusion  # noqa: E402
from fsad_lib.foundation.neighbours import nearest_cosine_distance  # noqa: E402
from fsad_lib.profiles import load_profile  # noqa: E402
from fsad_lib.winclip.prompts import prompt_ensemble  # noqa: E402
from fsad_lib.winclip.windows import window_features, window_index  # noqa: E402


def compare(ours: Callable[[], Tensor], obvious: Callable[[], Tensor], repeat: int) -> tuple[float, float, float]:
    """Seconds of each way (the best of ``repeat``) and the largest difference of their results."""
    difference = (ours() - obvious()).abs().max().item()
    best = [float("inf")] * 2
    for _ in range(repeat):
        for i, way in enumerate((ours, obvious)):
            started = time.process_time()
            way()
            best[i] = min(best[i], time.process_time() - started)
    return best[0], best[1], difference


def windows(clip, x: Tensor) -> tuple[Callable, Callable]:
    """WinCLIP's windows in one batch, or one after the other."""
    tokens = clip.embed_patches(x)

    @torch.no_grad()
    def one_by_one() -> Tensor:
        rows = [torch.cat([torch.zeros(1, dtype=torch.long), row + 1]) for row in window_index(clip.grid, 3)]
        return torch.stack([clip.encode_tokens(tokens[:, row])[0] for row in rows], dim=1)

    return lambda: window_features(clip, tokens, 3), one_by_one


def text(clip) -> tuple[Callable, Callable]:
    """The text tower on as many positions as the longest prompt has, or on all 77."""
    prompts = [p for side in prompt_ensemble("metal nut") for p in side]
    ids = open_clip.SimpleTokenizer()(prompts)

    @torch.no_grad()
    def cut() -> Tensor:
        return clip.encode_text(prompts)

    @torch.no_grad()
    def full() -> Tensor:
        return F.normalize(clip.model.encode_text(ids), dim=-1)

    return cut, full


def neighbours() -> tuple[Callable, Callable]:
    """The nearest of 4 images' patches for one image's patches: one product, or a loop over the patches."""
    noise = torch.Generator().manual_seed(0)
    memory, queries = (F.normalize(torch.randn(n, 152, generator=noise), dim=-1) for n in (4 * 784, 784))

    def loop() -> Tensor:
        return torch.stack([(1 - (memory * query).sum(-1)).amin() for query in queries]).clamp_min(0)

    return lambda: nearest_cosine_distance(queries, memory), loop


def training(clip, diffusion, x: Tensor, pseudo: Tensor, adp, steps: int = 2) -> tuple[Callable, Callable]:
    """Learning c_a with latents and image features computed once, or anew at each step."""
    settings = dict(
        alpha=adp.alpha, tau=adp.tau, steps=steps, lr=adp.lr, batch_size=adp.batch_size, templates=templates(adp.templates), pseudo=pseudo,
        gamma=adp.gamma,
    )  # fmt: skip

    def again(step: int, steps: int, *_: object) -> None:
        if step < steps:  # the first step's are computed either way
            diffusion.posterior(x), clip.encode_image(x), clip.encode_image(pseudo)

    return (
        lambda: learn_concept(clip, diffusion, x, "object", **settings)[0],
        lambda: learn_concept(clip, diffusion, x, "object", **settings, progress=again)[0],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    profile = load_profile("mini")
    clip = load_clip(profile.path("clip"))
    diffusion = load_diffusion(profile.path("diffusion"), clip, image_size=profile.diffusion.image_size)
    x = torch.rand(8, 3, 128, 128)
    pairs = {
        "WinCLIP 3x3 windows: one batch / one by one": windows(clip, x[:1]),
        "242 prompts: text tower cut to their length / all 77 positions": text(clip),
        "784 patches against 3,136: one product / a loop over patches": neighbours(),
        "two steps of c_a, 4 shots and 8 pseudo-anomalies: image features kept / computed anew": training(
            clip, diffusion, x[:4], x, profile.adp
        ),
    }
    print("| ours / the obvious way | ours, ms | obvious, ms | times faster | largest difference |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for what, (ours, obvious) in pairs.items():
        a, b, difference = compare(ours, obvious, args.repeat)
        print(f"| {what} | {1000 * a:.1f} | {1000 * b:.1f} | {b / a:.1f} | {difference:.0e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
