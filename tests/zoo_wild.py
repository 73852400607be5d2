"""Models of the field as strangers write them, in the style of their best-known repositories.

They are read like those of the zoo (`tests/truth_wild.py`), but no strategy is tried on them.
"""

from collections.abc import Callable

from tests import (
    zoo_wild_attention as attention,
    zoo_wild_calls as calls,
    zoo_wild_generators as generators,
    zoo_wild_sequence as sequence,
    zoo_wild_vision as vision,
)
from tests.zoo import seeded
from tests.zoo_basic import Built

_MODELS = (
    *(vision.xcit, vision.poolformer, vision.nf_resnet, vision.mobilenet_v3),
    *(generators.ddpm_unet, generators.stylegan2, generators.condconv, generators.dit),
    *(sequence.wavenet, sequence.rwkv, sequence.hyena, sequence.hand_lstm, sequence.bahdanau),
    *(sequence.mixture_of_depths, attention.perceiver, attention.transformer_xl),
    *(attention.llama_complex, attention.mla, attention.einsum_heads),
    *(calls.gat, calls.tabnet, calls.vmap_ensemble, calls.in_place, calls.out_argument),
    calls.conformer,
)
WILD: dict[str, Callable[..., Built]] = {build.__name__: seeded(build) for build in _MODELS}
