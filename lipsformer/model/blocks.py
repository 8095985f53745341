"""The network that both forms of LipsFormer share (ICLR 2023, arXiv 2304.09856): blocks, stages, image to logits.

Feature maps are (B, H, W, C) throughout. Viewed as (B, C, H, W) that is torch's channels_last format, so convolutions
run without a copy. Parameter names are those of the official code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import cpu_ops
from .activation import build_activation
from .config import ModelConfig
from .norm import build_norm
from .residual import build_residual, drop_path_mask

__all__ = ["Block", "DepthwiseConv2d", "LipsFormer", "Mlp", "PatchEmbed", "ShiftConv2d", "Stage", "conv_nhwc"]


def conv_nhwc(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a convolution to a channels-last map: (B, H, W, C) to (B, H', W', C')."""
    out: Tensor = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return out


class DepthwiseConv2d(nn.Conv2d):
    """One `kernel_size` x `kernel_size` filter for each of `dim` channels, zero-padded: (B, C, H, W) to the same shape.

    Equal to `nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)`, gradients included;
    `kernel_size` is odd.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if x.device.type == "cpu" and cpu_ops.use_own_backward(self.training):
            return cpu_ops.depthwise_conv(x, self.weight, self.bias)
        return super().forward(x)


class ShiftConv2d(DepthwiseConv2d):
    """A shift of each channel by up to half a kernel, drawn once and not learned: (B, C, H, W) to the same shape.

    It mixes neighbors and shortens nothing but what leaves the map (Wu et al., CVPR 2018, arXiv 1711.08141). It is
    stored and exported as the depthwise convolution that it is.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, kernel_size)
        self.weight.requires_grad_(False)


class PatchEmbed(nn.Module):
    """A convolution whose stride is the patch size, then a norm; patches overlap where its kernel is larger."""

    def __init__(self, config: ModelConfig, *, kernel_size: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, kernel_size, stride=config.patch_size, padding=padding)
        self.norm = build_norm(config.norm, config.embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, 3, S, S) to (B, S/patch, S/patch, C)."""
        out: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())
        return out


class Mlp(nn.Module):
    """Linear, activation, linear over the last dimension."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class Block(nn.Module):
    """Depthwise branches, attention and MLP, each a residual x + alpha * f(x) (LipsFormer, section 4.1.3).

    Attention and MLP have a norm after the sum ("post") or before the branch ("pre"). The first convolution branch
    mixes the channels too: depthwise, activation, 1x1, activation. The second is depthwise, activation.
    """

    def __init__(self, config: ModelConfig, stage: int, attention: nn.Module) -> None:
        super().__init__()
        dim = config.channels(stage)
        branches = range(config.conv_branches)
        self.pre_norm = config.norm_position == "pre"
        self.activation = build_activation(config.activation)
        convolution = ShiftConv2d if config.shift_conv else DepthwiseConv2d
        self.dwconv_layers = nn.ModuleList(convolution(dim, config.conv_kernel) for _ in branches)
        of_convolution, of_attention, of_mlp = config.initial_shares
        self.scale_layers = nn.ModuleList(build_residual(config, dim, of_convolution) for _ in branches)
        if branches:
            self.nin = nn.Conv2d(dim, dim, 1)
        self.attn = attention
        self.alpha1 = build_residual(config, dim, of_attention)
        self.norm1 = build_norm(config.norm, dim)
        self.mlp = Mlp(dim, config.hidden(stage), self.activation)
        self.alpha2 = build_residual(config, dim, of_mlp)
        self.norm2 = build_norm(config.norm, dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C); `keep` (conv_branches + 2, B) weighs the branches (stochastic depth)."""
        for index, residual in enumerate(self.scale_layers):
            x = add_branch(x, functools.partial(self._convolve, index), residual, of_branch(keep, index))
        x = self._add(x, self.attn, self.alpha1, self.norm1, of_branch(keep, -2))
        return self._add(x, self.mlp, self.alpha2, self.norm2, of_branch(keep, -1))

    def _convolve(self, index: int, x: Tensor) -> Tensor:
        branch: Tensor = self.activation(conv_nhwc(self.dwconv_layers[index], x))  # (B, H, W, C), as every branch is
        return branch if index else self.activation(self._mix_channels(branch))

    def _mix_channels(self, x: Tensor) -> Tensor:
        nin = self.nin
        return cpu_ops.pointwise_conv(x, nin.weight, nin.bias) if self.training else conv_nhwc(nin, x)

    def _add(self, x: Tensor, branch: nn.Module, residual: nn.Module, norm: nn.Module, keep: Tensor | None) -> Tensor:
        if self.pre_norm:
            return add_branch(x, lambda part: branch(norm(part)), residual, keep)
        out: Tensor = norm(add_branch(x, branch, residual, keep))
        return out


def of_branch(keep: Tensor | None, index: int) -> Tensor | None:
    """Row `index` of `keep` (branches, B) as (B, 1, 1, 1); None if `keep` is None."""
    return None if keep is None else keep[index][:, None, None, None]


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], residual: nn.Module, keep: Tensor | None) -> Tensor:
    """residual(x, branch(x), keep); a CPU does not compute the branches that stochastic depth drops."""
    kept = None if keep is None else cpu_ops.kept_images(keep)
    if keep is None or kept is None:
        out: Tensor = residual(x, branch(x), keep)
        return out
    weights = keep.index_select(0, kept)
    return cpu_ops.replace_images(x, kept, lambda part: residual(part, branch(part), weights))


class Stage(nn.Module):
    """Blocks at one resolution, then `downsample` to the next."""

    def __init__(self, blocks: list[Block], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(
        self, x: Tensor, keep: Tensor | None = None, *, grad_checkpointing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Maps (B, H, W, C) to the stage's features, of the same shape, and to the next stage's input.

        The latter is (B, H/2, W/2, 2C), or the features again in the last stage. `keep` (blocks, conv_branches + 2, B)
        weighs the branches. With `grad_checkpointing`, activations inside a block are recomputed for the gradient
        instead of stored.
        """
        for index, block in enumerate(self.blocks):
            weights = None if keep is None else keep[index]
            x = checkpoint(block, x, weights, use_reentrant=False) if grad_checkpointing else block(x, weights)
        return x, self.downsample(x)


