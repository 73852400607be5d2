"""Small real models, one idea each: `ZOO[name]()` builds a model and a call that runs it once.

What an analysis should say of each of them is written down, from reading their code, in
`tests/truth.py` and the files beside it.
"""

import warnings
from collections.abc import Callable

import torch

from tests import (
    zoo_attention as attention,
    zoo_basic as basic,
    zoo_convolution as convolution,
    zoo_gates as gates,
    zoo_sequence as sequence,
    zoo_transformers as transformers,
)
from tests.zoo_basic import Built, Forward, ids, noise

__all__ = ["BARE", "TRANSFORMERS", "ZOO", "Built", "Forward", "ids", "noise", "seeded"]

_BASIC = (
    *(basic.relu_mlp, basic.tanh_mlp, basic.selu_mlp, basic.swiglu, basic.swiglu_fused),
    *(basic.gated_mlp, basic.residual_mlp, basic.padded, basic.functional, basic.bare),
    *(basic.weight_normed, basic.spectral_normed, basic.two_towers, basic.denoiser),
)
_CONVOLUTION = (
    *(convolution.plain_cnn, convolution.residual_cnn, convolution.preactivation_cnn),
    *(convolution.bottleneck_cnn, convolution.depthwise, convolution.inverted_residual),
    *(convolution.se_resnet, convolution.densenet, convolution.unet_sum),
    *(convolution.unet_concat, convolution.generator),
)
_SEQUENCE = (
    *(sequence.lstm, sequence.bi_lstm, sequence.gru, sequence.gru_cell, sequence.encoder),
    *(sequence.norm_first_encoder, sequence.decoder, sequence.cross_attention, sequence.nanogpt),
)
_ATTENTION = (
    *(attention.fused_gpt, attention.handmade_attention, attention.interleaved_attention),
    *(attention.grouped_attention, attention.parallel_block, attention.layer_scale),
    *(attention.rezero, attention.shared_block, attention.rms_norm, attention.gemma_norm),
)
_GATES = (
    *(gates.highway, gates.feature_gate, gates.attention_pooling, gates.experts),
    *(gates.sparse_experts, gates.stacked_experts, gates.relative_bias, gates.normalized_queries),
)
_TRANSFORMERS = (
    *(transformers.gpt2, transformers.bert, transformers.llama, transformers.t5),
    *(transformers.vit, transformers.convnext, transformers.resnet, transformers.swin),
    *(transformers.mamba, transformers.whisper, transformers.wav2vec2, transformers.clip),
    transformers.mobilevit,
)


def seeded(build: Callable[[], Built]) -> Callable[[], Built]:
    def built(seed: int = 0) -> Built:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # transformers imports modules that use deprecated features of other packages
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            torch.manual_seed(seed)
            return build()

    return built


TRANSFORMERS = frozenset(build.__name__ for build in _TRANSFORMERS)
# Have parameters that no layer type draws.
BARE = frozenset(
    {"functional", "bare", "weight_normed", "spectral_normed", "two_towers", "cross_attention"}
    | {"layer_scale", "rezero", "rms_norm", "gemma_norm", "stacked_experts", "relative_bias"}
    | {"normalized_queries"}
)
ZOO: dict[str, Callable[..., Built]] = {
    build.__name__: seeded(build)
    for build in (*_BASIC, *_CONVOLUTION, *_SEQUENCE, *_ATTENTION, *_GATES, *_TRANSFORMERS)
}
