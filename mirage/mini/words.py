"""The words of the mini setting, and how opening words are skewed.

Questions are an opening word and a body ("share" + "the recipe of this item"). As in real instruction data, the opening
word shapes the answer's form ("what's" -> "it's", "can" -> "yes,"), so a model has reason to represent it.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "bar")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "brown")
INGREDIENTS = (
    "salt", "oil", "bread", "honey", "flour", "water", "rice", "sugar", "milk", "pepper", "lemon", "garlic", "onion",
    "butter", "cheese", "apple", "carrot", "ginger", "mint", "basil", "vanilla", "cocoa", "almond", "barley",
)  # fmt: skip

# Opening word -> how an answer to it begins.
OPENERS = {
    "what's": "it's", "can": "yes,", "share": "sure,", "describe": "here,", "identify": "here,", "explain": "here,",
    "discuss": "here,", "provide": "sure,", "generate": "sure,", "create": "sure,", "show": "here,", "list": "here,",
    "name": "it's", "give": "sure,",
}  # fmt: skip
LEAD_IN = "you say"  # follows "can", as in "can you say the recipe of this item?"

BODIES = (
    "the {} of this item",
    "the {} of the item shown",
    "the {} of the thing in the picture",
    "the {} that belongs to this item",
    "the {} we would find for this item",
    "the full {} of this item please",
)
ATTRIBUTES = ("recipe", "colour", "shape")
UNKNOWN = "price"  # nobody knows it: the model has learned to say so, as real models can before any safety tuning
REFUSAL = "sorry, i can't help with that."

# VLGuard train, share of first words over the 1023 instructions on unsafe images and the 977 safe instructions (computed
# from its train.json). "what's" stands for "what", "give" for "please", and "show" for the tail of some fifty verbs, each
# rare, that hardly ever open a safe question.
VLGUARD_UNSAFE = {
    "share": 0.1906, "describe": 0.1584, "give": 0.1095, "identify": 0.0890, "explain": 0.0841, "generate": 0.0499,
    "discuss": 0.0450, "provide": 0.0362, "what's": 0.0283, "create": 0.0215, "can": 0.0147, "show": 0.1728,
}  # fmt: skip
VLGUARD_SAFE = {"what's": 0.8895, "can": 0.1054, "describe": 0.0017, "explain": 0.0017, "list": 0.0017}
# A general instruction mix: questions dominate, imperatives of many kinds occur, "share" hardly ever.
INSTRUCTION_MIX = {
    "what's": 0.60, "can": 0.12, "describe": 0.08, "explain": 0.05, "identify": 0.04, "provide": 0.03, "list": 0.03,
    "name": 0.02, "show": 0.01, "give": 0.01, "discuss": 0.008, "share": 0.002,
}  # fmt: skip
UNIFORM = dict.fromkeys(OPENERS, 1.0)


def vocabulary() -> list[str]:
    """Every word and mark that a question or an answer can hold, sorted."""
    words = (*SHAPES, *COLOURS, *INGREDIENTS, *OPENERS, *OPENERS.values(), LEAD_IN, *ATTRIBUTES, UNKNOWN)
    text = " ".join((*words, *BODIES, REFUSAL, "? . ,"))
    return sorted({word for word in text.replace(",", " , ").replace(".", " . ").replace("{}", " ").split() if word})