class LipsFormer(nn.Module):
    """Maps normalized float images (B, 3, S, S) to logits (B, num_classes), S being `config.image_size`.

    A subclass defines how the image is embedded, how a block attends, and how tokens are merged between two stages.

    In training, stochastic depth (Huang et al. 2016) drops branches for individual images. `drop_path_noise`, uniform
    numbers of shape `drop_path_shape`, decides which, so that it can depend on step and image alone; by default the
    numbers come from PyTorch's generator. `grad_checkpointing` saves memory at the cost of time.
    """

    grad_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        last = config.last_stage
        self.patch_embed = self._embedding()
        self.layers = nn.ModuleList(
            Stage(
                [Block(config, stage, self._attention(stage, block)) for block in range(depth)],
                nn.Identity() if stage == last else self._merging(stage),
            )
            for stage, depth in enumerate(config.depths)
        )
        self.norm = build_norm(config.norm, config.channels(last))
        self.head = nn.Linear(config.features, config.num_classes)

    def _embedding(self) -> nn.Module:
        """Maps (B, 3, S, S) to (B, S/patch, S/patch, C)."""
        raise NotImplementedError

    def _attention(self, stage: int, block: int) -> nn.Module:
        """Maps (B, H, W, C) to the same shape."""
        raise NotImplementedError

    def _merging(self, stage: int) -> nn.Module:
        """Maps (B, H, W, C) of `stage` to (B, H/2, W/2, 2C) of the next."""
        raise NotImplementedError

    def drop_path_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of `drop_path_noise` for `batch` images: (blocks, conv_branches + 2, batch)."""
        return sum(self.config.depths), self.config.conv_branches + 2, batch

    def forward_stages(
        self, image: Tensor, drop_path_noise: Tensor | None = None, *, stages: int | None = None
    ) -> list[Tensor]:
        """Features of each stage, or of the first `stages`: (B, H, W, C), H and W being `config.resolution(stage)`.

        Raises:
            ValueError: if the images do not have the size that the model was built for.
        """
        size = self.config.image_size
        if tuple(image.shape[1:]) != (3, size, size):
            raise ValueError(f"images of shape {tuple(image.shape)} given, (batch, 3, {size}, {size}) needed")
        keep = self._keep(image, drop_path_noise) if self.training and self.config.drop_path else None
        x = self.patch_embed(image)
        maps: list[Tensor] = []
        block = 0
        for stage in self.layers:
            depth = self.config.depths[len(maps)]
            weights = None if keep is None else keep[block : block + depth]  # (depth, conv_branches + 2, B)
            features, x = stage(x, weights, grad_checkpointing=self.grad_checkpointing and self.training)
            maps.append(features)
            block += depth
            if len(maps) == stages:
                break
        return maps

    def forward_features(self, image: Tensor, drop_path_noise: Tensor | None = None) -> Tensor:
        """Features (B, `config.features`) of normalized float images (B, 3, S, S): pooled, or with a flat head all.

        Raises:
            ValueError: if the images do not have the size that the model was built for.
        """
        return self.pool(self.norm(self.forward_stages(image, drop_path_noise)[-1]))

    def pool(self, x: Tensor) -> Tensor:
        """The features (B, `config.features`) of the last normalized map (B, H, W, C)."""
        return x.flatten(1) if self.config.pooling == "flat" else x.mean(dim=(1, 2))

    def forward(self, image: Tensor, drop_path_noise: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of normalized float images (B, 3, S, S)."""
        logits: Tensor = self.head(self.forward_features(image, drop_path_noise))
        return logits

    def _keep(self, image: Tensor, drop_path_noise: Tensor | None) -> Tensor:
        shape = self.drop_path_shape(image.shape[0])
        draws = torch.rand(shape, device=image.device) if drop_path_noise is None else drop_path_noise
        return drop_path_mask(draws, self.config.drop_path)
