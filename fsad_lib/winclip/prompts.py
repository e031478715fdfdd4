"""WinCLIP's compositional prompt ensemble: states inside templates (Jeong et al., CVPR 2023)."""

from fsad_lib.errors import FsadError

__all__ = ["ANOMALOUS_STATES", "NORMAL_STATES", "TEMPLATES", "prompt_ensemble"]

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = tuple(
    template.format(article=article)
    for template in (
        "a cropped photo of {article} {{}}.",
        "a close-up photo of {article} {{}}.",
        "a bright photo of {article} {{}}.",
        "a dark photo of {article} {{}}.",
        "a jpeg corrupted photo of {article} {{}}.",
        "a blurry photo of {article} {{}}.",
        "a photo of {article} {{}}.",
        "a photo of {article} small {{}}.",
        "a photo of {article} large {{}}.",
        "a photo of {article} {{}} for visual inspection.",
        "a photo of {article} {{}} for anomaly detection.",
    )
    for article in ("a", "the")
)


def prompt_ensemble(class_name: str | None = None) -> tuple[list[str], list[str]]:
    """The 7 x 22 normal and 4 x 22 anomalous sentences for a class.

    Args:
        class_name: the words for the object; underscores become spaces; None means "object".

    Returns:
        154 normal and 88 anomalous prompts.

    Raises:
        FsadError: an empty class name.

    Example:
        >>> normal, anomalous = prompt_ensemble("metal_nut")
        >>> len(normal), len(anomalous), anomalous[-1]
        (154, 88, 'a photo of the metal nut with damage for anomaly detection.')
    """
    words = "object" if class_name is None else " ".join(class_name.replace("_", " ").split())
    if not words:
        raise FsadError("the class name is empty; give the words for the object, or None for 'object'.")
    return tuple(
        [template.format(state.format(words)) for state in states for template in TEMPLATES]
        for states in (NORMAL_STATES, ANOMALOUS_STATES)
    )
