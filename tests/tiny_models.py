"""Random language models of a few thousand weights, made on the spot, with a tokenizer of eleven words."""

from typing import NamedTuple

import torch

from overtone import Document, LanguageModel

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
D, LAYERS = 16, 3


class Parts(NamedTuple):
    """Where an architecture has its parts; all but the first two within a block."""

    blocks: str
    final_norm: str | None  # of pre-norm models
    attn_in: str
    projection: str
    attn_out: str
    mlp: tuple[str, ...]  # what the MLP's input goes through, one after another
    mlp_out: str


LLAMA = Parts("model.layers", "model.norm", "self_attn", "self_attn.o_proj", "self_attn", ("mlp",), "mlp")
GPT2 = Parts("transformer.h", "transformer.ln_f", "attn", "attn.c_proj", "attn", ("mlp",), "mlp")
NEOX = Parts(
    *("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention", "attention.dense", "attention"),
    *(("mlp",), "mlp.dense_4h_to_h"),
)
BERT = Parts(
    *("encoder.layer", None, "attention.self", "attention.output.dense", "attention.output.dense"),
    *(("intermediate", "output.dense"), "output.dense"),
)
PARTS = {"llama": LLAMA, "gpt2": GPT2, "neox": NEOX, "neox_sequential": NEOX, "bert": BERT}


def tokenizer(single: str = "$A"):
    """A word-level tokenizer; `single` says which special tokens stand around a text."""
    import tokenizers
    import transformers

    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, **names)


def tiny(kind: str, single: str = "$A", initializer_range: float = 0.02) -> LanguageModel:
    """A random model of width 16 and three layers, always with the same weights.

    A "bert" encoder, or a causal model: "llama", "gpt2", "neox", "neox_sequential" (its attention comes before
    its MLP, not beside it) or "falcon".
    """
    import transformers as t

    own = {"vocab_size": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    usual = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    options = own | usual | {"initializer_range": initializer_range}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            model = t.BertModel(t.BertConfig(**options, max_position_embeddings=128))
        elif kind == "gpt2":
            model = t.GPT2LMHeadModel(t.GPT2Config(**options, n_positions=128))
        elif kind.startswith("neox"):
            model = t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**options, use_parallel_residual=kind == "neox"))
        elif kind == "falcon":
            model = t.FalconForCausalLM(t.FalconConfig(**options, ffn_hidden_size=32))
        else:
            model = t.LlamaForCausalLM(t.LlamaConfig(**options))
    return LanguageModel(model.eval(), tokenizer(single), kind)


def documents() -> list[Document]:
    """Six texts of 1 to 40 words."""
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 40, 1, 17, 8, 29)
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]
    return [Document(f"doc{i}", text) for i, text in enumerate(texts)]
