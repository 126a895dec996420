"""Creates a byte-level tokenizer of any vocabulary size, for models with dummy weights."""

from __future__ import annotations

import json
from pathlib import Path

NUM_BYTES = 256
MAX_VOCAB_SIZE = 2**20
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_byte_tokenizer(folder: Path, vocab_size: int, eos: int | None, bos: int | None) -> None:
    """Write tokenizer.json and tokenizer_config.json for a vocabulary of exactly ``vocab_size`` entries.

    Text is encoded as its UTF-8 bytes, one token each, and is decoded unchanged. Every other id decodes to a
    visible word such as ``<17>``, so that the output of a model with dummy weights can be read.

    Args:
        eos, bos: ids of the special tokens; they may be the same. None: there is none.

    Raises:
        ValueError: the vocabulary is too small for 256 bytes and the special tokens, or an id is outside the
            vocabulary.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = {index: f"<|{name}|>" for name, index in (("bos", bos), ("eos", eos)) if index is not None}
    if not NUM_BYTES + len(special) <= vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(
            f"a byte-level tokenizer needs a vocabulary of {NUM_BYTES + len(special)} to {MAX_VOCAB_SIZE} "
            f"entries, not {vocab_size}"
        )
    if any(not 0 <= index < vocab_size for index in special):
        raise ValueError(f"special tokens {sorted(special)} are outside the vocabulary of {vocab_size}")
    free = (index for index in range(vocab_size) if index not in special)
    vocab = {byte: next(free) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())}
    vocab |= {f"<{index}>": index for index in free}
    vocab |= {token: index for index, token in special.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {
        f"{name}_token": special[index] for name, index in (("bos", bos), ("eos", eos)) if index is not None
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
