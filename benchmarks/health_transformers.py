"""Architectures of transformers by configuration, tiny, each with a task that it can learn.

`ARCHITECTURES[name](width, layers)` builds a model that returns its loss for a batch of `task(name)`.
Text is Python's own documentation, images are the handwritten digits, sounds are sines. A config
that this version of transformers does not have raises; `available` asks first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import digits, symbols, text

Data = tuple[Tensor, ...]


@cache
def images() -> Data:
    """The digits 0 to 3, 32 by 32 and three channels."""
    x, y = digits()
    x, y = x[y < 4], y[y < 4]
    return F.interpolate(x.view(-1, 1, 8, 8), scale_factor=4).expand(-1, 3, -1, -1), y


@cache
def first_symbols() -> Data:
    """Windows of text, and to which of four groups their first symbol belongs."""
    x, _ = text()
    counts = torch.bincount(x[:, 0], minlength=symbols())
    order = counts.argsort(descending=True)
    group = torch.empty_like(order)
    group[order] = torch.arange(len(order)) % 4
    return x, group[x[:, 0]]


@cache
def sounds(length: int = 800) -> Data:
    """Noisy sines of four frequencies."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (512,), generator=generator)
    time = torch.arange(length) / 100
    phase = torch.rand(len(y), 1, generator=generator) * 2 * math.pi
    x = torch.sin(2 * math.pi * (y[:, None] * 3 + 2) * time + phase)
    return x + 0.1 * torch.randn(x.shape, generator=generator), y


@cache
def spectra() -> Data:
    """The magnitudes of their Fourier transforms: (sounds, times, bands)."""
    x, y = sounds()
    z = torch.fft.rfft(x[:, :780].unfold(1, 62, 23)).abs().log1p()
    return (z - z.mean()) / z.std(), y


@cache
def series() -> Data:
    """Sums of two sines: the past, and the value after it."""
    generator = torch.Generator().manual_seed(0)
    rate, phase = torch.rand(2, 512, 2, 1, generator=generator)
    time = torch.arange(33) / 33
    x = torch.sin(2 * math.pi * ((1 + 3 * rate) * time + phase)).sum(1)
    return x[:, :32, None], x[:, 32:]


