"""SentencePiece's `tokenizer.model` as the `tokenizer.json` that hf checkpoints of LLaMA's family have.

Without it transformers 5 and vLLM leave out the space before a text's first word. What the file holds is that of
LLaVA-1.5 on the hub: byte fallback, and a space before each text between special tokens.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from llava.errors import LlavaError

_BPE = 2  # of TrainerSpec.ModelType
_SPACE = "\u2581"


def fast_from_sentencepiece(path: Path) -> Tokenizer | None:
    """The tokenizer that gives the same ids; None for a model that is not BPE. Raises LlavaError for a damaged file.

    Oracle: SentencePiece itself (tests/checkpoints/test_fast_tokenizer.py).
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise LlavaError(f"{path}: not a SentencePiece model ({error})") from None
    if proto.trainer_spec.model_type != _BPE:
        return None
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    unknown, begin, end = (proto.pieces[i].piece for i in (proto.trainer_spec.unk_id, 1, 2))
    merges = _merges(vocabulary, [piece.score for piece in proto.pieces])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, vocabulary[begin])]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (unknown, begin, end)])
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs that make up a piece, those of the best pieces first: SentencePiece merges by the piece's score."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for _, _, _, left, right in sorted(found)]
