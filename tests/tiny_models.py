"""Random language models of a few thousand weights, made on the spot, with a tokenizer of eleven words."""

import torch

from overtone import Document, LanguageModel

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
D, LAYERS = 16, 3


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
    """A "bert" encoder or a "llama" causal model of width 16 and three layers, always with the same weights."""
    import transformers

    own = {"vocab_size": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    usual = {"hidden_size": D, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    options = own | usual | {"initializer_range": initializer_range}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "bert":
            model = transformers.BertModel(transformers.BertConfig(**options, max_position_embeddings=128))
        else:
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    return LanguageModel(model.eval(), tokenizer(single), kind)


def documents() -> list[Document]:
    """Six texts of 1 to 40 words."""
    generator = torch.Generator().manual_seed(0)
    lengths = (3, 40, 1, 17, 8, 29)
    texts = [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]
    return [Document(f"doc{i}", text) for i, text in enumerate(texts)]