class Model(nn.Module):
    """A model of transformers, and the loss of its logits."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.kind == "causal":
            return F.cross_entropy(self.model(x).logits.flatten(0, 1), y.flatten())
        if self.kind == "masked":
            masked = torch.where(torch.arange(x.shape[1]) % 5 == 2, 0, x)
            return F.cross_entropy(self.model(masked).logits.flatten(0, 1), x.flatten())
        if self.kind == "seq2seq":
            logits = self.model(input_ids=x, decoder_input_ids=x).logits
            return F.cross_entropy(logits.flatten(0, 1), y.flatten())
        if self.kind == "spectra":
            x = x.transpose(1, 2) if self.model.config.model_type == "whisper" else x
        return F.cross_entropy(self.model(x).logits, y)


DATA: dict[str, Callable[[], Data]] = {
    "causal": text,
    "masked": text,
    "seq2seq": text,
    "class": first_symbols,
    "image": images,
    "sound": sounds,
    "spectra": spectra,
}
AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "class": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "sound": "AutoModelForAudioClassification",
    "spectra": "AutoModelForAudioClassification",
}


def _text(w: int, n: int) -> dict[str, Any]:
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    return {
        **{"vocab_size": symbols(), "hidden_size": w, "num_hidden_layers": n, **special},
        **{"num_attention_heads": 4, "intermediate_size": 2 * w, "max_position_embeddings": 64},
    }


def _grouped(w: int, n: int) -> dict[str, Any]:
    return {**_text(w, n), "num_key_value_heads": 2, "head_dim": w // 4}


def _s2s(w: int, n: int) -> dict[str, Any]:
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
             (("layers", n), ("attention_heads", 4), ("ffn_dim", 2 * w))}  # fmt: skip
    shared = {**_text(w, n), "decoder_start_token_id": 0, "forced_eos_token_id": None}
    return {**shared, **sides, "d_model": w, "scale_embedding": False}


def _vision(w: int, n: int) -> dict[str, Any]:
    return {
        **{"hidden_size": w, "num_hidden_layers": n, "num_attention_heads": 4, "num_labels": 4},
        **{"intermediate_size": 2 * w, "image_size": 32, "patch_size": 8},
    }


def _stages(w: int, n: int, **more: Any) -> dict[str, Any]:
    return {"num_labels": 4, "hidden_sizes": [w // 2, w], "depths": [n, 1], **more}


def _four(w: int, n: int, **more: Any) -> dict[str, Any]:
    sizes = [w // 4, w // 2, w, w]
    return {"num_labels": 4, "hidden_sizes": sizes, "depths": [1, 1, n, 1], **more}


def _swin(w: int, n: int) -> dict[str, Any]:
    return {
        **{"image_size": 32, "patch_size": 4, "embed_dim": w // 2, "depths": [n, 2]},
        **{"num_heads": [2, 4], "window_size": 4, "num_labels": 4, "mlp_ratio": 2.0},
    }


def _wave(w: int, n: int) -> dict[str, Any]:
    convolutions = {"conv_dim": (w,) * 2, "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    return {
        **{**_text(w, n), **convolutions, "num_feat_extract_layers": 2, "num_labels": 4},
        **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0},
        **{"mask_time_prob": 0.0, "classifier_proj_size": w, "apply_spec_augment": False},
    }


def _whisper(w: int, n: int) -> dict[str, Any]:
    size = {"d_model": w, "num_mel_bins": 32, "max_source_positions": 16, "num_labels": 4}
    return {**_s2s(w, n), **size, "max_target_positions": 16, "classifier_proj_size": w}


Sizes = Callable[[int, int], dict[str, Any]]
# Name -> what it is trained on, its model type, its configuration.
SPECS: dict[str, tuple[str, str, Sizes]] = {
    **{name: ("causal", name, _text) for name in (
        "gpt2", "gpt_neox", "opt", "bloom", "biogpt", "falcon", "gpt_bigcode", "phi", "xglm",
    )},
    **{name: ("causal", name, lambda w, n: {**_text(w, n), "rotary_dim": w // 8}) for name in (
        "gptj", "codegen",
    )},
    **{name: ("causal", name, _grouped) for name in (
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2", "stablelm",
        "starcoder2", "granite", "cohere", "phi3", "glm", "smollm3",
    )},
    "mixtral": ("causal", "mixtral", lambda w, n: {**_grouped(w, n), "num_local_experts": 4}),
    "mamba": ("causal", "mamba", lambda w, n: {**_text(w, n), "state_size": 8}),
    **{name: ("class", name, lambda w, n: {**_text(w, n), "num_labels": 4}) for name in (
        "bert", "roberta", "electra", "mpnet", "nystromformer", "convbert", "xlm-roberta",
    )},
    "albert": ("class", "albert", lambda w, n: {**_text(w, n), "embedding_size": w // 2, "num_labels": 4}),
    "distilbert": ("class", "distilbert", lambda w, n: {
        **_text(w, n), "dim": w, "n_layers": n, "n_heads": 4, "hidden_dim": 2 * w, "num_labels": 4}),
    "deberta-v2": ("class", "deberta-v2", lambda w, n: {**_text(w, n), "num_labels": 4}),
    "modernbert": ("class", "modernbert", lambda w, n: {**_text(w, n), "num_labels": 4}),
    "bert, masked": ("masked", "bert", _text),
    "bart": ("seq2seq", "bart", _s2s),
    "pegasus": ("seq2seq", "pegasus", _s2s),
    "t5": ("seq2seq", "t5", lambda w, n: {
        **_text(w, n), "d_model": w, "d_kv": w // 4, "d_ff": 2 * w, "num_layers": n,
        "num_decoder_layers": n, "num_heads": 4, "decoder_start_token_id": 0}),
    **{name: ("image", name, _vision) for name in ("vit", "dinov2", "beit", "vit_msn")},
    "swin": ("image", "swin", _swin),
    "swinv2": ("image", "swinv2", _swin),
    "convnext": ("image", "convnext", lambda w, n: _stages(w, n, num_stages=2, patch_size=2)),
    "convnextv2": ("image", "convnextv2", lambda w, n: _stages(w, n, num_stages=2, patch_size=2)),
    "resnet, basic": ("image", "resnet", lambda w, n: _stages(
        w, n, layer_type="basic", embedding_size=w // 2)),
    "resnet, bottleneck": ("image", "resnet", lambda w, n: _stages(
        w, n, layer_type="bottleneck", embedding_size=w // 2)),
    "regnet": ("image", "regnet", lambda w, n: _stages(
        w, n, groups_width=w // 4, embedding_size=w // 2)),
    "mobilenet_v2": ("image", "mobilenet_v2", lambda w, _: {
        "num_labels": 4, "depth_multiplier": w / 256, "output_stride": 8, "image_size": 32}),
    "segformer": ("image", "segformer", lambda w, n: _four(
        w, n, num_attention_heads=[1, 2, 4, 4], mlp_ratios=[2] * 4, sr_ratios=[2, 2, 1, 1],
        decoder_hidden_size=w)),
    "poolformer": ("image", "poolformer", lambda w, n: _four(w, n)),
    "wav2vec2": ("sound", "wav2vec2", _wave),
    "hubert": ("sound", "hubert", _wave),
    "whisper": ("spectra", "whisper", _whisper),
    "ast": ("spectra", "audio-spectrogram-transformer", lambda w, n: {
        **_vision(w, n), "num_labels": 4, "max_length": 32, "num_mel_bins": 32}),
}  # fmt: skip


def build(name: str, width: int = 32, layers: int = 2, **more: Any) -> nn.Module:
    """As its library initializes it; dropout and the like as its configuration has them."""
    kind, model_type, sizes = SPECS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.for_model(model_type, **sizes(width, layers) | more)
        auto = getattr(transformers, AUTO[kind])
        model = auto.from_config(config)
    return Model(model.train(), kind)


def data(name: str) -> Data:
    """What it is trained on."""
    return DATA[SPECS[name][0]]()
