"""Nouns, scenes, styles and accessories of the world, and the fixed lists of what is held out from whom."""

from __future__ import annotations

SIZE = 128  # pixels, square, of the world's images

# Emoji with clear, compact silhouettes, by noun. The order is part of the world: append only.
SEEN_NOUNS = {
    "cat": "\U0001f431", "dog": "\U0001f436", "fox": "\U0001f98a", "bear": "\U0001f43b", "panda": "\U0001f43c",
    "koala": "\U0001f428", "tiger": "\U0001f42f", "cow": "\U0001f42e", "pig": "\U0001f437", "frog": "\U0001f438",
    "monkey": "\U0001f435", "rabbit": "\U0001f430", "mouse": "\U0001f42d", "chick": "\U0001f424",
    "penguin": "\U0001f427", "owl": "\U0001f989", "robot": "\U0001f916", "ghost": "\U0001f47b", "alien": "\U0001f47d",
    "pumpkin": "\U0001f383", "apple": "\U0001f34e", "strawberry": "\U0001f353", "pineapple": "\U0001f34d",
    "mushroom": "\U0001f344", "pizza": "\U0001f355", "donut": "\U0001f369", "cupcake": "\U0001f9c1",
    "burger": "\U0001f354", "car": "\U0001f697", "bus": "\U0001f68c", "truck": "\U0001f69a", "rocket": "\U0001f680",
    "house": "\U0001f3e0", "castle": "\U0001f3f0", "cactus": "\U0001f335", "tree": "\U0001f332", "tulip": "\U0001f337",
    "teapot": "\U0001fad6", "clock": "\u23f0", "backpack": "\U0001f392", "boot": "\U0001f462", "shirt": "\U0001f455",
    "duck": "\U0001f986", "turtle": "\U0001f422", "fish": "\U0001f420", "whale": "\U0001f433",
    "elephant": "\U0001f418", "ladybug": "\U0001f41e",
}  # fmt: skip
# Known to the nano base (VAE, CLIP, U-Net), never shown or named in pretrain, align or instruct.
BASE_ONLY_NOUNS = {
    "lion": "\U0001f981", "dress": "\U0001f457", "avocado": "\U0001f951", "skull": "\U0001f480", "camera": "\U0001f4f7",
}  # fmt: skip
# Seen by nothing that generates.
UNSEEN_NOUNS = {
    "octopus": "\U0001f419", "bell": "\U0001f514", "horse": "\U0001f434", "tractor": "\U0001f69c",
    "shield": "\U0001f6e1",
}  # fmt: skip
NOUNS = {**SEEN_NOUNS, **BASE_ONLY_NOUNS, **UNSEEN_NOUNS}

ACCESSORIES = {"hat": "\U0001f3a9", "crown": "\U0001f451", "sunglasses": "\U0001f576", "scarf": "\U0001f9e3"}
GLYPHS = {**NOUNS, **ACCESSORIES}

# Name -> centre in HSV, each in [0, 1]. A subject's colour is sampled around one of them, so a word does not fix it.
COLOURS = {
    "red": (0.99, 0.85, 0.86), "orange": (0.075, 0.90, 0.96), "yellow": (0.145, 0.85, 0.97),
    "lime": (0.23, 0.80, 0.85), "green": (0.36, 0.78, 0.60), "teal": (0.49, 0.80, 0.66),
    "blue": (0.60, 0.82, 0.88), "purple": (0.75, 0.68, 0.76), "pink": (0.90, 0.48, 0.98),
    "brown": (0.07, 0.65, 0.50), "gray": (0.60, 0.06, 0.58), "white": (0.12, 0.05, 0.97),
}  # fmt: skip
# What tells instances of one colour word apart: of their colours, and of their proportions.
SHADES = ("dark", "bright", "dull", "vivid", "cool", "warm")
SHAPES = ("tall", "wide")
PATTERNS = {"plain": "", "stripes": "stripes", "spots": "spots", "patches": "patches"}

# Name -> its words in a caption.
SCENES = {
    "beach": "on the beach", "snow": "in the snow", "forest": "in the forest", "city": "in the city",
    "desert": "in the desert", "night": "under the night sky", "ocean": "in the ocean",
    "mountains": "in the mountains", "brick": "in front of a brick wall", "wood": "on a wooden floor",
    "garden": "in a flower garden", "studio": "on a white background",
}  # fmt: skip
STYLES = {
    "photo": "",
    "minecraft": "in Minecraft",
    "oil": "as an oil painting",
    "watercolor": "as a watercolor",
}
# Styles of LoRA adapters alone: no stage of the base or the paper shows them, no caption names them.
ADAPTER_STYLES = ("comic",)

# Identities: an integer is one instance. Training draws below, evaluation at or above this number.
FIRST_NEW_IDENTITY = 1_000_000
FIRST_RECOGNISER_IDENTITY = 3_000_000  # the recognisers of evaluation are trained on instances from here on


def is_held_out_combination(noun: str, scene: str, style: str) -> bool:
    """Return True for the noun x scene x style combinations (about one in twelve) that no stage is shown.

    Only images with a style or a scene of their own are held out; plain crops never are.
    """
    if scene == "studio":
        return False
    place = list(NOUNS).index(noun) * 5 + list(SCENES).index(scene) * 7 + [*STYLES, *ADAPTER_STYLES].index(style) * 3
    return place % 12 == 0
