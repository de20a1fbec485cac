"""The vocabulary of synthetic language models: a byte-level BPE tokenizer of the kind real models have.

Owns the tokens, their kinds and the merges. Any text can be tokenized, because every byte is a token; common
words are one token each. Which texts stand around a conversation is in `chat_templates`.

The tokens a random model may say by itself come first: printable ASCII, the line break and the words. The
other bytes and the special tokens follow and are *silent*: their rows of the output matrix are zeros, so that
a text neither ends by chance nor holds half a character. A grammar can still ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

NORMAL = 1
CONTROL = 3
USER_DEFINED = 4
# How GPT-2 writes bytes as characters: the printable ones as they are, the others from 256 on.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
WORDS = """
the of and to in is it that was for on are as with they at be this have from one had by but not what all
were we when your can said there use an each which she how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number no way could people my
than first water been call who its now find long down day did get come made may part over new sound take
only little work know place year live me back give most very after thing our just name good sentence think
say great where help through much before line right too mean old any same tell follow want show also around
form three small set put end does another well large must big even such because turn here why ask went need
land different home us move try kind hand picture again change off play away house point page letter answer
found study still learn should world high every near add food between own below country plant last school
keep never start city earth eye light head under story left few while along might close something seem next
hard open example begin life always those both paper together got group often run important until side feet
car mile night walk white sea began grow took river four carry state once book hear stop without second
later miss idea enough eat face watch far really almost let above girl sometimes mountain cut young talk
soon list song being leave family body music colour stand sun question fish area mark dog horse bird problem
complete room knew since ever piece told usually friend easy heard order red door sure become top ship
across today during short better best however low hour black product happened whole measure remember early
wave reached listen wind rock space covered fast several hold himself toward five step morning passed vowel
true hundred against pattern table north slow money map farm pulled draw voice seen cold cried plan notice
south sing war ground fall king town unit figure certain field travel wood fire upon lighthouse dusk dawn
forest fog mist rain snow storm castle harbour bridge tower garden flower tree leaf moon star cloud shadow
reflection portrait landscape painting photograph sketch watercolour oil cinematic dramatic soft warm golden
blue green yellow purple orange silver detailed sharp focus blurry background foreground style masterpiece
quality highres solo woman man child cat wolf dragon robot knight wizard dress hat cloak sword smile hair
eyes sky ocean beach desert island street lamp window market train boat tide gate wave shore true false null
name arguments parameters type object string number array required function tool tags caption rating general
safe questionable explicit
""".split()
SPECIAL_CHATML = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
)  # fmt: skip
# Ordinary text to the model, but always one token each.
MARKS_CHATML = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SPECIAL_LLAMA3 = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in order of their numbers, and how the tokenizer joins them."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    pre_tokenizer: str
    silent_count: int
    begin: str
    end: str
    adds_begin: bool

    def number(self, token: str) -> int:
        """The token's number; the token must be one."""
        return self.tokens.index(token)


@cache
def chatml_vocabulary() -> Vocabulary:
    """As Qwen's: `<|im_end|>` ends a turn, nothing is put before a text."""
    return _assembled(
        SPECIAL_CHATML, MARKS_CHATML, pre="qwen2", begin="<|endoftext|>", end="<|im_end|>", adds_begin=False
    )


@cache
def llama3_vocabulary() -> Vocabulary:
    """As Llama 3's: `<|eot_id|>` ends a turn, every text begins with `<|begin_of_text|>`."""
    return _assembled(
        SPECIAL_LLAMA3, (), pre="llama-bpe", begin="<|begin_of_text|>", end="<|eot_id|>", adds_begin=True
    )


def _assembled(
    special: tuple[str, ...], marks: tuple[str, ...], *, pre: str, begin: str, end: str, adds_begin: bool
) -> Vocabulary:
    letters = _letters()
    spoken = [letters[byte] for byte in (*range(0x21, 0x7F), 0x20, 0x0A)]
    merges: list[str] = []
    known = set(spoken)
    for word in dict.fromkeys(WORDS):
        written = letters[0x20] + word
        for cut in range(1, len(written)):
            joined = written[: cut + 1]
            if joined not in known:
                known.add(joined)
                spoken.append(joined)
                merges.append(f"{written[:cut]} {written[cut]}")
    silent_bytes = [letter for letter in letters if letter not in known]
    tokens = (*spoken, *silent_bytes, *marks, *special)
    kinds = [NORMAL] * (len(spoken) + len(silent_bytes))
    kinds += [USER_DEFINED] * len(marks) + [CONTROL] * len(special)
    return Vocabulary(
        tokens=tokens,
        kinds=tuple(kinds),
        merges=tuple(merges),
        pre_tokenizer=pre,
        silent_count=len(tokens) - len(spoken),
        begin=begin,
        end=end,
        adds_begin=adds_begin,
    )


def _letters() -> list[str]:
    """For each byte the character it is written as in a byte-level vocabulary."""
    letters = [""] * 256
    for byte in PRINTABLE:
        letters[byte] = chr(byte)
    rest = [byte for byte in range(256) if not letters[byte]]
    for position, byte in enumerate(rest):
        letters[byte] = chr(256 + position)
    return letters
