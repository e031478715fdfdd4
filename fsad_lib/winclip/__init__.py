"""WinCLIP and WinCLIP+: zero- and few-shot anomaly detection with CLIP windows; see README.md here."""

from fsad_lib.winclip.detector import Scores, WinCLIP, upsample
from fsad_lib.winclip.memory import FeatureMemory
from fsad_lib.winclip.prompts import prompt_ensemble
from fsad_lib.winclip.windows import Features, extract

__all__ = ["FeatureMemory", "Features", "Scores", "WinCLIP", "extract", "prompt_ensemble", "upsample"]
