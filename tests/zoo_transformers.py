"""Tiny models of the transformers package, by configuration."""

from tests.zoo_basic import Built, ids, noise


def gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    return model, lambda: model(ids(2, 6)).logits


def bert() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    model = BertForSequenceClassification(config)
    return model, lambda: model(ids(2, 6)).logits


def llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    return model, lambda: model(ids(2, 6)).logits


def t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=20,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    return model, lambda: model(input_ids=ids(2, 6), decoder_input_ids=ids(2, 4)).logits


def vit() -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    model = ViTForImageClassification(config)
    return model, lambda: model(noise(2, 3, 16, 16)).logits


def convnext() -> Built:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_stages=2,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        patch_size=2,
        drop_path_rate=0.1,
        num_labels=3,
    )
    model = ConvNextForImageClassification(config)
    return model, lambda: model(noise(2, 3, 16, 16)).logits


def resnet() -> Built:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[2, 1],
        layer_type="bottleneck",
        num_labels=3,
    )
    model = ResNetForImageClassification(config)
    return model, lambda: model(noise(2, 3, 32, 32)).logits


def swin() -> Built:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=2,
        mlp_ratio=2.0,
        num_labels=3,
    )
    model = SwinForImageClassification(config)
    return model, lambda: model(noise(2, 3, 16, 16)).logits


def mamba() -> Built:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=20, hidden_size=8, state_size=4, num_hidden_layers=2, time_step_rank=2
    )
    model = MambaForCausalLM(config)
    return model, lambda: model(ids(2, 5)).logits


def whisper() -> Built:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=6,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=5,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = WhisperForConditionalGeneration(config)
    features, tokens = noise(2, 6, 10), ids(2, 4)
    return model, lambda: model(input_features=features, decoder_input_ids=tokens).logits


def wav2vec2() -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(4, 2),
        conv_kernel=(8, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        layerdrop=0.0,
        pad_token_id=0,
    )
    model = Wav2Vec2ForCTC(config)
    return model, lambda: model(noise(2, 80)).logits


def clip() -> Built:
    from transformers import CLIPConfig, CLIPModel

    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 9}
    config = CLIPConfig(
        text_config={**shared, "vocab_size": 20, "max_position_embeddings": 8, **special},
        vision_config={**shared, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config)
    images, tokens = noise(2, 3, 16, 16), ids(2, 6)
    return model, lambda: model(input_ids=tokens, pixel_values=images).logits_per_image


def mobilevit() -> Built:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    config = MobileViTConfig(
        image_size=32,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
        expand_ratio=2.0,
        num_labels=3,
    )
    model = MobileViTForImageClassification(config)
    return model, lambda: model(noise(2, 3, 64, 64)).logits
