"""The named configurations.

Sizes of the Swin form are the official code's; those of the CSwin form are CSWin's own (Dong et al., CVPR 2022) with
one convolution branch, which gives the 24 M parameters and 4.7 G multiply-adds of the paper's LipsFormer-Tiny. The
nano sizes are ours, for small images; the CSwin one has two branches. `lipsformer_certified_nano` is ours too.
`swin_*` and `cswin_*` are the plain networks that LipsFormer builds on.
"""

from __future__ import annotations

from typing import Any

from lipsformer.system.errors import InputError, suggest

from .config import CSwinConfig, ModelConfig, SwinConfig

__all__ = ["ALIASES", "VARIANTS", "make_config"]

PLAIN: dict[str, Any] = {
    "norm": "layer",
    "norm_position": "pre",
    "attention": "dot",
    "value_norm": False,
    "residual": "plain",
    "init": "trunc_normal",
    "conv_branches": 0,
}

SWIN = {
    "nano": SwinConfig(image_size=64, embed_dim=32, num_heads=(1, 2, 4, 8), window_size=4),
    "tiny": SwinConfig(),
    "small": SwinConfig(depths=(2, 2, 18, 2)),
    "base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}
CSWIN = {
    "nano": CSwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=32,
        depths=(1, 4, 3, 1),
        num_heads=(2, 2, 4, 8),
        conv_branches=2,
        split_sizes=(2, 4, 4, 4),
    ),
    "tiny": CSwinConfig(),
    "small": CSwinConfig(depths=(2, 4, 32, 2)),
    "base": CSwinConfig(embed_dim=96, depths=(2, 4, 32, 2), num_heads=(4, 8, 16, 32)),
}

# One stage of 8x8 tokens, and every choice that keeps the Lipschitz bound at 1 under a spectral cap: docs/certified.md.
CERTIFIED = {
    "nano": SwinConfig(
        image_size=32,
        embed_dim=128,
        depths=(1,),
        num_heads=(4,),
        window_size=4,
        value_norm=True,
        epsilon=1.0,
        temperature=0.25,
        learned_scales=True,
        residual="convex",
        activation="maxmin",
        pooling="flat",
        init="orthogonal",
        initial_shares=(0.998, 0.05, 0.5),
        conv_branches=1,
        conv_kernel=3,
        shift_conv=True,
    ),
}

VARIANTS: dict[str, ModelConfig] = {
    **{f"lipsformer_cswin_{size}": config for size, config in CSWIN.items()},
    **{f"lipsformer_swin_{size}": config for size, config in SWIN.items()},
    **{f"lipsformer_certified_{size}": config for size, config in CERTIFIED.items()},
    **{f"cswin_{size}": config.replace(**PLAIN) for size, config in CSWIN.items()},
    **{f"swin_{size}": config.replace(shifted_windows=True, **PLAIN) for size, config in SWIN.items()},
}

# The paper's own names: its LipsFormer-Tiny is the CSwin form.
ALIASES = {f"lipsformer_{size}": f"lipsformer_cswin_{size}" for size in CSWIN}


def make_config(name: str, **overrides: Any) -> ModelConfig:
    """The configuration of variant `name`, or of an alias, with `overrides`.

    Raises:
        InputError: for an unknown name or setting (the nearest is suggested) or an invalid combination.
    """
    known = ALIASES.get(name, name)
    if known not in VARIANTS:
        raise InputError(f"unknown model '{name}': {suggest(name, [*ALIASES, *VARIANTS])}")
    return VARIANTS[known].replace(**overrides)
