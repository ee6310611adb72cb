"""Tokenizers of tiny models, of the two types common in large models: `▁` words with byte fallback, and byte-level `Ġ`."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from harness.models.tiny.corpus import Fact

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def train_tokenizer(kind: str, size: int, facts: Sequence[Fact], boost: int) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer, `metaspace` or `bytes`, of at most `size` ids.

    Answers are repeated `boost` times, so that most become a single token, as most objects of these datasets are in a large
    vocabulary, while some stay longer and exercise multi-token decoding.

    Deterministic: the trainer sees the texts in a fixed order and breaks ties by id.
    """
    texts = [f"{fact.prompt} {fact.answer}" for fact in facts]
    texts += [f"is {answer}" for answer in sorted({fact.answer for fact in facts}) for _ in range(boost)]
    return {"metaspace": _metaspace, "bytes": _bytes}[kind](texts, size)


def _metaspace(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=[*special, *BYTES], show_progress=False)
    )
    # training registers the byte pieces as special tokens; byte fallback needs them as ordinary pieces
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    plain = Tokenizer(
        BPE(vocab=vocabulary, merges=[tuple(m) for m in merges], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    plain.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    plain.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def _bytes(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
